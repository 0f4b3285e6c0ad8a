"""Names of the modules in LoRA files.

Files are written in the one form that ComfyUI and diffusers both read completely:
`diffusion_model.<module>` in the names of single files, with `lora_A` and `lora_B`, the strength
multiplied into B. ComfyUI does not know diffusers' names of Anima's modules, and diffusers silently
ignores a key `.alpha` beside `lora_A`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..base.family import LoraTensors
from ..base.refuse import stated_base
from .config import CONDITIONER, DENOISER
from .names import CONDITIONER as ADAPTER
from .names import module_of, native

Place = tuple[str, str]
_HOST = "diffusion_model."
_DOTTED = ("transformer.", "base_model.model.", "")
_KOHYA = "lora_unet_"
_NATIVE = re.compile(
    r"(^|[._])blocks[._]\d+[._]((self|cross)_attn[._](q|k|v|output)_proj|mlp[._]layer[12]"
    r"|adaln_modulation_)"
)
_OURS = re.compile(r"^(transformer\.)?transformer_blocks\.\d+\.(attn[12]\.to_|ff\.net|norm\d\.lin)")
_READS_TEXT = re.compile(r"^(transformer\.)?transformer_blocks\.\d+\.attn2\.to_[kv]\.lora_(A|down)")
_TEXT_WIDTH, _SMALL = 1024, 512


@dataclass(frozen=True, slots=True)
class LoraNames:
    """The `LoraNames` of Anima."""

    form: str = "diffusers"
    base_version: str = "anima"
    version_2: bool = False
    architecture: str = "anima"
    key_prefix: str = _KOHYA

    def key(self, module: str) -> str:
        return native(module).replace(".", "_")

    def module(self, key: str) -> str | None:
        return None

    def dotted(self, module: str) -> str:
        return _HOST + native(module)

    def of_dotted(self, key: str) -> str | None:
        return module_of(key.removeprefix(_HOST)) if key.startswith(_HOST) else None

    def stems(
        self, denoiser: Mapping[str, str], texts: Mapping[str, Iterable[str]]
    ) -> dict[str, Place]:
        found: dict[str, Place] = {}
        for module, file in denoiser.items():
            place = (DENOISER, module)
            for name in (*(prefix + module for prefix in _DOTTED), _HOST + file):
                found[name] = place
            found[_KOHYA + file.replace(".", "_")] = place
        for module in texts.get(CONDITIONER, ()):
            file = ADAPTER + module
            for name in (_HOST + file, _KOHYA + file.replace(".", "_"), f"{CONDITIONER}.{module}"):
                found[name] = (CONDITIONER, module)
        return found


def claims_lora(file: LoraTensors) -> int:
    """Rate how surely a LoRA is for Anima: see `Recognition.claims_lora`."""
    if any(_NATIVE.search(name) for name in file.shapes):
        return 4
    widths = {
        shape[-1] for name, shape in file.shapes.items() if shape and _READS_TEXT.search(name)
    }
    if _TEXT_WIDTH in widths:
        return 4
    if any(width > _SMALL for width in widths):  # PixArt and LTX have modules of the same names
        return 0
    ours = any(_OURS.search(name) for name in file.shapes)
    return 2 if ours or "anima" in stated_base(file.metadata) else 0
