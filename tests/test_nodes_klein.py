"""FLUX.2 klein in ComfyUI: the backend gets what its files would give, with the host's CLIP and VAE
at work; an adapter goes back onto weights that hold several matrices each."""

import importlib
import sys
import types
from pathlib import Path

import fakes_bridge
import fakes_bridge_klein as fakes
import fakes_klein
import pytest
import torch
from safetensors.torch import load_file

import resalign as ra
from resalign.backend.adapter.dense import DenseAdapter
from resalign.backend.adapter.lora import Adapter
from resalign.backend.data.assembly import encode_texts
from resalign.backend.data.cache import fingerprint
from resalign.backend.data.encoded_file import load_encoded, write_encoded
from resalign.backend.errors import CheckpointError, ConfigError
from resalign.backend.families.base.sources import swap_halves
from resalign.backend.model.encode import decode_latents, encode_images, encode_prompts
from resalign.backend.plan.attack import FineTuneAttack
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.probe import ProbePlan
from resalign.backend.probe.carry_out import check_attacks

PROMPTS = ["a cat", "", "größer: (a dog:1.2)"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("klein") / "models"


@pytest.fixture(scope="module")
def filed(models):
    return fakes.from_files(models)


@pytest.fixture(scope="module")
def source(models, filed):
    return models / fakes_klein.DENOISER_FILE


@pytest.fixture
def parts():
    return fakes.host_parts()


@pytest.fixture
def bridge(monkeypatch, tmp_path):
    return fakes_bridge.bridge(monkeypatch, tmp_path)[0]


def test_the_backend_gets_the_model_that_its_files_give(bridge, parts, filed):
    with torch.inference_mode(), bridge.to_backend(*parts) as backend:
        assert backend.family is fakes.KLEIN and backend.resolution == 1024
        found, expected = backend.denoiser.state_dict(), filed.denoiser.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert backend.process.fingerprint() == filed.process.fingerprint()
        texts = encode_prompts(backend, PROMPTS)["context"]
        torch.testing.assert_close(texts, encode_prompts(filed, PROMPTS)["context"])
        images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
        latents = encode_images(backend, images)
        torch.testing.assert_close(latents, encode_images(filed, images))
        pictures = decode_latents(backend, latents)
        torch.testing.assert_close(pictures, decode_latents(filed, latents), atol=1e-5, rtol=1e-4)
        tensors = [*backend.denoiser.parameters(), texts, latents]
        assert not any(tensor.is_inference() for tensor in tensors)
    assert parts[1].asked == PROMPTS, "ComfyUI's CLIP read them, once each"


def test_encodings_are_kept_by_what_is_connected(bridge, parts, tmp_path):
    """Another CLIP, a LoRA on it, or another text is encoded again; nothing else is."""
    from resalign.backend.data.cache import EncodingCache

    model, clip, vae = parts
    cache = EncodingCache(tmp_path / "cache")
    with bridge.to_backend(model, clip, vae) as backend:
        first = fingerprint(*backend.text_encoders)
        one = encode_texts(backend, ["a cat"], cache=cache)
        again = encode_texts(backend, ["a cat"], cache=cache)
        assert clip.asked == ["a cat"] and torch.equal(one["context"], again["context"])
    name = next(iter(clip.patcher.tensors))
    clip.patcher.patches[name] = [(1.0, torch.ones_like(clip.patcher.tensors[name]))]
    with bridge.to_backend(model, clip, vae) as backend:
        assert fingerprint(*backend.text_encoders) != first


def test_the_host_is_asked_to_unload_its_clip_when_it_has_encoded(bridge, parts, monkeypatch):
    management = sys.modules["comfy.model_management"]  # the fake

    text = importlib.import_module("resalign.nodes.bridge.text").HostText(parts[1])
    said = []
    monkeypatch.setattr(management, "unload_all_models", lambda: said.append(True))
    text.to("cpu")
    text.to("meta")
    assert not said
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *args: self.__init__(parts[1]))
    text.to("cpu")
    assert said == [True]


# --- an adapter back onto the MODEL ---------------------------------------------------------------


def low_rank(model, names, rank=2):
    random = torch.Generator().manual_seed(3)
    tensors = {}
    for name in names:
        rows, columns = model.denoiser.get_submodule(name).weight.shape
        tensors[f"{name}.lora_A.weight"] = torch.randn(rank, columns, generator=random)
        tensors[f"{name}.lora_B.weight"] = torch.randn(rows, rank, generator=random)
    return Adapter(tensors, rank, 3.0)


