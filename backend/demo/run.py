"""`resalign demo`: the whole procedure on a checkpoint small enough to train on a laptop.

The embedded model generates emoji; weapons are its unsafe concept. The concept is removed twice,
by plain unlearning and by a method that lasts. Both results are exported as checkpoint files and
loaded again; then the base and both copies are fine-tuned for real on the same pictures, 20 % of
which show weapons. The same prompts and seeds are generated before and after, and a small network
judges what the images show.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint.load import load_checkpoint
from ..checkpoint.save import export_merged
from ..data.batches import EncodedData, prepare_data
from ..data.encoded_set import EncodedSet
from ..data.latents import encode_image_set
from ..errors import ConfigError, RunError
from ..hardening.run import harden
from ..plan.fine_tune import FineTuneConfig
from ..plan.hardening import HardeningPlan
from ..plan.images import ImageSet
from ..probe.fine_tune import fine_tuned
from ..progress import Progress, ProgressCallback, silent
from ..report.card import provenance_of, write_card
from ..run.stored import check_same_plan, read_plan
from ..statistics.intervals import wilson
from .art import UNSAFE
from .beds import UNET, Bed, find_bed
from .evaluation import Meter, Rates
from .judge import Judge
from .pictures import picture_grid, rate_bars
from .plans import durable_plan, plain_plan, resalign_plan, write_data
from .result import BASE, HARDENED, PLAIN, DemoResult, DemoRow
from .threads import run_in_threads

METHODS = ("durable", "resalign")
_SETS = ("forget", "retain", "inner", "attack", "attack_concept")


def run_demo(
    folder: Path | str,
    *,
    family: str = UNET.family,
    method: str = METHODS[0],
    quick: bool = False,
    seed: int = 0,
    on_progress: ProgressCallback = silent,
) -> DemoResult:
    """Harden, export, fine-tune and compare; all files stay in `folder`.

    family: of the embedded checkpoint: "sd", a U-Net as Stable Diffusion has, or "dit", a
    flow-matching transformer. method: of the hardened model: "durable" erases and distils as
    the preset of that name does, "resalign" is ResAlign alone; both with the demo's own settings.
    quick: a tenth of the steps and few prompts, to see that it works; its rates mean nothing.

    Raises:
        ConfigError: the demo has no such family or method.
    """
    bed = find_bed(family)
    if method not in METHODS:
        raise ConfigError(f"the demo has no method {method!r}, only {', '.join(METHODS)}")
    threads = torch.get_num_threads()
    # Networks this small gain nothing from several threads per operation, and lose much where
    # the cores are shared; `run_in_threads` uses the cores instead.
    torch.set_num_threads(1)
    try:
        return _run(Path(folder), bed, method, quick, seed, on_progress)
    finally:
        torch.set_num_threads(threads)


def _run(
    folder: Path, bed: Bed, method: str, quick: bool, seed: int, on_progress: ProgressCallback
) -> DemoResult:
    started = time.perf_counter()
    data, cache = write_data(folder / "data", _SETS), folder / "cache"
    judge = Judge.load()
    unsafe, benign = (3, 1) if quick else (12, 2)  # prompts per class
    base = load_checkpoint(bed.checkpoint)
    meter = Meter(base, judge, unsafe=unsafe, benign=benign)
    plans = _plans(data, bed, method, quick, seed)
    files = {BASE: bed.checkpoint} | {
        name: folder / f"demo_{name.replace(' ', '_')}.safetensors" for name in plans
    }
    _refuse_another(folder, {files[name]: plan for name, plan in plans.items()})
    if bed.tokenizer.is_dir():  # no part of a weights file, and looked for beside it
        shutil.copytree(bed.tokenizer, folder / bed.tokenizer.name, dirs_exist_ok=True)
    # What both need is encoded first: two threads would do it twice
    shared = prepare_data(base, plans[PLAIN], cache=cache, on_progress=on_progress)
    encoded = {PLAIN: shared, HARDENED: None}
    run_in_threads(
        "unlearning, plainly and hardened",
        sum(map(_reports, plans.values())),
        {
            name: partial(_unlearn, bed.checkpoint, plan, encoded[name], cache, files[name])
            for name, plan in plans.items()
        },
        on_progress,
    )

    attack = replace(bed.attack, steps=5) if quick else bed.attack
    sets = {
        name: encode_image_set(base, ImageSet(folder=str(data[name])), cache=cache)
        for name in ("attack", "attack_concept")
    }
    shown = _shown(meter)
    measured = run_in_threads(
        "fine-tuning and sampling all three",
        len(files) * (attack.steps + 2),
        {
            name: partial(_before_and_after, file, attack, sets, meter, seed)
            for name, file in files.items()
        },
        on_progress,
    )
    rows = [DemoRow(name, before[0], after[0]) for name, (before, after) in measured.items()]
    pictures = []
    for name, (before, after) in measured.items():
        pictures += [(name, before[1][shown]), ("after fine-tuning", after[1][shown])]

    captions = [meter.classes[index] for index in shown]
    picture_grid(folder / "pictures.png", pictures, captions,
                 "Same prompts, same seeds: before and after the same fine-tuning")  # fmt: skip
    _bars(folder / "rates.png", rows, attack)
    result = DemoResult(
        folder, tuple(rows), attack, seed, time.perf_counter() - started, bed.family
    )
    (folder / "demo.json").write_text(json.dumps(result.to_json(), indent=1) + "\n")
    return result


def _refuse_another(folder: Path, plans: Mapping[Path, HardeningPlan]) -> None:
    """Raise for a folder in which a demo with other options was begun."""
    for file, plan in plans.items():
        run = _run_of(file)
        if not (run / "plan.json").is_file():
            continue
        stored = read_plan(run)
        try:
            check_same_plan(run, stored, plan)
        except RunError:
            raise RunError(
                f"{folder} holds a demo with other options (family, method, seed or quick): name "
                "another folder, or delete this one"
            ) from None


def _run_of(file: Path) -> Path:
    return file.with_suffix(".run")


def _plans(
    data: dict[str, Path], bed: Bed, method: str, quick: bool, seed: int
) -> dict[str, HardeningPlan]:
    plain = plain_plan(data, seed=seed, bed=bed)
    if method == "durable":
        hardened = durable_plan(plain, bed=bed)
    else:
        hardened = resalign_plan(data, seed=seed, bed=bed)
    if not quick:
        return {PLAIN: plain, HARDENED: hardened}
    varied = replace(hardened.varied, images=min(16, hardened.varied.images))
    return {
        name: replace(plan, outer_steps=6, warm_up_steps=min(3, plan.warm_up_steps), varied=varied)
        for name, plan in ((PLAIN, plain), (HARDENED, hardened))
    }


def _reports(plan: HardeningPlan) -> int:
    """Return the steps of a piece's progress: images to draw count like steps."""
    return plan.varied.images + plan.outer_steps


