"""The differences between the U-Net families, as plain values."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

# By what a checkpoint shows of itself: `plain` has one CLIP-L; `linear` one OpenCLIP, or linear
# projections around its attention; `sized` two text encoders and an embedding of the image's size.
Variant = Literal["plain", "linear", "sized"]


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """One text encoder.

    component, tokenizer: folder names in diffusers' form. host: its name in ComfyUI's CLIP.
    lora_key: what its keys begin with in kohya's LoRA form. projected: it has a pooled output.
    """

    component: str
    tokenizer: str
    host: str
    lora_key: str
    projected: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UNetSpec:
    """The values that one U-Net family has of its own.

    folder: where its published configs lie, `<component>.json`.
    prefixes: of the text encoders in a single file; None: searched for.
    half_vae: the VAE works in float16.
    lora_base, lora_version_2, lora_architecture: what headers of LoRA files say.
    sgm_keys: LoRA keys are written in the names of single files (`input_blocks_4_1_...`).
    stated: marks in a LoRA's metadata, and marks that rule the family out.
    """

    name: str
    variant: Variant
    folder: Path
    texts: tuple[TextEncoder, ...]
    prefixes: tuple[str, ...] | None = None
    half_vae: bool = True
    lora_base: str
    lora_version_2: bool = False
    lora_architecture: str
    sgm_keys: bool = False
    stated: str
    not_stated: str = ""

    @property
    def components(self) -> tuple[str, ...]:
        return ("unet", *(text.component for text in self.texts), "vae")

    @property
    def sized(self) -> bool:
        """True where the denoiser takes the image's size and crop, and a pooled embedding."""
        return self.variant == "sized"

    @property
    def drops_last_layer(self) -> bool:
        """True where the text encoder is built without its last layer, which nobody reads."""
        return self.variant == "linear"

    def config(self, name: str) -> dict[str, Any]:
        """Return a published config: of a component, a tokenizer, `scheduler`, `model_index`."""
        return json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
