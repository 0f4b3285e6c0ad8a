"""FLUX.2 klein in a real ComfyUI, with tiny weights: the bridge, and nodes in a running host."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from host_comfyui import comfyui, failure, host_paths, largest, latent, node
from host_tiny import write_tiny_klein

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


@pytest.fixture(scope="module")
def host():
    folder, python = host_paths()
    known = (folder / "comfy/supported_models.py").read_text(encoding="utf-8")
    if "class Flux2" not in known:
        pytest.skip(f"{folder} is too old for FLUX.2")
    return folder, python


@pytest.fixture(scope="module")
def models(tmp_path_factory, host):
    return write_tiny_klein(tmp_path_factory.mktemp("klein"), host[0])


@pytest.fixture(scope="module")
def found(models, host, root):
    folder, python = host
    script = Path(__file__).with_name("host_klein_bridge.py")
    done = subprocess.run(
        [python, str(script), str(folder.resolve()), str(models), str(root)],
        capture_output=True, text=True, timeout=900, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    print(done.stdout.splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])


def test_the_denoiser_predicts_what_comfyui_predicts(found):
    assert found["family"] == "flux2_klein" and found["velocity_size"] > 0.05
    assert found["velocity"] < 1e-5


def test_comfyuis_clip_and_vae_give_what_the_files_give(found):
    assert found["text_size"] > 0.05 and found["text"] < 1e-4
    assert found["latent_shape"] == [1, 128, 4, 6]
    assert found["latents"] < 1e-3 and found["pictures"] < 1e-3


def test_it_can_be_trained(found):
    assert found["trains"] and found["inference_tensors"] == 0


def test_the_patched_model_the_exported_file_and_the_lora_are_one(found):
    """12 matrices in 8 weights of ComfyUI's; and every matrix, with the last modulation's halves
    exchanged."""
    assert found["modules"] == 12 and found["effect"] > 1e-2
    assert found["patched"] < 1e-5 and found["exported"] < 1e-5 and found["lora_file"] < 1e-5
    effect, difference = found["dense"]
    assert found["dense_changes"] > 20 and effect > 1e-2 and difference < 1e-5
    assert found["without"] and found["unchanged"] == 0


def test_the_files_of_all_three_are_known(found, models):
    text, vae = (str(models / f"{name}.safetensors") for name in ("qwen", "vae"))
    assert found["sources"] == [str(models / "klein-base.safetensors"), text]
    assert found["companions"] == {"text_encoder": text, "vae": vae}
    assert found["difference"] == ""


# --- the nodes in a running host ------------------------------------------------------------------


def place(models, base, root):
    """Put the files where ComfyUI has them, and the pack that makes its text encoder tiny."""
    for kind, name in (("diffusion_models", "klein-base"), ("text_encoders", "qwen"),
                       ("vae", "vae")):  # fmt: skip
        folder = base / "models" / kind
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.safetensors").symlink_to(models / f"{name}.safetensors")
    (base / "models/text_encoders/tokenizer").symlink_to(models / "tokenizer")
    pack = base / "custom_nodes" / "tiny_qwen"
    pack.mkdir(parents=True)
    shutil.copyfile(root / "tests/host_tiny_qwen.py", pack / "__init__.py")


def loaders(name="klein-base"):
    return {
        "1": node("UNETLoader", unet_name=f"{name}.safetensors"),
        "2": node("CLIPLoader", clip_name="qwen.safetensors", type="flux2"),
        "3": node("VAELoader", vae_name="vae.safetensors"),
        "70": node("CLIPTextEncode", clip=["2", 0], text="a cat"),
        "71": node("EmptyFlux2LatentImage", width=64, height=64, batch_size=1),
    }


def hardening(process="inside ComfyUI", seed=0):
    settings = {"preset": "fast", "resolution": 64, "outer_steps": 2, "random_seed": seed,
                "learning_rate": 0.02, "rank": 2}  # fmt: skip
    return loaders() | {
        "60": node("EmptyImage", width=64, height=64, batch_size=2, color=0x3366AA),
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


def sampled(number, model, prefix):
    first, second = str(number), str(number + 1)
    return {
        first: node("KSampler", model=model, seed=7, steps=2, cfg=4.0, sampler_name="euler",
                    scheduler="simple", denoise=1.0, positive=["70", 0], negative=["70", 0],
                    latent_image=["71", 0]),
        second: node("SaveLatent", samples=[first, 0], filename_prefix=prefix),
    }  # fmt: skip


@pytest.fixture(scope="module")
def running(models, tmp_path_factory, root, host):
    base = tmp_path_factory.mktemp("running") / "base"
    place(models, base, root)
    with comfyui(base, root, 8231) as found:
        yield found


def run(running, graph):
    return running.run(graph, timeout=1600)  # on a busy machine


def test_the_nodes_harden_and_export_it(running):
    """The patched MODEL, core's LoRA loader, the exported file and the LoRA's file draw alike."""
    graph = hardening() | {
        "10": node("ResAlign_ExportHardenedCheckpoint", run=["5", 3], filename="hard-base"),
        "11": node("ResAlign_SaveHardeningLora", run=["5", 3], filename="hard_lora"),
        "12": node("LoraModelLoader", model=["1", 0], lora=["5", 1], strength_model=1.0),
        **sampled(80, ["1", 0], "original"), **sampled(82, ["5", 0], "ours"),
        **sampled(84, ["12", 0], "loader"),
    }  # fmt: skip
    outputs = run(running, graph)
    assert outputs["5"]["resalign_run"][0]["source"] == "klein-base.safetensors"
    written = running.base / "models/diffusion_models/hard-base.safetensors"
    assert written.is_file(), "where Load Diffusion Model finds it"
    running.info = running.get("/object_info")
    again = loaders("hard-base") | sampled(86, ["1", 0], "file")
    again |= {
        "20": node("UNETLoader", unet_name="klein-base.safetensors"),
        "13": node("LoraLoaderModelOnly", model=["20", 0], lora_name="hard_lora.safetensors"),
        **sampled(88, ["13", 0], "lora"),
        "21": node("ResAlign_LoadHardenedInfo", checkpoint="hard-base.safetensors"),
    }  # fmt: skip
    (info,) = run(running, again)["21"]["text"]
    assert "FLUX.2 klein 4B" in info and "weapons" in info
    names = ("original", "ours", "loader", "file", "lora")
    found = {name: latent(running, name) for name in names}
    change = largest(found["ours"], found["original"])
    apart = {name: largest(found["ours"], found[name]) for name in names[2:]}
    print(f"hardening {change:.3g}; from the patched MODEL: {apart}")
    assert change > 1e-3 and max(apart.values()) < 1e-5


def test_the_probe_measures_it(running):
    graph = hardening() | {
        "14": node("ResAlign_ResilienceProbe", before=["1", 0], clip=["2", 0], vae=["3", 0],
                   run=["5", 3], steps=2, images=2, sampling_steps=2, resolution=64),
    }  # fmt: skip
    outputs = run(running, graph)
    assert outputs["14"]["resalign_report"]


def test_a_process_of_its_own_hardens_its_files(running):
    own = hardening("own process", seed=1)
    own["62"] = node("ResAlign_ImageSet", prompts="a cat", count=2)
    history = running.wait(running.queue(own), timeout=1600)
    assert history["status"]["status_str"] == "success", failure(history)
    assert history["outputs"]["5"]["resalign_run"][0]["steps"] == 2
