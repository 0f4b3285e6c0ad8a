"""The pictures of a pack: which go in, and which are blurred on the way.

A picture that is blurred here gets the ending that a probe gives to those it keeps blurred, in its
name and in the pack's report.json, so that every reader knows that its pixels are not those scored.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..probe.detectors import safety_scorers
from ..probe.kept_picture import BLURRED, blur, is_blurred, kept_places
from ..probe.results import UNSAFE, Evaluation, ProbeResult, SetEvaluation
from ..scorers.flag_rules import near_value
from .pack_check import contradiction
from .pictures import find_picture, pixel_digest

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedPictures:
    """The pictures in a pack, and the report that names them so.

    files: their names in the pack. blurred: how many of them were blurred, here or by the probe;
    plain: how many were flagged and are not. lost: named by the report, and missing or damaged.
    """

    result: ProbeResult
    kept: str
    files: tuple[str, ...] = ()
    blurred: int = 0
    plain: int = 0
    lost: tuple[str, ...] = ()


def pack_pictures(result: ProbeResult, folder: Path, target: Path, kept: str) -> PackedPictures:
    """Write the pictures of a report into a folder, and return the report with their new names.

    folder: of the report, to which its pictures are relative; it may come from somebody else, so
    only PNG files inside it are taken.

    Raises:
        RunError: a picture has other pixels than those that were scored.
    """
    work = _Pictures(result, folder, target, kept)
    evaluations = tuple(map(work.of_evaluation, result.evaluations))
    return PackedPictures(
        result=replace(result, evaluations=evaluations), kept=kept, files=tuple(work.files),
        blurred=sum(map(is_blurred, work.files)), plain=work.plain, lost=tuple(work.lost),
    )  # fmt: skip


class _Pictures:
    def __init__(self, result: ProbeResult, folder: Path, target: Path, kept: str) -> None:
        self.folder, self.target, self.kept = folder, target, kept
        self.judges = safety_scorers(result)
        self.near = {config.name: near_value(config) for config in result.plan.scorers}
        self.flagged: set[str] = set()
        self.hidden: set[str] = set()  # what is blurred: flagged, or near to it
        for part in (part for evaluation in result.evaluations for part in evaluation.sets):
            for place in kept_places(part.pictures):
                name = part.pictures[place]
                if self._is_flagged(part, place):
                    self.flagged.add(name)
                elif self._is_near(part, place):
                    self.hidden.add(name)
        self.hidden |= self.flagged
        self.names: dict[str, str] = {}  # of the report's to the pack's; "" for a lost one
        self.files: list[str] = []
        self.lost: list[str] = []
        self.plain = 0

    def of_evaluation(self, evaluation: Evaluation) -> Evaluation:
        return replace(evaluation, sets=tuple(map(self._of_set, evaluation.sets)))

    def _of_set(self, part: SetEvaluation) -> SetEvaluation:
        names = tuple(self._named(part, place) for place in range(len(part.pictures)))
        return replace(part, pictures=() if self.kept == "none" else names)

    def _named(self, part: SetEvaluation, place: int) -> str:
        """Write a picture, unless it was; return its name in the pack."""
        name = part.pictures[place]
        if not name or name in self.names:
            return self.names.get(name) or name
        self.names[name] = ""
        digest = part.digests[place] if place < len(part.digests) else ""
        found = open_kept(self.folder, name)
        if found is None:
            self.lost.append(name)
            return name
        path, pixels = found
        if digest and not is_blurred(name) and pixel_digest(pixels) != digest:
            raise contradiction(name)
        if self.kept != "none":
            self.names[name] = self._write(name, path, pixels)
            self.files.append(self.names[name])
            self.plain += name in self.flagged and not is_blurred(self.names[name])
        return self.names[name] or name

    def _write(self, name: str, path: Path, pixels: Image) -> str:
        blurring = self.kept == BLURRED and name in self.hidden and not is_blurred(name)
        new = f"{name.removesuffix('.png')}-{BLURRED}.png" if blurring else name
        place = self.target / new
        place.parent.mkdir(parents=True, exist_ok=True)
        if blurring:
            _blurred(pixels).save(place, "PNG")
        else:
            shutil.copyfile(path, place)
        return new

    def _is_flagged(self, part: SetEvaluation, place: int) -> bool:
        """A scorer of quality flags what was drawn wrongly: there is nothing to hide in it."""
        return any(
            place < len(each.flagged) and each.flagged[place]
            for each in part.scores if each.scorer in self.judges
        )  # fmt: skip

    def _is_near(self, part: SetEvaluation, place: int) -> bool:
        if part.kind != UNSAFE:
            return False
        return any(
            (near := self.near.get(each.scorer)) is not None
            and place < len(each.values) and each.values[place] >= near
            for each in part.scores if each.scorer in self.judges
        )  # fmt: skip


def open_kept(folder: Path, name: str) -> tuple[Path, Image] | None:
    """Open a picture of a report's resolved folder; None if it is missing, no PNG, or outside."""
    from PIL import Image, UnidentifiedImageError

    path = find_picture(folder, name)
    if path is None or path.relative_to(folder).as_posix() != name or not name.isprintable():
        return None
    if path.suffix != ".png" or "\\" in name:
        return None
    try:
        with Image.open(path, formats=("PNG",)) as file:
            return path, file.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
        return None


def _blurred(picture: Image) -> Image:
    import numpy as np
    import torch
    from PIL import Image

    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return Image.fromarray(blur(pixels).permute(1, 2, 0).numpy())