def _unlearn(
    source: Path,
    plan: HardeningPlan,
    data: EncodedData | None,
    cache: Path,
    target: Path,
    on_progress: ProgressCallback,
) -> None:
    """Harden by the plan and export; the run folder lies beside the export.

    data: None to encode and draw here what the plan needs.
    """
    drawn = plan.varied.images

    def drawing(progress: Progress) -> None:
        counts = progress.stage == "synthesising"
        on_progress(replace(progress, step=progress.step if counts else 0))

    model = load_checkpoint(source)
    data = data or prepare_data(model, plan, cache=cache, on_progress=drawing)
    result = harden(
        model, plan, run_folder=_run_of(target), data=data,
        on_progress=lambda progress: on_progress(replace(progress, step=drawn + progress.step)),
    )  # fmt: skip
    provenance = provenance_of(plan, result.records, base_model="resalign demo")
    report = export_merged(source, result.adapter, target, provenance=provenance, overwrite=True)
    write_card(report, provenance)


Measurement = tuple[Rates, Tensor]


def _before_and_after(
    file: Path,
    attack: FineTuneConfig,
    sets: dict[str, EncodedSet],
    meter: Meter,
    seed: int,
    on_progress: ProgressCallback,
) -> tuple[Measurement, Measurement]:
    """Measure the model in `file` before and after fine-tuning: rates and images."""
    model = load_checkpoint(file)
    steps = attack.steps + 2

    def measure() -> Measurement:
        images = meter.images(model)
        return meter.judge(images, model, sets["attack_concept"]), images

    def report(step: int) -> None:
        on_progress(Progress(stage="", step=step, total=steps))

    before = measure()
    report(1)
    with fine_tuned(
        model, attack, sets["attack"], concept=sets["attack_concept"], seed=seed,
        on_step=lambda step: report(step + 1),
    ):  # fmt: skip
        after = measure()
    report(steps)
    return before, after


def _shown(meter: Meter) -> list[int]:
    """Choose two prompts of each weapon and one of every third other class."""
    chosen: dict[str, list[int]] = {}
    for index, class_ in enumerate(meter.classes):
        chosen.setdefault(class_, []).append(index)
    weapons = [index for class_ in UNSAFE for index in chosen[class_][:2]]
    others = [indices[0] for class_, indices in chosen.items() if class_ not in UNSAFE]
    return weapons + others[::3]


def _bars(path: Path, rows: list[DemoRow], attack: FineTuneConfig) -> None:
    rates = [
        [
            (r.unsafe_rate, *wilson(r.unsafe, r.unsafe_total))
            for r in (row.before, row.after)
        ]
        for row in rows
    ]  # fmt: skip
    rate_bars(path, [row.model for row in rows], rates, ("before", "after fine-tuning"),
              f"{attack.name}, {attack.steps} steps")  # fmt: skip
