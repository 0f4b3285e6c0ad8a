"""The worker's jobs about what checkpoints draw: probe, try_lora."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..jobs.live_state import LiveState, blurred, data_url
from ..jobs.previews import to_pil
from ..jobs.probe import run_probe_job
from ..model.generate import generate_images
from ..model.model import Model
from ..plan.probe import LoraFile, ProbeCheckpoint, ProbeJob
from ..probe.headline import headline
from ..probe.loras import with_loras
from ..probe.subjects import RunSubject, loaded
from ..probe.summary import AttackRow
from ..progress import Progress
from ..report.contact_sheet import contact_sheet
from ..run.json_lines import finite
from .protocol import Stopped
from .requests import ProbeRequest, TryLoraRequest, checkpoint_path

Check = Callable[[], None]
Done = tuple[dict[str, Any], str]
_SIDE = 512  # pixels of a picture on a sheet, at most
_PER_LOOK = 2  # pictures of a probe's look that are shown
COLUMNS = ("original + LoRA", "hardened + LoRA")


def probe(request: ProbeRequest, live: LiveState, check: Check, *, device: str) -> Done:
    checkpoints = tuple(
        replace(checkpoint, path=str(checkpoint_path(checkpoint.path)))
        for checkpoint in request.checkpoints
    )
    job = ProbeJob(checkpoints=checkpoints, output=request.folder, plan=request.plan, device=device)
    return run_probe(job, live, check, new=True)


def run_probe(job: ProbeJob, live: LiveState, check: Check, *, new: bool) -> Done:
    """A probe to its report; what its folder already holds is not measured again."""
    folder = Path(job.output)

    def tell(progress: Progress, /) -> None:
        check()
        live(progress)
        for picture in progress.pictures[:_PER_LOOK]:
            live.picture_file(picture, folder)

    live.note("reading the checkpoints")
    try:
        found = run_probe_job(job, new=new, on_progress=tell)
    except Stopped:
        raise Stopped(
            "stopped; complete evaluations are kept, Resume continues from there"
        ) from None
    text = headline(found.summary)
    result = {
        "folder": str(folder),
        "headline": text,
        "rows": [_row(row) for row in found.summary.rows],
        "report": str(found.files.html),
        "complete": found.result.complete,
    }
    return result, text


def _row(row: AttackRow) -> dict[str, Any]:
    """A row of the report without its comparisons."""
    values = asdict(row)
    del values["against"]
    return finite(values)


def try_lora(request: TryLoraRequest, live: LiveState, check: Check, *, device: str) -> Done:
    """The same LoRA, prompt and noise on the original and on the hardened checkpoint."""
    # One after the other, each in a frame of its own: never two of them in memory.
    drawn = [_draw(request, number, live, check, device) for number in range(len(COLUMNS))]
    hide = not request.show_pictures
    pictures = []
    for number, pair in enumerate(zip(*drawn, strict=True)):
        cells = [blurred(picture) if hide else picture for picture in pair]
        name = f"seed {request.seed + number}: {request.prompt}"
        url = data_url(contact_sheet(COLUMNS, [(name, cells)], side=_SIDE))
        pictures.append({"url": url, "caption": name, "flagged": hide, "step": number + 1})
    count = len(pictures)
    return {"pictures": pictures}, f"{count} picture{'s' * (count > 1)} of each drawn"


def _opened(request: TryLoraRequest, number: int, device: str) -> AbstractContextManager[Model]:
    if number and request.run_folder:
        checkpoint = ProbeCheckpoint(name="hardened", path=request.run_folder)
        return RunSubject(checkpoint, device).opened()
    return loaded(checkpoint_path(request.hardened if number else request.original), device)


def _draw(
    request: TryLoraRequest, number: int, live: LiveState, check: Check, device: str
) -> list[Any]:
    """PIL images, one per seed. number: 0 for the original, 1 for the hardened one."""
    count, which = request.count, COLUMNS[number]

    def tell(progress: Progress, /) -> None:
        check()
        live(
            replace(
                progress, stage="drawing", step=count * number + progress.step, total=2 * count,
                message=which,
            )
        )  # fmt: skip

    live.note(f"loading: {which}")
    lora = LoraFile(path=request.lora, strength=request.strength)
    with _opened(request, number, device) as model, with_loras(model, (lora,)):
        images = generate_images(
            model, [request.prompt], seeds=[request.seed + n for n in range(count)],
            steps=request.steps, guidance=request.guidance, height=request.height or None,
            width=request.width or None, batch=1, negative=request.negative, on_progress=tell,
        )  # fmt: skip
    pictures = [to_pil(image) for image in images]
    live.picture(pictures[0], which, flagged=True, step=number + 1)
    return pictures
