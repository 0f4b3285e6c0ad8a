"""The bridge: ComfyUI's parts to the backend's Model, an adapter back onto a MODEL."""

import importlib
import sys

import fakes_bridge as fakes
import fakes_comfy
import pytest
import torch
from fakes_checkpoint import build_networks, write_tiny_checkpoint

from resalign.backend.adapter.apply import AdaptedDenoiser
from resalign.backend.adapter.dense import DenseAdapter
from resalign.backend.adapter.lora import A, Adapter, B
from resalign.backend.checkpoint.load import load_checkpoint
from resalign.backend.errors import CheckpointError, ExportError
from resalign.backend.families import find_family
from resalign.backend.memory.weights import weight_types
from resalign.backend.model.encode import decode_latents, encode_images, encode_prompts
from resalign.backend.plan.adapter import AdapterConfig
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.hardening import HardeningPlan

Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
LDM_Q = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def parts():
    return fakes.host_parts()


@pytest.fixture
def model(parts):
    return parts[0].clone()


@pytest.fixture
def clip(parts):
    return fakes.Clip(parts[1].patcher.tensors)


@pytest.fixture
def vae():
    return fakes.Vae()


@pytest.fixture
def loaded(monkeypatch, tmp_path):
    return fakes.bridge(monkeypatch, tmp_path)


@pytest.fixture
def bridge(loaded):
    return loaded[0]


@pytest.fixture
def inner(bridge):
    """The module that builds the backend's Model."""
    return importlib.import_module("resalign.nodes.bridge.model")


def predict(unet):
    random = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 8, 8, generator=random)
    context = torch.randn(1, 77, 32, generator=random)
    with torch.no_grad():
        return unet(latents, torch.tensor([500]), encoder_hidden_states=context).sample


def adapter(rank=2, alpha=1.0):
    width = build_networks("sd1")["unet"].get_submodule(Q).weight.shape
    random = torch.Generator().manual_seed(0)
    tensors = {
        Q + A: torch.randn(rank, width[1], generator=random),
        Q + B: torch.randn(width[0], rank, generator=random),
    }
    return Adapter(tensors, rank, alpha)


def test_the_backend_gets_the_model_that_comfyui_has(bridge, model, clip, vae, tmp_path):
    with bridge.to_backend(model, clip, vae, source=tmp_path) as backend:
        original = build_networks("sd1")["unet"]
        assert torch.equal(predict(backend.denoiser), predict(original))
        assert backend.family.name == "sd1" and backend.source == tmp_path
        assert backend.process.prediction_type == "epsilon"
        alphas = fakes.scaled_linear_alphas_cumprod()
        assert torch.allclose(backend.process.alphas_cumprod, alphas, atol=1e-6)
        assert encode_prompts(backend, ["a cat"])["context"].shape == (1, 77, 32)
        latents = encode_images(backend, torch.zeros(1, 3, 64, 64))
        assert torch.allclose(latents, torch.full_like(latents, 0.5 * 0.18215))
        assert torch.allclose(decode_latents(backend, latents), torch.zeros(1), atol=1e-6)


def test_pending_patches_are_merged_into_copies(bridge, model, clip, vae):
    name = LDM_Q + ".weight"
    before = model.tensors[name].clone()
    change = torch.ones_like(before)
    model.patches[name] = [(0.5, change), (0.25, change)]
    with bridge.to_backend(model, clip, vae) as backend:
        merged = backend.denoiser.get_submodule(Q).weight
        assert torch.allclose(merged, before + 0.75)
        merged.add_(1)
    assert torch.equal(model.tensors[name], before)


def test_packed_weights_are_unpacked_before_patches_go_on(bridge, model):
    name = LDM_Q + ".weight"
    model.unpack[name] = lambda weight: weight * 2
    model.patches[name] = [(1.0, torch.ones_like(model.tensors[name]))]
    merged = bridge.unet_tensors(model)[name.removeprefix("diffusion_model.")]
    assert torch.allclose(merged, model.tensors[name] * 2 + 1)
    assert merged.dtype == torch.float32


