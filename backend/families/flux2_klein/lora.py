"""Names of the denoiser's modules in LoRA files.

Written is the form that ComfyUI and diffusers both read completely: `transformer.<module>` with
`lora_A` and `lora_B`, the strength multiplied into B. A key `.alpha` beside these is ignored
silently by diffusers; kohya's form with the names of diffusers is read by neither.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ..base.dotted_lora import DottedLoraNames, Place
from ..base.family import LoraTensors
from ..base.refuse import stated_base
from .config import DENOISER

_OWN_MODULES = re.compile(
    r"single_transformer_blocks\.\d+\.attn\.to_qkv_mlp_proj|transformer_blocks\.\d+\.ff(_context)?"
    r"\.linear_(in|out)|transformer_blocks\.\d+\.attn\.add_[qkv]_proj|_stream_modulation"
)
_DOTTED = ("transformer.", "diffusion_model.", "base_model.model.", "")
_OTHER_WIDTHS = (4096, 6144)  # klein 9B, dev
_WIDE = re.compile(r"(attn\.to_[qkv]|add_[qkv]_proj|to_qkv_mlp_proj|ff\.linear_in)\.lora_(A|down)")


def stems(denoiser: Mapping[str, str], texts: Mapping[str, Iterable[str]]) -> dict[str, Place]:
    """Return every name of a module: see `LoraNames.stems`."""
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


LORA_NAMES = DottedLoraNames(
    base_version="flux2_klein_4b",
    architecture="flux-2-klein-4b",
    every=stems,
)


def claims_lora(file: LoraTensors) -> int:
    """Rate how surely a LoRA is for klein 4B: see `Recognition.claims_lora`."""
    widths = {shape[-1] for name, shape in file.shapes.items() if shape and _WIDE.search(name)}
    if widths & set(_OTHER_WIDTHS):
        return 0
    if any(_OWN_MODULES.search(name) for name in file.shapes):
        return 4
    return 2 if "klein" in stated_base(file.metadata) else 0
