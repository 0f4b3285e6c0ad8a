"""Flow-matching families in a real ComfyUI, with tiny weights: the bridge, and nodes in a running
host."""

import json
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
from host_comfyui import comfyui, failure, host_paths, largest, latent, node, sampled
from host_tiny import write_tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

sampled = partial(sampled, cfg=4.0, scheduler="simple")

# title; class in ComfyUI; type of Load CLIP; latents of two pictures; port
FAMILIES = {
    "flux2_klein": ("FLUX.2 klein 4B", "Flux2", "flux2", [2, 128, 4, 6], 8231),
    "anima": ("Anima", "Anima", "stable_diffusion", [2, 16, 8, 12], 8232),
    "z_image": ("Z-Image", "ZImage", "lumina2", [2, 16, 8, 12], 8233),
}
# largest difference of a velocity; ComfyUI rounds Z-Image's coarsely: tests/test_host_z_image.py
NAMED = {"flux2_klein": "Harden FLUX.2 klein", "anima": "Harden Anima"}  # the templates
EXACT = {"flux2_klein": 1e-5, "anima": 1e-5, "z_image": 5e-5}
MODULES = {"flux2_klein": (12, 8), "anima": (16, 16), "z_image": (8, 4)}  # and patches


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def host(family):
    folder, python = host_paths()
    known = (folder / "comfy/supported_models.py").read_text(encoding="utf-8")
    if f"class {FAMILIES[family][1]}(" not in known:
        pytest.skip(f"{folder} is too old for {family}")
    return folder, python


@pytest.fixture(scope="module")
def models(family, tmp_path_factory, host):
    return write_tiny(family, tmp_path_factory.mktemp(family), host[0])


@pytest.fixture(scope="module")
def found(family, models, host, root):
    folder, python = host
    script = Path(__file__).with_name("host_flow_bridge.py")
    done = subprocess.run(
        [python, str(script), str(folder.resolve()), str(models), str(root), family],
        capture_output=True, text=True, timeout=900, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    print(done.stdout.splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])


def test_the_denoiser_predicts_what_comfyui_predicts(family, found):
    assert found["family"] == family and found["velocity_size"] > 0.05
    assert found["velocity"] < EXACT[family]


def test_comfyuis_clip_gives_what_the_files_and_its_sampler_give(found):
    assert found["text_size"] > 0.01
    assert found["text"] < 1e-4 and found["sampled"] < 1e-4


def test_comfyuis_vae_gives_what_the_file_gives(family, found):
    assert found["latent_shape"] == FAMILIES[family][3]
    assert found["latents"] < 1e-3 and found["pictures"] < 1e-3


def test_it_can_be_trained(found):
    assert found["trains"] and found["inference_tensors"] == 0


def test_the_patched_model_the_exported_file_and_the_lora_are_one(family, found):
    """One patch for each weight of ComfyUI's; and every matrix, with the halves of klein's last
    modulation exchanged."""
    assert (found["modules"], found["patches"]) == MODULES[family] and found["effect"] > 1e-2
    assert found["exported"] < 1e-5 and found["lora_file"] < 1e-5
    assert found["patched"] < EXACT[family]
    effect, difference = found["dense"]
    assert found["dense_changes"] > 20 and effect > 1e-2 and difference < 1e-5
    assert found["without"] and found["unchanged"] == 0


def test_the_files_of_all_three_are_known(found, models):
    text, vae = (str(models / f"{name}.safetensors") for name in ("qwen", "vae"))
    assert found["sources"] == [str(models / "model-base.safetensors"), text]
    assert found["companions"] == {"text_encoder": text, "vae": vae}
    assert found["difference"] == ""


# --- the nodes in a running host ------------------------------------------------------------------


def place(models, base, root):
    """Put the files where ComfyUI has them, and the pack that makes its models tiny."""
    for kind, name in (("diffusion_models", "model-base"), ("text_encoders", "qwen"),
                       ("vae", "vae")):  # fmt: skip
        folder = base / "models" / kind
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.safetensors").symlink_to(models / f"{name}.safetensors")
    for name in ("tokenizer", "t5_tokenizer"):
        (base / "models/text_encoders" / name).symlink_to(models / name)
    pack = base / "custom_nodes" / "tiny_pack"
    pack.mkdir(parents=True)
    shutil.copyfile(root / "tests/host_tiny_pack.py", pack / "__init__.py")


def loaders(family, name="model-base"):
    empty = "EmptyFlux2LatentImage" if family == "flux2_klein" else "EmptySD3LatentImage"
    return {
        "1": node("UNETLoader", unet_name=f"{name}.safetensors"),
        "2": node("CLIPLoader", clip_name="qwen.safetensors", type=FAMILIES[family][2]),
        "3": node("VAELoader", vae_name="vae.safetensors"),
        "70": node("CLIPTextEncode", clip=["2", 0], text="a cat"),
        "71": node(empty, width=64, height=64, batch_size=1),
    }


def hardening(family, process="inside ComfyUI", seed=0):
    settings = {"preset": "fast", "resolution": 64, "outer_steps": 2, "random_seed": seed,
                "learning_rate": 0.02, "rank": 2}  # fmt: skip
    return loaders(family) | {
        "60": node("EmptyImage", width=64, height=64, batch_size=1, color=0x3366AA),
        "63": node("MakeTrainingDataset", images=["60", 0], vae=["3", 0], clip=["2", 0]),
        "61": node("ResAlign_ImageSet", prompts="a pistol", count=2),
        "62": node("ResAlign_ImageSet", latents=["63", 0], conditioning=["63", 1]),
        "4": node("ResAlign_ConceptList", preset="weapons", images=["61", 0]),
        "6": node("ResAlign_HardeningSettings", **settings),
        "5": node(
            "ResAlign_HardenModel", model=["1", 0], clip=["2", 0], vae=["3", 0],
            concepts=["4", 0], settings=["6", 0], retain=["62", 0], preview_every=2,
            process=process,
        ),
    }  # fmt: skip