MODULES = {
    "all of a fused weight": [f"transformer_blocks.0.attn.to_{part}" for part in "qkv"],
    "a part of it": [f"transformer_blocks.0.attn.add_{part}_proj" for part in "vk"],
    "one of its own": ["single_transformer_blocks.1.attn.to_qkv_mlp_proj", "norm_out.linear"],
}  # fmt: skip


@pytest.mark.parametrize("names", MODULES.values(), ids=MODULES)
def test_the_patched_model_is_the_exported_file(bridge, parts, filed, source, names):
    adapter = low_rank(filed, names)
    assert_is_exported(bridge, parts[0], adapter, source)


def test_a_dense_change_is_too(bridge, parts, filed, source):
    random = torch.Generator().manual_seed(0)
    names = ["norm_out.linear.weight", "transformer_blocks.0.attn.to_k.weight", "proj_out.weight"]
    changes = {
        name: torch.randn(filed.denoiser.get_parameter(name).shape, generator=random)
        for name in names
    }
    assert_is_exported(bridge, parts[0], DenseAdapter(changes), source)


def assert_is_exported(bridge, model, adapter, source):
    lora = bridge.lora_model(adapter, bridge.places_of(model))
    patched = bridge.with_adapter(model, lora)
    target = source.with_name(f"out-{len(list(source.parent.iterdir()))}.safetensors")
    ra.export_merged(source, adapter, target)
    expected = {n.replace("_norm.scale", "_norm.weight"): t for n, t in load_file(target).items()}
    found = bridge.unet_tensors(patched)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-5, rtol=1e-5)
    before = bridge.unet_tensors(model)
    changed = {name for name in found if not torch.equal(found[name], before[name])}
    assert changed == {name.removeprefix("diffusion_model.") for name in patched.patches}
    bare = bridge.without_adapter(patched, lora)
    assert bare is not None and bridge.fingerprint(bare) == bridge.fingerprint(model)


def test_samples_of_a_fused_weight_are_those_of_its_rows(bridge, parts, filed):
    matrices = bridge.base_matrices(parts[0])
    for name in ("transformer_blocks.0.attn.to_v", "norm_out.linear"):
        assert torch.equal(matrices[name], filed.denoiser.get_submodule(name).weight)
    held = parts[0].tensors["diffusion_model.final_layer.adaLN_modulation.1.weight"]
    assert torch.equal(swap_halves(held), matrices["norm_out.linear"])


# --- files ----------------------------------------------------------------------------------------


def loaded_from(part, path):
    part.cached_patcher_init = (None, ([str(path)],))


def test_what_is_connected_is_compared_with_its_files(bridge, parts, models, source):
    model, clip, vae = parts
    state = fakes_klein.native_vae(fakes_klein.build_networks()["vae"].state_dict())
    named = {n.removeprefix("encoder.").removeprefix("decoder."): t for n, t in state.items()
             if "quant_conv" in n}  # fmt: skip
    vae.patcher = fakes_bridge.ModelPatcher(state | named)
    assert bridge.difference_from_file(model, clip, vae, source) == ""
    own = clip.patcher
    clip.patcher = fakes_bridge.ModelPatcher({n: t + 1 for n, t in own.tensors.items()})
    assert bridge.difference_from_file(model, clip, vae, source).startswith("the CLIP: ")
    clip.patcher, model.tensors = own, {n: t + 1 for n, t in model.tensors.items()}
    assert bridge.difference_from_file(model, clip, vae, source).startswith("the MODEL: ")


def test_a_process_of_its_own_is_told_the_files_of_clip_and_vae(bridge, parts, models, tmp_path):
    """What the loaders say, else the graph, else the only fitting file in the host's folders."""
    sources = importlib.import_module("resalign.nodes.sources")
    model, clip, vae = parts
    for kind, name in (("diffusion_models", "a-base"), ("text_encoders", "b"), ("vae", "c")):
        folder = tmp_path / "models" / kind
        folder.mkdir(exist_ok=True)
        file = {"a-base": fakes_klein.DENOISER_FILE, "b": fakes_klein.TEXT_FILE,
                "c": fakes_klein.VAE_FILE}[name]  # fmt: skip
        (folder / f"{name}.safetensors").symlink_to(models / file)
    alone = tmp_path / "elsewhere" / "a-base.safetensors"
    alone.parent.mkdir()
    alone.symlink_to(models / fakes_klein.DENOISER_FILE)
    own = tmp_path / "models"
    expected = {"text_encoder": str(own / "text_encoders/b.safetensors"),
                "vae": str(own / "vae/c.safetensors")}  # fmt: skip
    assert sources.companions(model, clip, vae, alone) == expected
    loaded_from(clip.patcher, models / fakes_klein.TEXT_FILE)
    prompt = {"1": {"inputs": {"vae_name": "c.safetensors"}}, "2": {"inputs": {"vae": ["1", 0]}}}
    hidden = types.SimpleNamespace(prompt=prompt, unique_id="2")
    found = sources.companions(model, clip, vae, alone, hidden)
    assert found == {**expected, "text_encoder": str(models / fakes_klein.TEXT_FILE)}