@pytest.mark.slow
def test_a_plan_in_half_precision_gets_the_denoiser_that_its_file_would_give(
    bridge, model, clip, vae, tmp_path
):
    """Weights rounded after the patches are on; adapter and text encoders stay in float32."""
    plan = HardeningPlan(concepts=(Concept("cat", ("a cat",)),), precision="bf16")
    kind = weight_types(plan)["denoiser_dtype"]
    path = write_tiny_checkpoint(tmp_path / "a.safetensors", dtype=torch.float32)
    expected = load_checkpoint(path, **weight_types(plan)).denoiser.state_dict()
    with bridge.to_backend(model, clip, vae, denoiser_dtype=kind) as backend:
        found = backend.denoiser.state_dict()
        assert found.keys() == expected.keys() and backend.dtype == torch.bfloat16
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert {t.dtype for t in found.values()} == {torch.bfloat16}
        texts = [p for net in backend.text_encoders for p in net.parameters()]
        assert {p.dtype for p in texts} == {torch.float32}
        with AdaptedDenoiser(backend, AdapterConfig(rank=2), precision="bf16") as denoiser:
            assert {t.dtype for t in denoiser.theta.values()} == {torch.float32}

    name = LDM_Q + ".weight"
    model.patches[name] = [(1e-3, torch.ones_like(model.tensors[name]))]
    with bridge.to_backend(model, clip, vae, denoiser_dtype=kind) as backend:
        merged = (model.tensors[name] + 1e-3).to(kind)
        assert torch.equal(backend.denoiser.get_submodule(Q).weight, merged)
    with bridge.to_backend(model, clip, vae) as backend:
        assert backend.dtype == torch.float32


def test_under_inference_mode_all_can_be_trained(bridge, model, clip, vae):
    with torch.inference_mode():
        with bridge.to_backend(model, clip, vae) as backend:
            assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
            networks = [backend.denoiser, *backend.text_encoders]
            tensors = [p for net in networks for p in net.parameters()]
            tensors += [backend.process.alphas_cumprod]
            tensors += [encode_images(backend, torch.zeros(1, 3, 64, 64))]
            assert not any(t.is_inference() for t in tensors)
        assert torch.is_inference_mode_enabled()


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), fakes_comfy.Interrupted()])
def test_nothing_is_kept_when_an_error_or_an_interrupt_passes(loaded, model, clip, vae, error):
    bridge, host = loaded
    with pytest.raises(type(error)), bridge.to_backend(model, clip, vae) as backend:
        raise error
    assert backend.denoiser is None and backend.vae is None and backend.text_encoders == ()
    assert host.cache_emptied == 1


def test_room_is_given_back_also_when_building_fails(loaded, model, clip, vae):
    bridge, host = loaded
    model.tensors = {n: t for n, t in model.tensors.items() if "time_embed.0.bias" not in n}
    with pytest.raises(CheckpointError, match="time_embed"), bridge.to_backend(model, clip, vae):
        pass
    assert host.cache_emptied == 1


def test_room_for_weights_and_gradients_is_asked_of_comfyui_before_anything_is_built(
    loaded, model, clip, vae, monkeypatch
):
    bridge, host = loaded
    management = sys.modules["comfy.model_management"]
    monkeypatch.setattr(management, "get_torch_device", lambda: torch.device("cuda"))
    seen = []

    def full(*parts):
        seen.append(list(host.freed))
        raise torch.cuda.OutOfMemoryError("out of memory")

    monkeypatch.setattr("resalign.nodes.bridge.model._model", full)
    with pytest.raises(torch.cuda.OutOfMemoryError), bridge.to_backend(model, clip, vae):
        pass
    ((size, device),) = host.freed
    assert seen == [host.freed] and device == "cuda"
    weights = sum(p.numel() for net in (model.model, clip.cond_stage_model)
                  for p in net.parameters())  # fmt: skip
    assert size > 8 * weights
    assert host.cache_emptied == 1  # and the error went on to ComfyUI, which unloads its models


def test_a_clip_of_another_family_is_refused(bridge, model, vae):
    clip = fakes.Clip({"t5xxl.transformer.shared.weight": torch.zeros(2, 2)})
    refused = pytest.raises(CheckpointError, match=r"no clip_l.*connect the CLIP")
    with refused, bridge.to_backend(model, clip, vae):
        pass


