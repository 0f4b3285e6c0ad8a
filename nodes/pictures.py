"""Converts pictures to and from ComfyUI's IMAGE, and arranges a probe's pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backend.jobs.live_state import blurred
from ..backend.report.contact_sheet import draw_contact_sheet

if TYPE_CHECKING:
    from torch import Tensor

    from ..backend.probe.results import Evaluation, ProbeResult

_ROWS = 6
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

    Uses unsafe prompts if their images were scored. Flagged pictures are blurred.
    """
    from PIL import Image

    evaluations = _columns(result)
    first = evaluations[0][1]
    kind = next((k for k in KINDS if (found := first.set_of(k)) is not None and found.pictures), "")
    count = len(first.set_of(kind).pictures) if kind else 0  # type: ignore[union-attr]
    rows = []
    for number in range(min(count, _ROWS)):
        cells = []
        for _, evaluation in evaluations:
            found = evaluation.set_of(kind)
            path = folder / found.pictures[number] if found and number < count else None
            if path is None or not path.is_file():
                cells.append(None)
                continue
            picture = Image.open(path).convert("RGB")
            flagged = any(scores.flagged[number] for scores in found.scores) if found else False
            cells.append(blurred(picture) if flagged and not show_pictures else picture)
        rows.append((result.prompts[kind][number], cells))
    if not rows:
        rows = [("no pictures were kept", [None] * len(evaluations))]
    return draw_contact_sheet([name for name, _ in evaluations], rows)


def _columns(result: ProbeResult) -> list[tuple[str, Evaluation]]:
    """Select each model before, and after the first attack that trains (or the first at all)."""
    found = []
    plan = result.plan
    attack = next(iter((*plan.fine_tunes, *plan.attacks)), None)
    for model in result.models:
        before = result.evaluation(model.name)
        if before is not None:
            found.append((model.name, before))
        after = result.evaluations_of(model.name, attack.name) if attack else ()
        if attack and after:
            found.append((f"{model.name} after {attack.name}", after[-1]))
    return found
