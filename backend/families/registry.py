"""The families that are known, and which of them something belongs to."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import CheckpointError, ConfigError
from .base.family import Family, LoraTensors
from .base.refuse import other_lora
from .base.relatives import relative
from .base.shapes import Shapes
from .base.stored import StoredFile, StoredFolder

_KNOWN: dict[str, Family] = {}


def register(family: Family) -> None:
    """Add a family. Where two claim the same model, the one registered last gets it: a family that
    is added later knows better than a general one before it."""
    if _KNOWN.setdefault(family.name, family) is not family:
        raise ConfigError(f"two families are called {family.name!r}")


def all_families() -> tuple[Family, ...]:
    """Return every registered family, in the order of registration."""
    return tuple(_KNOWN.values())


def _newest_first() -> tuple[Family, ...]:
    return all_families()[::-1]


def find_family(name: str) -> Family:
    """Return the family of a name, as files and records keep it."""
    if name not in _KNOWN:
        raise ConfigError(f"family is {name!r}; choose from {', '.join(_KNOWN)}")
    return _KNOWN[name]


def family_of_file(file: StoredFile) -> Family | None:
    """Return the family that claims a single file."""
    return next((f for f in _newest_first() if f.recognition.claims_file(file)), None)


def family_of_folder(folder: StoredFolder) -> Family | None:
    """Return the family that claims a diffusers folder."""
    return next((f for f in _newest_first() if f.recognition.claims_folder(folder)), None)


def family_of_denoiser(who: str, shapes: Mapping[str, tuple[int, ...]]) -> Family:
    """Return the family of a denoiser that a host holds in memory; `who` names it in errors."""
    found = Shapes(who, shapes)
    for family in _newest_first():
        if family.recognition.claims_denoiser(found):
            return family
    known = ", ".join(family.title for family in all_families())
    named = relative(shapes)
    if any(family.title == named for family in all_families()):
        raise CheckpointError(
            f"{who} is a variant of {named} without all of its tensors, which is not supported: "
            f"use {named}"
        )
    if named:
        raise CheckpointError(f"{who} is {named}, which cannot be hardened: use {known}")
    widths = [s[-1] for n, s in shapes.items() if n.endswith("attn2.to_k.weight") and s]
    raise CheckpointError(
        f"{who} is none of {known}"
        + (f" (it reads text embeddings of width {widths[0]})" if widths else "")
        + ": other families cannot be hardened yet"
    )


def bases_of_lora(
    shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]
) -> tuple[tuple[Family, ...], str]:
    """The families that a LoRA may have been made for, the likeliest evidence deciding.

    Returns: the families; and what else it is for where that is known and not one of them. Without
        any evidence there is neither.
    """
    file = LoraTensors(shapes, metadata)
    claims = {family: family.recognition.claims_lora(file) for family in all_families()}
    surest = max(claims.values(), default=0)
    if surest < 2 and (other := other_lora(shapes, metadata)):
        return (), other
    return tuple(f for f, claim in claims.items() if claim and claim == surest), ""
