"""Shared by the stages of the transformer test-bed: shapes, and the package's own family.

Texts are encoded, latents normalised and the denoiser called by the family's code, so that what is
trained is what the package loads.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from resalign.backend.families.flux2_klein import FLUX2_KLEIN
from resalign.backend.families.flux2_klein.process import flow_process

FAMILY = FLUX2_KLEIN

TEXT_LAYERS, TEXT_WIDTH, TEXT_HEAD = 4, 48, 16
TOKENS = 24  # of a prompt: 12 of its template, and 12 words
VAE_WIDTHS, LATENT_CHANNELS, GROUPS = (16, 24, 48, 48), 32, 8
WIDTH, HEAD, DOUBLE, SINGLE = 192, 32, 1, 4
CHANNELS, SIDE = 4 * LATENT_CHANNELS, 4  # of a latent: 4 x 4 positions

PROCESS = flow_process("the demo", {})

DIT = Path("dit")  # folder under the demo's assets that holds the file and its tokenizer
FILE = "demo_dit_base.safetensors"  # without `base` in the name it might be the distilled model


def reader(encoder, tokenizer) -> SimpleNamespace:
    """A model with what `FAMILY.texts` reads."""
    return SimpleNamespace(text_encoders=(encoder,), tokenizers=(tokenizer,), device="cpu")
