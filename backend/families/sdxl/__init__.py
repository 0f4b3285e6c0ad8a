"""SDXL base: CLIP-L and OpenCLIP-G, 1024 pixels; conditioned on the image's size and crop."""

from pathlib import Path

from ..unet.family import unet_family
from ..unet.spec import TextEncoder, UNetSpec

SDXL = unet_family(
    UNetSpec(
        name="sdxl",
        variant="sized",
        folder=Path(__file__).parent,
        texts=(
            TextEncoder("text_encoder", "tokenizer", "clip_l", "lora_te1_"),
            TextEncoder("text_encoder_2", "tokenizer_2", "clip_g", "lora_te2_", projected=True),
        ),
        prefixes=(
            "conditioner.embedders.0.transformer.text_model.",
            "conditioner.embedders.1.model.",
        ),
        half_vae=False,  # it overflows in float16
        lora_base="sdxl_base_v1-0",
        lora_architecture="stable-diffusion-xl-v1-base",
        sgm_keys=True,
        stated="xl",
    ),
    title="SDXL base",
    licence="CreativeML Open RAIL++-M, as published with SDXL 1.0",
    native_side=lambda prediction: 1024,
    architecture=lambda prediction: "stable-diffusion-xl-v1-base",
    last_layer=-2,
    civitai="SDXL 1.0",
)
