"""Models that cannot be hardened are refused before anything is loaded, with the way out."""

import types

import fakes_bridge as fakes
import fakes_comfy
import pytest
import torch
from torch import nn

from resalign.backend.errors import CheckpointError


@pytest.fixture
def refuse(monkeypatch, tmp_path):
    fakes_comfy.install(monkeypatch, tmp_path)
    return fakes_comfy.load_nodes(monkeypatch, "bridge.checks")


@pytest.fixture
def model():
    return fakes.ModelPatcher({"diffusion_model.out.2.weight": torch.zeros(2, 2)})


def replaced(model):
    model.object_patches["diffusion_model"] = object()


def wrapped(model):
    model.weight_wrapper_patches = {"a.weight": [print]}


def injected(model):
    model.injections = {"bypass_lora": [print]}


def hooked(model):
    model.hook_patches = {"hook": {}}


def forced(model):
    model.forced_hooks = object()


def quantised(model):
    model.model.model_config.quant_config = {"format": "nvfp4"}


def scaled(model):
    model.model.model_config.scaled_fp8 = torch.float8_e4m3fn


def packed(model):
    model.model.held[0] = nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False)


def cfg_changed(model):
    model.model_options["sampler_cfg_function"] = print


def unet_changed(model):
    model.model_options["model_function_wrapper"] = print


def attention_patched(model):
    model.model_options["transformer_options"]["patches"] = {"attn1_patch": [print]}


def wrapped_by_key(model):
    model.wrappers = {"outer_sample": {}, "diffusion_model": {"freeu": [print]}}


def wrapped_in_options(model):
    model.model_options["transformer_options"]["wrappers"] = {"apply_model": {None: [print]}}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (replaced, r"replaced diffusion_model of the MODEL: connect the MODEL before that node"),
        (wrapped, r"wrapped by another node: connect the MODEL before that node"),
        (injected, r"bypass mode.*: use Load LoRA without bypass"),
        (hooked, r"carries hooks.*connect the MODEL before the hook nodes"),
        (forced, r"carries hooks.*connect the MODEL before the hook nodes"),
        (quantised, r"is quantised.*load the fp16 or bf16 file"),
        (scaled, r"is quantised.*load the fp16 or bf16 file"),
        (packed, r"is quantised.*load the fp16 or bf16 file"),
        (cfg_changed, r"\(sampler_cfg_function\), not its weights: connect the MODEL before"),
        (unet_changed, r"\(model_function_wrapper\), not its weights: connect the MODEL before"),
        (wrapped_by_key, r"wraps how the MODEL runs \(freeu\).*connect the MODEL before"),
        (wrapped_in_options, r"wraps how the MODEL runs \(apply_model\).*connect the MODEL before"),
        (attention_patched, r"\(patches\), not its weights: connect the MODEL before"),
    ],
)
def test_each_refusal_names_its_way_out(refuse, model, change, says):
    refuse.check_model(model)
    change(model)
    with pytest.raises(CheckpointError, match=says):
        refuse.check_model(model)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("GGUFModelPatcher", r"GGUF.*core's loader"),
        ("NunchakuModel", r"is a NunchakuModel.*connect the output of Load Checkpoint"),
    ],
)
def test_models_without_plain_weights_are_refused(refuse, kind, says):
    with pytest.raises(CheckpointError, match=says):
        refuse.check_model(type(kind, (), {})())


def test_loras_another_schedule_and_fp8_are_no_obstacle(refuse, model):
    model.patches["diffusion_model.out.2.weight"] = [(1.0, torch.ones(2, 2))]
    model.object_patches["model_sampling"] = object()
    model.model_options["transformer_options"]["cond_or_uncond"] = [0, 1]
    model.model_options["sampler_cfg_function"] = None
    model.wrappers = {
        "apply_model": {"torch.compile": [print]},  # faster, with the same result
        "diffusion_model": {None: []},
        "outer_sample": {"preview": [print]},
    }
    fp8 = torch.zeros(2, dtype=torch.float8_e4m3fn)
    model.model.held[0] = nn.Parameter(fp8, requires_grad=False)
    refuse.check_model(model)


def test_a_checkpoint_without_text_encoder_or_vae_is_refused(refuse):
    clip, vae = fakes.Clip({"a": torch.zeros(1)}), fakes.Vae()
    refuse.check_parts(clip, vae)
    for wrong in (None, types.SimpleNamespace()):
        with pytest.raises(CheckpointError, match=r"there is no CLIP.*\(Load CLIP\)"):
            refuse.check_parts(wrong, vae)
        with pytest.raises(CheckpointError, match=r"there is no VAE.*\(Load VAE\)"):
            refuse.check_parts(clip, wrong)
