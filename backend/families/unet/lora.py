"""Names of the modules of a U-Net and its text encoders in LoRA files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .lora_keys import flat_name, module_name
from .spec import UNetSpec

_FLAT_UNET = ("lora_unet_", "lycoris_")
_DOTTED_UNET = ("unet.", "base_model.model.", "")
_HOST_UNET = ("diffusion_model.", "model.diffusion_model.")
_TEXT = "text_model."
Place = tuple[str, str]  # component (`unet`, `text_encoder`, ...), module


@dataclass(frozen=True, slots=True)
class UNetLoraNames:
    """The `LoraNames` of a U-Net family."""

    spec: UNetSpec

    @property
    def form(self) -> str:
        return "kohya"

    @property
    def base_version(self) -> str:
        return self.spec.lora_base

    @property
    def version_2(self) -> bool:
        return self.spec.lora_version_2

    @property
    def architecture(self) -> str:
        return self.spec.lora_architecture

    @property
    def key_prefix(self) -> str:
        return _FLAT_UNET[0]

    def key(self, module: str) -> str:
        return flat_name(module, sgm=self.spec.sgm_keys)

    def module(self, key: str) -> str | None:
        return module_name(key)

    def dotted(self, module: str) -> str:
        return _DOTTED_UNET[0] + module

    def of_dotted(self, key: str) -> str | None:
        return key.removeprefix(_DOTTED_UNET[0]) if key.startswith(_DOTTED_UNET[0]) else None

    def stems(
        self, denoiser: Mapping[str, str], texts: Mapping[str, Iterable[str]]
    ) -> dict[str, Place]:
        found: dict[str, Place] = {}
        for module, ldm in denoiser.items():
            place = ("unet", module)
            for prefix in _FLAT_UNET:
                found[prefix + module.replace(".", "_")] = place
                found[prefix + ldm.replace(".", "_")] = place
            for prefix in _DOTTED_UNET:
                found[prefix + module] = place
            for prefix in _HOST_UNET:
                found[prefix + ldm] = place
        for text in self.spec.texts:
            dotted = [f"{text.component}.", f"text_encoders.{text.host}.transformer."]
            if len(texts) == 1:  # of two encoders PEFT's own files do not say which they are for
                dotted.append("base_model.model.")
            for module in texts.get(text.component, ()):
                place = (text.component, module)
                short = module.removeprefix(_TEXT)
                top = short.startswith("text_projection")
                full = short if top else _TEXT + short
                found[text.lora_key + full.replace(".", "_")] = place
                for prefix in dotted:
                    found[prefix + full] = found[prefix + short] = place
        return found
