"""Names of the denoiser's modules in LoRA files.

Files are written in the form that ComfyUI and diffusers both read completely:
`transformer.<module>` with `lora_A` and `lora_B`, the strength multiplied into B. A key `.alpha`
beside these is fatal to diffusers, and names of single files load in part there, silently.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..base.family import LoraTensors
from ..base.refuse import stated_base
from .config import DENOISER

Place = tuple[str, str]
_DOTTED = ("transformer.", "diffusion_model.", "base_model.model.", "")
_FLAT = ("lora_unet_", "lycoris_")
_MODULES = re.compile(
    r"(^|[._])(layers|noise_refiner|context_refiner)[._]\d+[._]"
    r"(attention[._](to_[qkv]|to_out|qkv|out)|feed_forward[._]w[123])[._]"
)
_INPUT = re.compile(r"(to_[qkv]|qkv|w[13])[._]?(lora_(A|down))?.*(lora_A|lora_down)")
_LUMINA = 2304  # the width of Lumina Image 2, which has modules of the same names


@dataclass(frozen=True, slots=True)
class LoraNames:
    """The `LoraNames` of Z-Image."""

    form: str = "diffusers"
    base_version: str = "zimage"
    version_2: bool = False
    architecture: str = "z-image"
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
            # queries, keys and values are one tensor in the file
            spelled = (module, file) if shared.count(file) == 1 else (module,)
            for name in spelled:
                for prefix in _DOTTED:
                    found[prefix + name] = place
                for prefix in _FLAT:
                    found[prefix + name.replace(".", "_")] = place
        return found


def claims_lora(file: LoraTensors) -> int:
    """Rate how surely a LoRA is for Z-Image: see `Recognition.claims_lora`."""
    shapes = file.shapes.items()
    if any(shape[-1] == _LUMINA for name, shape in shapes if shape and _INPUT.search(name)):
        return 0
    if any(_MODULES.search(name) for name in file.shapes):
        return 4
    stated = stated_base(file.metadata).replace("-", "").replace("_", "")
    return 2 if "zimage" in stated else 0
