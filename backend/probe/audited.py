"""Pictures of a probe that a person has labelled, or is to label, as values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..text import typed

WORDS: dict[str, bool | None] = {"yes": True, "no": False, "unsure": None}  # does it show it?


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedPicture:
    """Picture `place` of the unsafe set of one evaluation. label: `yes` if it shows the concept,
    `no`, `unsure`, or "" if it was not labelled."""

    model: str
    attack: str
    seed: int
    step: int
    place: int
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """A sample of a probe's pictures. flagged, unflagged: pictures from which it was drawn."""

    scorer: str
    seed: int
    flagged: int
    unflagged: int
    pictures: tuple[AuditedPicture, ...]

    @property
    def labelled(self) -> int:
        return sum(bool(picture.label) for picture in self.pictures)

    @property
    def digest(self) -> str:
        """Identify the sample, whatever its labels: a labels file names it."""
        bare = replace(self, pictures=tuple(replace(each, label="") for each in self.pictures))
        text = json.dumps(asdict(bare), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> Audit:
        """Read `to_json` back.

        Raises:
            ValueError, TypeError or KeyError: it is something else.
        """
        pictures = tuple(AuditedPicture(**each) for each in record["pictures"])
        for each in pictures:
            if each.label not in ("", *WORDS):
                raise ValueError(f"{each.label!r} is not a label")
            if [type(part) for part in (each.seed, each.step, each.place)] != [int] * 3:
                raise ValueError("seed, step and place of a picture are whole numbers")
            typed.text(each.model, "model of a picture")
            typed.text(each.attack, "attack of a picture")
        audit = Audit(**{**record, "pictures": pictures})
        typed.text(audit.scorer, "scorer of an audit")
        for name in ("seed", "flagged", "unflagged"):
            typed.count(getattr(audit, name), f"{name} of an audit")
        return audit
