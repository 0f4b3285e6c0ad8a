"""Converts pictures to and from ComfyUI's IMAGE, and arranges a probe's pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backend.jobs.live_state import blurred
from ..backend.report.contact_sheet import draw_contact_sheet

if TYPE_CHECKING:
    from torch import Tensor

    from ..backend.probe.results import Evaluation, ProbeResult

_ROWS, _HARMLESS_ROWS = 6, 3
KINDS = ("unsafe", "neighbour", "retain")


def to_image(picture: Any) -> Tensor:
    """Convert a PIL image to an IMAGE, [1, height, width, 3] from 0 to 1."""
    import numpy
    import torch

    pixels = numpy.asarray(picture.convert("RGB"), dtype=numpy.float32) / 255
    return torch.from_numpy(pixels)[None]


def from_image(image: Tensor) -> list[Any]:
    """Convert an IMAGE to PIL images."""
    from PIL import Image

    pixels = (image.detach().float().clamp(0, 1) * 255).round().byte().cpu().numpy()
    return [Image.fromarray(picture) for picture in pixels]


def probe_grid(result: ProbeResult, folder: Path, *, show_pictures: bool) -> Any:
    """Arrange pictures of the same prompts: each model before and after the first training attack.

    Uses unsafe prompts if their images were scored, and some retain prompts below them, which show
    whether a model still works. Flagged pictures are blurred.
    """
    evaluations = _columns(result)
    first = evaluations[0][1]
    kinds = [k for k in KINDS if (found := first.set_of(k)) is not None and found.pictures]
    chosen = [kinds[0]] * bool(kinds) + ["retain"] * ("retain" in kinds[1:])
    rows = []
    for kind in chosen:
        most = _ROWS if kind == chosen[0] else _HARMLESS_ROWS
        rows += _rows(result, evaluations, kind, folder, most, show_pictures)
    if not rows:
        rows = [("no pictures were kept", [None] * len(evaluations))]
    return draw_contact_sheet([name for name, _ in evaluations], rows)


def _rows(
    result: ProbeResult,
    evaluations: list[tuple[str, Evaluation]],
    kind: str,
    folder: Path,
    most: int,
    show_pictures: bool,
) -> list[tuple[str, list[Any]]]:
    """Return some prompts of a set, each with its picture in every column."""
    from PIL import Image

    from ..backend.probe.detectors import safety_scorers
    from ..backend.probe.kept_picture import kept_places, spread_places

    judges = safety_scorers(result)
    part = evaluations[0][1].set_of(kind)
    kept = kept_places(part.pictures) if part else ()
    texts = [result.prompts[kind][number] for number in kept]
    rows = []
    for number in (kept[turn] for turn in spread_places(texts, most)):
        cells = []
        for _, evaluation in evaluations:
            found = evaluation.set_of(kind)
            name = found.pictures[number] if found and number < len(found.pictures) else ""
            path = folder / name
            if not name or not path.is_file():
                cells.append(None)
                continue
            with Image.open(path) as file:
                picture = file.convert("RGB")
            scores = [one for one in found.scores if one.scorer in judges] if found else []
            flagged = any(one.flagged[number] for one in scores)
            cells.append(blurred(picture) if flagged and not show_pictures else picture)
        rows.append((result.prompts[kind][number], cells))
    return rows


def _columns(result: ProbeResult) -> list[tuple[str, Evaluation]]:
    """Select each model before, and after the first attack that trains (or the first at all)."""
    found = []
    plan = result.plan
    attack = next(iter((*plan.trainings, *plan.attacks)), None)
    for model in result.models:
        before = result.evaluation(model.name)
        if before is not None:
            found.append((model.name, before))
        after = result.evaluations_of(model.name, attack.name) if attack else ()
        if attack and after:
            found.append((f"{model.name} after {attack.name}", after[-1]))
    return found
