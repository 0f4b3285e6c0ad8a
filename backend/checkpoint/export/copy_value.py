"""Copies of the denoiser in a source, and the sentences that report them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Fate = Literal["hardened", "left out", "kept"]
_SHOWN = 12  # names in a message


@dataclass(frozen=True, slots=True)
class Copy:
    """A further copy of the denoiser.

    where: its names (`model_ema.*`), or its path in the folder. tensors: the denoiser's that it
    holds; 0 for a file that is not opened.
    """

    where: str
    fate: Fate
    tensors: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def recorded(copies: Iterable[Copy]) -> tuple[dict[str, Any], ...]:
    """Return what a header records: the copies that the result holds."""
    return tuple(copy.to_json() for copy in copies if copy.fate != "left out")


def sentences(copies: Iterable[Copy], denoiser: str, *, exporting: bool = True) -> tuple[str, ...]:
    """Tell a reader what becomes of the copies; nothing where there are none.

    exporting: speak of an export that has been made, not of one to come.
    """
    was, left = ("was", "left out") if exporting else ("will be", "will be left out")
    texts = {
        "hardened": f"further copies of the {denoiser}: {{}}; the same change {was} made to them",
        "left out": f"{left}, since it holds or may hold the unhardened {denoiser}: {{}}",
        "kept": f"parts of the unhardened {denoiser} stay in other components: {{}}",
    }
    found, copies = [], sorted(copies, key=lambda copy: not copy.tensors)  # the surest first
    for fate, text in texts.items():
        closed = fate == "kept"  # those that were not opened have a sentence of their own
        names = [c.where for c in copies if c.fate == fate and (c.tensors or not closed)]
        found += [text.format(_listed(names))] * bool(names)
    unopened = [copy.where for copy in copies if copy.fate == "kept" and not copy.tensors]
    if unopened:
        found.append(
            "copied without being opened, as their components have no other weights: "
            f"{_listed(unopened)}; whether they hold the unhardened {denoiser} is not known"
        )
    return tuple(found)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
