"""Tensors that do not have the dimensions of their names: each file is refused, none is a bug."""

import pytest
import torch
from fakes_checkpoint import write_sparse

from resalign.backend.checkpoint.detect import detect
from resalign.backend.errors import CheckpointError

_FLUX, _UNET = "double_blocks.0.img_attn.qkv.weight", "model.diffusion_model."
_Z_IMAGE = {"noise_refiner.0.attention.qkv.weight": (4, 4), "cap_pad_token": (1, 4)}
_ANIMA = "blocks.0.mlp.layer1.weight"
ADAPTER = {"llm_adapter.blocks.0.cross_attn.q_proj.weight": (4, 4)}
NORM = "noise_refiner.0.attention.k_norm.weight"
ODD = {
    "a scalar entry of FLUX": {_FLUX: (4, 4), "img_in.weight": (), "txt_in.weight": (4, 4)},
    "a scalar entry of text": {_FLUX: (4, 4), "img_in.weight": (4, 64), "txt_in.weight": ()},
    "Z-Image's entry in one dimension": {**_Z_IMAGE, "x_embedder.weight": (4,), NORM: (4,)},
    "Z-Image's heads of no width": {
        **_Z_IMAGE, "x_embedder.weight": (4, 4), NORM: (0,), "cap_embedder.1.weight": (4, 4),
    },
    "Anima's entry in one dimension": {
        _ANIMA: (4, 4), "x_embedder.proj.1.weight": (4,), **ADAPTER,
    },
    "klein's entry in one dimension": {
        "double_stream_modulation_img.lin.weight": (4, 4), "img_in.weight": (4,),
    },
    "the entry of a U-Net in one dimension": {
        _UNET + "input_blocks.0.0.weight": (4,), "first_stage_model.decoder.conv_in.weight": (4,),
    },
}  # fmt: skip


@pytest.mark.parametrize("shapes", ODD.values(), ids=ODD)
def test_odd_shapes_are_refused_with_the_files_name(tmp_path, shapes):
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    path = write_sparse(tmp_path / "odd.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"odd\.safetensors"):
        detect(path)
