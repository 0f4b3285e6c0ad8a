"""Names of the denoiser's modules in LoRA files.

Written is the form that ComfyUI and diffusers both read completely: `transformer.<module>` with
`lora_A` and `lora_B`, the strength multiplied into B. A key `.alpha` beside these is ignored
silently by diffusers; kohya's form with the names of diffusers is read by neither.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..base.family import LoraTensors
from ..base.refuse import stated_base
from .config import DENOISER

Place = tuple[str, str]
_OWN_MODULES = re.compile(
    r"single_transformer_blocks\.\d+\.attn\.to_qkv_mlp_proj|transformer_blocks\.\d+\.ff(_context)?"
    r"\.linear_(in|out)|transformer_blocks\.\d+\.attn\.add_[qkv]_proj|_stream_modulation"
)
_DOTTED = ("transformer.", "diffusion_model.", "base_model.model.", "")
_OTHER_WIDTHS = (4096, 6144)  # klein 9B, dev
_WIDE = re.compile(r"(attn\.to_[qkv]|add_[qkv]_proj|to_qkv_mlp_proj|ff\.linear_in)\.lora_(A|down)")


@dataclass(frozen=True, slots=True)
class LoraNames:
    """The `LoraNames` of FLUX.2 klein."""

    form: str = "diffusers"
    base_version: str = "flux2_klein_4b"
    version_2: bool = False
    architecture: str = "flux-2-klein-4b"
    key_prefix: str = "lora_unet_"

    def key(self, module: str) -> str:
        return module.replace(".", "_")

    def module(self, key: str) -> str | None:
        return None

    def dotted(self, module: str) -> str:
        return _DOTTED[0] + module

    def of_dotted(self, key: str) -> str | None:
        return key.removeprefix(_DOTTED[0]) if key.startswith(_DOTTED[0]) else None

    def stems(
        self, denoiser: Mapping[str, str], texts: Mapping[str, Iterable[str]]
    ) -> dict[str, Place]:
        found: dict[str, Place] = {}
        shared = list(denoiser.values())
        for module, file in denoiser.items():
            place = (DENOISER, module)
            for prefix in _DOTTED:
                found[prefix + module] = place
            if shared.count(file) == 1:  # queries, keys and values are one tensor in the file
                found["diffusion_model." + file] = place
                found["lora_unet_" + file.replace(".", "_")] = place
        return found


def claims_lora(file: LoraTensors) -> int:
    """Rate how surely a LoRA is for klein 4B: see `Recognition.claims_lora`."""
    widths = {shape[-1] for name, shape in file.shapes.items() if shape and _WIDE.search(name)}
    if widths & set(_OTHER_WIDTHS):
        return 0
    if any(_OWN_MODULES.search(name) for name in file.shapes):
        return 4
    return 2 if "klein" in stated_base(file.metadata) else 0
