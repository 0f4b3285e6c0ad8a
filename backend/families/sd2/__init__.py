"""Stable Diffusion 2.x: OpenCLIP-H; the 512-pixel models predict ε, the 768-pixel ones v."""

from pathlib import Path

from ..unet.family import unet_family
from ..unet.spec import TextEncoder, UNetSpec

SD2 = unet_family(
    UNetSpec(
        name="sd2",
        variant="linear",
        folder=Path(__file__).parent,
        texts=(TextEncoder("text_encoder", "tokenizer", "clip_h", "lora_te_"),),
        lora_base="sd_v2",
        lora_version_2=True,
        lora_architecture="stable-diffusion-v2",
        stated="v2",
        not_stated="xl",
    ),
    title="Stable Diffusion 2.x",
    licence="CreativeML Open RAIL++-M, as published with Stable Diffusion 2.x",
    native_side=lambda prediction: 768 if prediction == "v_prediction" else 512,
    architecture=lambda prediction: (
        f"stable-diffusion-v2-{'768-v' if prediction == 'v_prediction' else '512'}"
    ),
    last_layer=-2,
    civitai="SD 2.1",
)