def test_a_denoisers_file_is_found_in_the_graph_and_in_the_list(bridge, tmp_path):
    sources = importlib.import_module("resalign.nodes.sources")
    file = tmp_path / "models/diffusion_models/klein.safetensors"
    file.parent.mkdir()
    file.touch()
    prompt = {"1": {"inputs": {"unet_name": file.name}}, "2": {"inputs": {"model": ["1", 0]}}}
    hidden = types.SimpleNamespace(prompt=prompt, unique_id="2")
    assert sources.source_file(None, hidden) == file
    assert sources.model_files() == [file.name] and sources.model_file(file.name) == file


def test_a_denoiser_alone_is_exported_for_load_diffusion_model(
    bridge, source, tmp_path, monkeypatch
):
    folder_paths = sys.modules["folder_paths"]  # the fake

    export = importlib.import_module("resalign.nodes.export")
    whole = fakes_klein.write_whole(tmp_path / "klein-base-whole.safetensors")
    assert export.folder_kind(source) == "diffusion_models"
    assert export.folder_kind(whole) == export.folder_kind(None) == "checkpoints"
    old, new = tmp_path / "models/unet", tmp_path / "models/diffusion_models"
    monkeypatch.setattr(folder_paths, "get_folder_paths", lambda kind: [str(old), str(new)])
    target = export.target_file("diffusion_models", "models/checkpoints", "a", overwrite=False)
    assert target == new / "a.safetensors"
    # extra_model_paths.yaml with is_default puts a folder of any name first
    first, second = tmp_path / "disk/sd", tmp_path / "models/checkpoints"
    monkeypatch.setattr(folder_paths, "get_folder_paths", lambda kind: [str(first), str(second)])
    target = export.target_file("checkpoints", "models/checkpoints", "a", overwrite=False)
    assert target == first / "a.safetensors"


def test_a_name_in_both_folders_stands_for_either_file(bridge, tmp_path):
    folder_paths = sys.modules["folder_paths"]  # the fake
    sources = importlib.import_module("resalign.nodes.sources")
    further = importlib.import_module("resalign.nodes.further")
    for kind, names in (("checkpoints", "ab"), ("diffusion_models", "bc")):
        folder = Path(folder_paths.get_folder_paths(kind)[0])
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            (folder / f"{name}.safetensors").write_bytes(kind.encode())
    listed = {name: sources.model_file(name).read_text() for name in sources.model_files()}
    assert listed == {
        "a.safetensors": "checkpoints",
        "b.safetensors": "checkpoints",
        "diffusion_models/b.safetensors": "diffusion_models",
        "c.safetensors": "diffusion_models",
    }
    # a sibling, of which klein's files are denoisers, is chosen from the same list
    (sibling,) = (each for each in further.further_inputs() if each.id == "sibling")
    assert set(listed) < set(sibling.options["options"])
    assert Path(further.sibling_of("c.safetensors", None)).read_text() == "diffusion_models"


# --- data of the graph ----------------------------------------------------------------------------


def test_latents_and_conditioning_of_the_graph_are_taken_as_they_are(bridge, parts, tmp_path):
    """A LATENT is normalised already; a short conditioning begins with zeros, as in a KSampler."""
    latents = parts[2].encode(torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0)))
    context = torch.randn(200, 3 * fakes_klein.TEXT_WIDTH)
    write_encoded(tmp_path / "set", [latents[0]], [{"context": context, "pooled": context[0]}])
    with bridge.to_backend(*parts) as backend:
        encoded = load_encoded(backend, tmp_path / "set")
    assert torch.equal(encoded.buckets[0].latents, latents)
    found = encoded.conditioning["context"][0]
    assert torch.equal(found[312:], context) and not found[:312].any()


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "words"), [(32, r"shape \[512, 32\].*reads a width of 96.*type flux2")]
)
def test_a_clip_of_the_wrong_type_is_refused(bridge, parts, width, words):
    """The same file, loaded for another family, gives one layer instead of three."""
    clip = fakes.Clip(width)
    with (
        bridge.to_backend(parts[0], clip, parts[2]) as backend,
        pytest.raises(CheckpointError, match=words),
    ):
        encode_prompts(backend, ["a cat"])


