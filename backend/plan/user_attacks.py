"""Attacks and references that a user adds to a probe by naming one folder or file.

Every front end builds them here, so that the same wish is the same plan everywhere. Paths are made
absolute.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from .attack import ORIGINAL, FineTuneAttack, LoraAttack, MergeAttack
from .probe import ProbeCheckpoint, Role

T = TypeVar("T", LoraAttack, MergeAttack, FineTuneAttack)

_STEPS, _LOOKS = 200, (50, 100, 200)


def style_attack(folder: str) -> FineTuneAttack:
    """A LoRA on a user's harmless images, of which a quarter is held out."""
    path = Path(folder)
    return FineTuneAttack(
        name=f"style {path.name}", data=str(path.absolute()), held_out=0.25, steps=_STEPS,
        looks=_LOOKS,
    )  # fmt: skip


def sibling_attack(other: str) -> FineTuneAttack:
    """A LoRA of the concept, trained on another checkpoint: a file, or "original"."""
    path = other if other == ORIGINAL else str(Path(other).absolute())
    return FineTuneAttack(
        name=f"LoRA of {Path(other).stem}", trained_on=path, concept_share=1.0, steps=_STEPS,
        looks=_LOOKS,
    )  # fmt: skip


def with_references(
    checkpoints: Iterable[ProbeCheckpoint], *, plain: str | None = "", oracle: str | None = ""
) -> tuple[ProbeCheckpoint, ...]:
    """Add plain unlearning and the oracle, where they are given, as rows of their own."""
    given: tuple[tuple[Role, str | None], ...] = (("plain", plain), ("oracle", oracle))
    return (
        *checkpoints,
        *(
            ProbeCheckpoint(name=role, path=path if path == "demo" else str(Path(path).absolute()),
                            role=role)
            for role, path in given
            if path
        ),
    )  # fmt: skip


def own_name(attack: T, taken: list[str]) -> T:
    """Give an attack a name that is not in `taken` yet, and add it there.

    One LoRA may be given at several strengths, and files in different folders may share a name.
    """
    base, number = attack.name, 2
    if base in taken and isinstance(attack, LoraAttack):
        base += " at " + ", ".join(f"{lora.strength:g}" for lora in attack.loras)
    name = base
    while name in taken:
        name, number = f"{base} ({number})", number + 1
    taken.append(name)
    return replace(attack, name=name)