@pytest.fixture(scope="module")
def running(family, models, tmp_path_factory, root, host):
    base = tmp_path_factory.mktemp("running") / "base"
    place(models, base, root)
    with comfyui(base, root, FAMILIES[family][4]) as found:
        yield found


def run(running, graph):
    return running.run(graph, timeout=1600)  # on a busy machine


def test_the_nodes_harden_and_export_it(family, running):
    """The patched MODEL, core's LoRA loader, the exported file and the LoRA's file draw alike."""
    graph = hardening(family) | {
        "10": node("ResAlign_ExportHardenedCheckpoint", run=["5", 3], filename="hard-base"),
        "11": node("ResAlign_SaveHardeningLora", run=["5", 3], filename="hard_lora"),
        "12": node("LoraModelLoader", model=["1", 0], lora=["5", 1], strength_model=1.0),
        **sampled(80, ["1", 0], "original"), **sampled(82, ["5", 0], "ours"),
        **sampled(84, ["12", 0], "loader"),
    }  # fmt: skip
    outputs = run(running, graph)
    assert outputs["5"]["resalign_run"][0]["source"] == "model-base.safetensors"
    written = running.base / "models/diffusion_models/hard-base.safetensors"
    assert written.is_file(), "where Load Diffusion Model finds it"
    running.info = running.get("/object_info")
    again = loaders(family, "hard-base") | sampled(86, ["1", 0], "file")
    again |= {
        "20": node("UNETLoader", unet_name="model-base.safetensors"),
        "13": node("LoraLoaderModelOnly", model=["20", 0], lora_name="hard_lora.safetensors"),
        **sampled(88, ["13", 0], "lora"),
        "21": node("ResAlign_LoadHardenedInfo", checkpoint="hard-base.safetensors"),
    }  # fmt: skip
    (info,) = run(running, again)["21"]["text"]
    assert FAMILIES[family][0] in info and "weapons" in info
    names = ("original", "ours", "loader", "file", "lora")
    found = {name: latent(running, name) for name in names}
    change = largest(found["ours"], found["original"])
    apart = {name: largest(found["ours"], found[name]) for name in names[2:]}
    print(f"hardening {change:.3g}; from the patched MODEL: {apart}")
    assert change > 1e-3 and max(apart.values()) < 1e-5


# --- examples -------------------------------------------------------------------------------------

OURS = {"UNETLoader": "model-base", "CLIPLoader": "qwen", "VAELoader": "vae"}
SMALL = {"preset": "fast", "resolution": 64, "outer_steps": 2, "precision": "preset"}


def example(path):
    """An example workflow in the API format, with our files, at 64 pixels and two steps."""
    flow = json.loads(path.read_text(encoding="utf-8"))
    starts = {link[0]: [str(link[1]), link[2]] for link in flow["links"]}
    graph = {}
    for one in flow["nodes"]:
        if one["type"] == "MarkdownNote":
            continue
        inputs = dict(one["widgets_values_named"])
        inputs |= {i["name"]: starts[i["link"]] for i in one["inputs"] if i["link"] is not None}
        if one["type"] in OURS:
            first = next(iter(one["widgets_values_named"]))
            inputs[first] = f"{OURS[one['type']]}.safetensors"
        elif one["type"] == "ResAlign_HardeningSettings":
            inputs |= SMALL
        elif one["type"] == "ResAlign_ConceptList":
            inputs["images"] = ["90", 0]
        elif one["type"] == "ResAlign_HardenModel":
            inputs |= {"retain": ["91", 0], "preview_every": 1}
        graph[str(one["id"])] = node(one["type"], **inputs)
    for key, prompt in (("90", "a pistol"), ("91", "a cat")):
        graph[key] = node("ResAlign_ImageSet", prompts=prompt, count=2)
    return graph


@pytest.mark.parametrize("family", ["flux2_klein", "anima"], indirect=True, scope="module")
def test_the_example_hardens_and_exports_it(family, running, root):
    graph = example(root / f"example_workflows/{NAMED[family]}.json")
    kinds = {one["class_type"]: key for key, one in graph.items()}
    assert FAMILIES[family][2] == graph[kinds["CLIPLoader"]]["inputs"]["type"]
    outputs = run(running, graph)
    assert outputs[kinds["ResAlign_HardenModel"]]["resalign_run"][0]["steps"] == 2
    assert (running.base / "models/diffusion_models/hardened.safetensors").is_file()
    assert (running.base / "models/loras/hardening_lora.safetensors").is_file()


def test_the_probe_measures_it(family, running):
    graph = hardening(family) | {
        "14": node("ResAlign_ResilienceProbe", before=["1", 0], clip=["2", 0], vae=["3", 0],
                   run=["5", 3], steps=2, images=2, sampling_steps=2, resolution=64),
    }  # fmt: skip
    outputs = run(running, graph)
    assert outputs["14"]["resalign_report"]


def test_a_process_of_its_own_hardens_its_files(family, running):
    own = hardening(family, "own process", seed=1)
    own["62"] = node("ResAlign_ImageSet", prompts="a cat", count=2)
    history = running.wait(running.queue(own), timeout=1600)
    assert history["status"]["status_str"] == "success", failure(history)
    assert history["outputs"]["5"]["resalign_run"][0]["steps"] == 2