def test_a_clip_of_another_model_is_refused(bridge, parts):
    clip = fakes_bridge.Clip({"clip_l.transformer.x": torch.zeros(1)})
    with (
        pytest.raises(CheckpointError, match=r"no qwen3_4b.*type flux2"),
        bridge.to_backend(parts[0], clip, parts[2]),
    ):
        pass


def test_another_layer_of_the_clip_is_refused(bridge, parts):
    parts[1].layer_idx = -2
    with (
        pytest.raises(CheckpointError, match="Set Last Layer is -2"),
        bridge.to_backend(*parts),
    ):
        pass


@pytest.mark.parametrize("kind", [fakes_bridge.EPS, fakes.IMG_TO_IMG_FLOW])
def test_another_kind_of_sampling_is_refused(bridge, parts, kind):
    model = parts[0]
    model.sampling = fakes_bridge.sampling(fakes_bridge.ModelSamplingFlux, kind)
    with pytest.raises(CheckpointError, match=r"samples as .* as a flow"):
        bridge.prediction_of(model)


def test_the_hosts_text_encoder_is_not_trained(bridge, parts):
    attack = FineTuneAttack(name="deep", text_encoder=True)
    plan = ProbePlan(concepts=(Concept("a", ("a",)),), fine_tunes=(attack,))
    with (
        bridge.to_backend(*parts) as backend,
        pytest.raises(ConfigError, match=r"attack deep: its text encoder is the host's"),
    ):
        check_attacks(backend, plan, {})
    probe = importlib.import_module("resalign.nodes.probe")
    kept, said = probe.without_text_training(plan)
    assert not kept.fine_tunes[0].text_encoder and said[0].startswith("deep: trains the denoiser")


def flux(image=64, text=4096, *more):
    tensors = {"double_blocks.0.img_attn.qkv.weight": (9, 3), "img_in.weight": (3072, image),
               "txt_in.weight": (3072, text), **dict.fromkeys(more, (1, 1))}  # fmt: skip
    return {name: torch.empty(size, device="meta") for name, size in tensors.items()}


def klein(width, *more):
    names = {"double_stream_modulation_img.lin.weight": (1, 1), "img_in.weight": (width, 128),
             "txt_in.weight": (width, 7680), "time_in.in_layer.weight": (width, 256),
             "double_blocks.0.img_attn.norm.query_norm.weight": (128,),
             "double_blocks.0.img_mlp.2.weight": (width, 3 * width),
             **dict.fromkeys(more, (1, 1))}  # fmt: skip
    return {name: torch.empty(size, device="meta") for name, size in names.items()}


LUMINA = {"noise_refiner.0.attention.k_norm.weight": torch.empty(1, device="meta")}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (klein(6144, "guidance_in.in_layer.weight"), "FLUX.2 dev"),
        (klein(4096), "FLUX.2 klein 9B"),
        (flux(64, 4096, "guidance_in.in_layer.weight"), r"is FLUX.1 dev, Krea or Kontext, which"),
        (flux(), "is FLUX.1 schnell, which"),
        (flux(384), r"FLUX.1 Fill.*384 input channels"),
        (flux(64, 3584), "LongCat Image"),
        (flux(64, 2048, "double_blocks.0.img_mlp.gate_proj.weight"), "Ovis Image"),
        (flux(64, 4096, "distilled_guidance_layer.norms.0.weight"), "is Chroma, which"),
        (flux(64, 4096, "distilled_guidance_layer.norms.0.scale", "nerf_blocks.0.norm.scale"),
         "Chroma Radiance"),
        ({"joint_blocks.0.context_block.attn.qkv.weight": torch.empty(1)}, "Stable Diffusion 3"),
        ({**LUMINA, "cap_embedder.1.weight": torch.empty(2304, 1)}, "Lumina Image 2"),
        ({**LUMINA, "cap_embedder.1.weight": torch.empty(3840, 1),
          "siglip_embedder.0.weight": torch.empty(1)}, "Z-Image Omni"),
    ],
)  # fmt: skip
def test_relatives_in_memory_are_refused_by_name(bridge, tensors, words):
    model = fakes_bridge.ModelPatcher({f"diffusion_model.{n}": t for n, t in tensors.items()})
    with pytest.raises(CheckpointError, match=words):
        bridge.denoiser_config(model)
