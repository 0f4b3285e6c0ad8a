"""Quantised checkpoints are refused by the name of their form."""

import pytest
import torch
from fakes_checkpoint import build_networks, ldm_tensors, write_sparse
from safetensors.torch import save_file

from resalign.backend.checkpoint.detect import detect
from resalign.backend.errors import CheckpointError

UNET = "model.diffusion_model."
LAYER = UNET + "input_blocks.1.1.proj_in."


@pytest.fixture(scope="module")
def tiny():
    """Tensors of an SD 1.x file, without storage."""
    return {name: tensor.to("meta") for name, tensor in ldm_tensors(build_networks()).items()}


def named(*names):
    return {name: torch.empty((4, 4), device="meta") for name in names}


def refuse(path, says):
    with pytest.raises(CheckpointError, match=says):
        detect(path)


@pytest.mark.parametrize(
    ("names", "form"),
    [
        (["scaled_fp8"], "scaled fp8"),
        ([LAYER + "scale_weight"], "scaled fp8"),
        ([LAYER + "weight_scale"], "scaled fp8"),
        ([LAYER + "comfy_quant"], "scaled fp8"),
        ([LAYER + "weight_scale", LAYER + "weight_scale_2", LAYER + "comfy_quant"], "NVFP4"),
        ([LAYER + "weight.quant_state.bitsandbytes__nf4", LAYER + "weight.absmax"], "nf4 of"),
        ([LAYER + "weight.absmax"], "4 bits of bitsandbytes"),
        ([LAYER + "SCB"], "int8 of bitsandbytes"),
        ([LAYER + "qweight", LAYER + "wscales"], "SVDQuant, as of Nunchaku"),
        ([LAYER + "qweight", LAYER + "scales"], "GPTQ"),
        ([LAYER + "weight_packed", LAYER + "weight_scale"], "compressed-tensors"),
        ([LAYER + "weight._data", LAYER + "weight._scale"], "Quanto"),
    ],
)
def test_quantised_weights_are_told_by_what_stands_beside_them(tmp_path, tiny, names, form):
    path = write_sparse(tmp_path / "m.safetensors", tiny | named(*names))
    refuse(path, rf"is a quantised checkpoint \({form}.*it has .*original in bf16, fp16 or fp32")


@pytest.mark.parametrize(
    ("weight", "scale", "form"),
    [
        ("I8", "F32", "int8 with scales"),
        ("U8", "F32", "4 bits with scales"),
        ("F8_E4M3", "U8", "MXFP8"),
    ],
)
def test_forms_of_the_same_names_are_told_by_their_types(tmp_path, weight, scale, form):
    types = {
        "I8": torch.int8,
        "U8": torch.uint8,
        "F32": torch.float32,
        "F8_E4M3": torch.float8_e4m3fn,
    }
    path = tmp_path / "m.safetensors"
    save_file(
        {
            LAYER + "weight": torch.zeros(2, 2).to(types[weight]),
            LAYER + "weight_scale": torch.zeros(2, 1).to(types[scale]),
        },
        path,
    )
    refuse(path, rf"is a quantised checkpoint \({form}: it has .*weight_scale\)")


@pytest.mark.parametrize("start", ["transformer_blocks.0.", "layers.0.", "double_blocks.0."])
def test_a_quantised_transformer_of_other_names_is_not_taken_for_an_unknown_model(tmp_path, start):
    """Nunchaku fuses and renames layers, so that no family knows the file."""
    path = write_sparse(
        tmp_path / "m.safetensors", named(start + "to_qkv.qweight", start + "to_qkv.wscales")
    )
    refuse(path, "is a quantised checkpoint .SVDQuant, as of Nunchaku")
