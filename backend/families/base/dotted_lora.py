"""LoRA names of families that write the one form with dots, `<prefix><module>.lora_A.weight`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

Place = tuple[str, str]  # (component, module)
Stems = Callable[[Mapping[str, str], Mapping[str, Iterable[str]]], dict[str, Place]]


def same(name: str) -> str:
    """Return the name: for files that call modules as diffusers does."""
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class DottedLoraNames:
    """The `LoraNames` of a family whose own form is `diffusers`. Files in kohya's form are
    read and not written, as hosts would not load all of their modules.

    base_version, architecture: as in `LoraNames`. prefix: what keys begin with. spell, read: a
    module to its name in such files, and back. every: see `LoraNames.stems`.
    """

    base_version: str
    architecture: str
    every: Stems
    prefix: str = "transformer."
    spell: Callable[[str], str] = same
    read: Callable[[str], str | None] = same
    form: str = "diffusers"
    version_2: bool = False
    key_prefix: str = "lora_unet_"

    def key(self, module: str) -> str:
        return self.spell(module).replace(".", "_")

    def module(self, key: str) -> str | None:
        return None

    def dotted(self, module: str) -> str:
        return self.prefix + self.spell(module)

    def of_dotted(self, key: str) -> str | None:
        return self.read(key.removeprefix(self.prefix)) if key.startswith(self.prefix) else None

    def stems(
        self, denoiser: Mapping[str, str], texts: Mapping[str, Iterable[str]]
    ) -> dict[str, Place]:
        return self.every(denoiser, texts)