@pytest.mark.slow
def test_clip_skip_is_followed(bridge, model, clip, vae):
    found = {}
    for layer in (None, -1, -2):
        clip.layer_idx = layer
        with bridge.to_backend(model, clip, vae) as backend:
            found[layer] = encode_prompts(backend, ["a cat"])["context"]
    assert torch.equal(found[None], found[-1])
    assert not torch.allclose(found[None], found[-2], atol=1e-3)


@pytest.mark.parametrize(
    ("family", "layer", "skipped"),
    [("sd1", None, 0), ("sd1", -2, 1), ("sd2", None, 1), ("sd2", -1, 0), ("sdxl", -2, 0)],
)
def test_layers_are_skipped_as_the_family_is_used(inner, clip, family, layer, skipped):
    clip.layer_idx = layer
    assert inner._layers_skipped(clip, find_family(family)) == skipped


def test_sdxl_takes_no_other_clip_skip(inner, clip):
    clip.layer_idx = -3
    with pytest.raises(CheckpointError, match="connect the CLIP before that node"):
        inner._layers_skipped(clip, find_family("sdxl"))


def test_fingerprints_are_equal_only_for_equal_weights(bridge, model, clip, vae):
    first = bridge.fingerprint(model, clip, vae)
    assert len(first) == 40 and bridge.fingerprint(model.clone(), clip, vae) == first
    name = LDM_Q + ".weight"
    change = torch.ones_like(model.tensors[name])
    seen = {first}

    def differs(**other):
        parts = {"model": model, "clip": clip, "vae": vae} | other
        found = bridge.fingerprint(**parts)
        assert found not in seen
        seen.add(found)

    for patch in [(1.0, change), (0.5, change), (1.0, change * 2)]:
        patched = model.clone()
        patched.patches[name] = [patch]
        differs(model=patched)
    one = model.clone()
    one.tensors = dict(model.tensors) | {name: model.tensors[name].clone()}
    one.tensors[name][0, 1] += 1e-3
    differs(model=one)
    skipping = fakes.Clip(clip.patcher.tensors)
    skipping.layer_idx = -2
    differs(clip=skipping)
    differs(clip=None)
    differs(vae=None)


def test_a_patch_that_is_an_object_counts_by_its_weights(bridge, model):
    class LoRAAdapter:
        def __init__(self, value):
            self.weights = (torch.full((2, 2), value), None, 1.0)

    found = set()
    for value in (1.0, 2.0):
        model.patches[LDM_Q + ".weight"] = [(1.0, LoRAAdapter(value), 1.0, None, None)]
        found.add(bridge.fingerprint(model))
        assert bridge.fingerprint(model) in found
    assert len(found) == 2


def test_an_adapter_becomes_a_lora_model_and_does_the_same(bridge, model, clip, vae):
    ours = adapter()
    lora = bridge.lora_model(ours, bridge.places_of(model))
    ends = (".alpha", ".lora_down.weight", ".lora_up.weight")
    assert sorted(lora) == [LDM_Q + end for end in ends]
    assert lora[LDM_Q + ".alpha"].item() == 1.0
    patched = bridge.with_adapter(model, lora)
    assert bridge.is_patched(patched) and not bridge.is_patched(model)
    assert bridge.without_adapter(patched, lora) is not None
    assert bridge.without_adapter(model, lora) is None
    with bridge.to_backend(patched, clip, vae) as backend:
        half = 0.5 * ours.tensors[Q + B] @ ours.tensors[Q + A]  # alpha 1 of rank 2
        wanted = model.tensors[LDM_Q + ".weight"] + half
        assert torch.allclose(backend.denoiser.get_submodule(Q).weight, wanted, atol=1e-6)


