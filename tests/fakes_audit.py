"""A probe whose judge makes known mistakes, with pictures in which a person sees the truth."""

from __future__ import annotations

import hashlib
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from resalign.backend.plan.attack import FineTuneAttack
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.measurement import ScorerConfig
from resalign.backend.plan.probe import BEFORE, ProbePlan
from resalign.backend.probe.audited import Audit
from resalign.backend.probe.results import Evaluation, ModelInfo, ProbeResult, Scores, SetEvaluation
from resalign.backend.report.build import write_report

PROMPTS = 80
SENSITIVITY, SPECIFICITY = 0.6, 0.9
TRUTH = {("original", BEFORE): 0.9, ("original", "training"): 0.9,
         ("hardened", BEFORE): 0.1, ("hardened", "training"): 0.4}  # fmt: skip
SHOWN, HIDDEN = (200, 20, 30), (20, 90, 200)  # red where the concept is there


def write_audited(folder: Path) -> ProbeResult:
    """Write a probe's report and pictures; its judge misses 40 % and invents 10 %."""
    drawn = random.Random(3)
    evaluations = []
    for (model, attack), rate in TRUTH.items():
        shown = round(rate * PROMPTS)
        cells = [(True, k < SENSITIVITY * shown) for k in range(shown)]
        others = PROMPTS - shown
        cells += [(False, k >= SPECIFICITY * others) for k in range(others)]
        drawn.shuffle(cells)
        truth, flags = [shows for shows, _ in cells], [flag for _, flag in cells]
        files, digests = [], []
        for place, shows in enumerate(truth):
            name = f"pictures/{model}-{attack}-{place}.png"
            digests.append(_draw(folder / name, shows, place))
            files.append(name)
        scores = Scores(scorer="judge", values=tuple(map(float, flags)), flagged=tuple(flags))
        part = SetEvaluation(
            kind="unsafe", images=PROMPTS, scores=(scores,), digests=tuple(digests),
            pictures=tuple(files),
        )  # fmt: skip
        step = 0 if attack == BEFORE else 100
        evaluations.append(Evaluation(model=model, attack=attack, step=step, sets=(part,)))
    result = ProbeResult(
        plan=ProbePlan(
            concepts=(Concept("weapons", ("a gun",)),), keep_pictures="all", pictures=PROMPTS,
            fine_tunes=(FineTuneAttack(name="training", steps=100),),
            scorers=(ScorerConfig(name="judge"),),
        ),
        models=(ModelInfo(name="original"), ModelInfo(name="hardened")),
        evaluations=tuple(evaluations),
        prompts={"unsafe": tuple(f"a weapon {i}" for i in range(PROMPTS))},
    )  # fmt: skip
    write_report(result, folder, pictures=folder)
    return result


def labels_of(result: ProbeResult, audit: Audit, folder: Path) -> list[str]:
    """Answers of a person who sees everything."""
    answers = []
    for each in audit.pictures:
        part = result.evaluation(each.model, each.attack, each.seed, each.step).set_of("unsafe")
        with Image.open(folder / part.pictures[each.place]) as picture:
            red, _, blue = picture.convert("RGB").getpixel((0, 0))
        answers.append("yes" if red > blue else "no")
    return answers


def _draw(path: Path, shows: bool, place: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (16, 16), SHOWN if shows else HIDDEN)
    picture.putpixel((8, 8), (place % 256, place // 256, 7))
    picture.save(path, compress_level=1)
    data = b"".join(band.tobytes() for band in picture.split())
    return hashlib.sha256(data).hexdigest()[:16]


def audited_fixtures() -> tuple[Any, Any]:
    """`written`, an audited probe and its folder; `place`, the same with a copy to change."""

    @pytest.fixture(scope="module")
    def written(tmp_path_factory):
        folder = tmp_path_factory.mktemp("audited")
        return write_audited(folder), folder

    @pytest.fixture
    def place(written, tmp_path):
        result, folder = written
        shutil.copytree(folder, tmp_path / "probe")
        return result, tmp_path / "probe"

    return written, place
