"""Stable Diffusion 1.x: CLIP-L, 512 pixels, predicts ε."""

from pathlib import Path

from ..unet.family import unet_family
from ..unet.spec import TextEncoder, UNetSpec

SD1 = unet_family(
    UNetSpec(
        name="sd1",
        variant="plain",
        folder=Path(__file__).parent,
        texts=(TextEncoder("text_encoder", "tokenizer", "clip_l", "lora_te_"),),
        lora_base="sd_v1",
        lora_architecture="stable-diffusion-v1",
        stated="v1",
        not_stated="xl",
    ),
    title="Stable Diffusion 1.x",
    licence="CreativeML Open RAIL-M, as published with Stable Diffusion 1.x",
    native_side=lambda prediction: 512,
    architecture=lambda prediction: "stable-diffusion-v1",
    last_layer=-1,
    civitai="SD 1.5",
)