def test_a_dense_adapter_becomes_differences_of_weights_biases_and_norms(bridge, model, clip, vae):
    """Merged by the host, the network is the one that the adapter describes."""
    with bridge.to_backend(model, clip, vae) as backend:
        start = {name: t.clone() for name, t in backend.denoiser.named_parameters()}
    names = (
        "conv_in.weight",
        "conv_in.bias",
        "down_blocks.0.resnets.0.norm1.weight",
        Q + ".weight",
    )
    ours = DenseAdapter({name: torch.randn_like(start[name]) for name in names})
    lora = bridge.lora_model(ours, bridge.places_of(model))
    assert LDM_Q + ".diff" in lora and sum(name.endswith(".diff_b") for name in lora) == 1
    patched = bridge.with_adapter(model, lora)
    assert bridge.without_adapter(patched, lora) and not bridge.without_adapter(model, lora)
    with bridge.to_backend(patched, clip, vae) as backend:
        for name, tensor in backend.denoiser.named_parameters():
            wanted = start[name] + ours.change(name) if name in names else start[name]
            assert torch.allclose(tensor, wanted, atol=1e-6), name


def test_an_adapter_that_is_not_taken_whole_is_refused(bridge, model):
    lora = bridge.lora_model(adapter(), bridge.places_of(model))
    for name, tensor in list(lora.items()):
        lora[name.replace("input_blocks.1.", "input_blocks.77.")] = tensor
    with pytest.raises(ExportError, match="took 1 of the adapter's 2 changes"):
        bridge.with_adapter(model, lora)


def test_an_adapter_goes_on_top_of_what_is_there(bridge, model):
    lora = bridge.lora_model(adapter(), bridge.places_of(model))
    twice = bridge.with_adapter(bridge.with_adapter(model, lora), lora)
    assert len(twice.patches[LDM_Q + ".weight"]) == 2


def test_a_lora_on_the_text_alone_leaves_the_model_unpatched(bridge, model):
    model.patches = {"clip_l.x.weight": [(1.0, torch.ones(1))], LDM_Q + ".weight": []}
    assert not bridge.is_patched(model)


def test_the_source_is_the_file_where_comfyui_says_so(bridge, model, tmp_path):
    assert bridge.source_of(model) is None
    path = tmp_path / "a.safetensors"
    model.cached_patcher_init = (print, (str(path), None), 0)
    assert bridge.source_of(model) is None  # it is gone
    path.touch()
    assert bridge.source_of(model) == path


@pytest.mark.parametrize(
    ("kinds", "prediction"),
    [
        ((fakes.ModelSamplingDiscrete, fakes.EPS), "epsilon"),
        ((fakes.ModelSamplingDiscrete, fakes.V_PREDICTION), "v_prediction"),
        ((fakes.ModelSamplingDiscrete, fakes.EDM), None),
        ((fakes.ModelSamplingFlux, fakes.EPS), None),
        ((fakes.ModelSamplingDiscrete,), None),
    ],
)
def test_the_schedule_is_taken_or_refused_by_its_kind(inner, model, kinds, prediction):
    model.sampling = fakes.sampling(*kinds)
    if prediction:
        assert inner._schedule(model).prediction_type == prediction
    else:
        with pytest.raises(CheckpointError, match="connect the MODEL before a ModelSampling"):
            inner._schedule(model)


def test_the_vae_is_comfyuis_own(bridge, vae):
    from resalign.nodes.bridge.vae import HostVae

    ours = HostVae(vae, 0.13)
    images = torch.linspace(-2, 2, 3 * 16 * 16).reshape(1, 3, 16, 16)
    encoded = ours.encode(images).latent_dist
    (pixels,) = vae.given
    assert pixels.shape == (1, 16, 16, 3) and (pixels.min(), pixels.max()) == (0, 1)
    assert encoded.mean.shape == (1, 4, 2, 2) and not encoded.std.any()
    (shown,) = ours.decode(torch.zeros(1, 4, 2, 2), return_dict=False)
    assert shown.shape == (1, 3, 16, 16) and torch.equal(shown, torch.full_like(shown, -1))
    assert ours.config.scaling_factor == 0.13
    assert [n for n, _ in ours.named_parameters()] == ["weight", "bias"]
    before = vae.first_stage_model.weight.dtype
    ours.to(torch.float16)  # moves nothing of the host's
    assert vae.first_stage_model.weight.dtype == before and len(ours.state_dict()) == 1
