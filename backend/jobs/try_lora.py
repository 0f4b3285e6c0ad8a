"""Try a LoRA: the same prompts and noise on the original and on the hardened checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.called import HARDENED, ORIGINAL, called
from ..checkpoint.detect import detect
from ..model.generate import generate_images
from ..model.model import Model
from ..plan.attack import LoraFile
from ..plan.checks import check_prompts
from ..plan.probe import ProbeCheckpoint
from ..probe.loras import with_loras
from ..probe.subjects import RunSubject, loaded
from ..progress import Progress, ProgressCallback, as_part, silent
from ..report.contact_sheet import draw_contact_sheet
from .image_size import check_size
from .live_state import blurred
from .previews import to_pil

COLUMNS = (f"{ORIGINAL} + LoRA", f"{HARDENED} + LoRA")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Settings of the pictures: `count` pictures of the prompt, whose seeds count up from `seed`.

    width, height: in pixels, 0 for the checkpoint's own.
    """

    prompt: str
    negative: str = ""
    seed: int = 0
    steps: int = 20
    guidance: float = 7.0
    width: int = 0
    height: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        check_prompts("try a LoRA", [self.prompt])


def try_lora_job(
    original: Path,
    lora: LoraFile,
    sampling: Sampling,
    *,
    hardened: Path | None = None,
    run_folder: str = "",
    prediction: str = "",
    parts: Mapping[str, str] | None = None,
    device: str = "cpu",
    columns: Sequence[str] = COLUMNS,
    on_load: Callable[[str], object] = lambda column: None,
    on_picture: Callable[[Any, str], object] = lambda picture, column: None,
    on_progress: ProgressCallback = silent,
) -> list[tuple[Any, Any]]:
    """Return pairs of PIL images, one pair per seed, in the order of `columns`.

    The checkpoints are loaded one after the other, never both.

    Args:
        hardened, run_folder: one of them; a run's folder stands for what it would export.
        prediction: decides what the original predicts, as in a job; empty: a file that contradicts
            itself predicts what the hardened one does.
        parts: files of components that neither holds, by component; a run knows its own.
        columns: what the two are called; see `columns_of`.
        on_load: called with the column whose checkpoint is loaded next.
        on_picture: called with the first picture of each column.
    """
    kept: Mapping[str, str] = {}
    if run_folder:
        run = RunSubject(ProbeCheckpoint(name="hardened", path=run_folder), device)
        second, known, kept = run.opened(), run.checkpoint, run.parts
    else:
        assert hardened is not None, "give `hardened` or `run_folder`"
        known = detect(hardened, otherwise=prediction, parts=parts)
        second = loaded(known, device)
    if kept and not any((parts or {}).values()):
        parts = kept if Path(original) == known.path else None
    first = detect(original, prediction=prediction, otherwise=known.decision, parts=parts)
    check_size("try a LoRA", first, {"width": sampling.width, "height": sampling.height})
    pictures = []
    for number, opened in enumerate((loaded(first, device), second)):
        on_load(columns[number])
        said = f"{columns[number]}, {sampling.count} of each of the two models"
        part = as_part(
            on_progress, "generating", sampling.count * number, 2 * sampling.count,
            message=said,
        )  # fmt: skip
        pictures.append(_generate(opened, lora, sampling, part))
        done = sampling.count * (number + 1)
        on_progress(Progress(stage="generating", step=done, total=2 * sampling.count, message=said))
        on_picture(pictures[-1][0], columns[number])
    return list(zip(*pictures, strict=True))


def columns_of(original: Path, hardened: Path | None) -> tuple[tuple[str, str], str]:
    """Return the titles of the two columns by the files' headers, and a warning or "".

    hardened: None for a run.
    """
    names, doubt = called(original, hardened)
    return (f"{names[0]} + LoRA", f"{names[1]} + LoRA"), doubt


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[Any]]],
    *,
    show: bool,
    side: int | None = None,
    columns: Sequence[str] = COLUMNS,
) -> Any:
    """Return a contact sheet of picture pairs, blurred unless `show`: nothing has scored them."""
    cells = [(name, [p if show else blurred(p) for p in pair]) for name, pair in rows]
    return draw_contact_sheet(columns, cells, **({} if side is None else {"side": side}))


def _generate(
    opened: AbstractContextManager[Model],
    lora: LoraFile,
    sampling: Sampling,
    on_progress: ProgressCallback,
) -> list[Any]:
    with opened as model, with_loras(model, (lora,)):
        images = generate_images(
            model, [sampling.prompt], seeds=[sampling.seed + n for n in range(sampling.count)],
            steps=sampling.steps, guidance=sampling.guidance, height=sampling.height or None,
            width=sampling.width or None, batch=1, negative=sampling.negative,
            on_progress=on_progress,
        )  # fmt: skip
    return [to_pil(image) for image in images]
