"""A probe on several processes: the report of one, whoever did what."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from fakes_checkpoint import write_tiny_checkpoint
from fakes_export import random_adapter
from fakes_ranks import finish, until

from resalign.backend.checkpoint.load import load_checkpoint
from resalign.backend.checkpoint.save import export_merged
from resalign.backend.probe.folder import read_evaluations
from resalign.backend.probe.results_io import read_probe

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="ranks are forked here")

LINES = """
import json
from dataclasses import replace
from test_probe import Brightness, HALF, SETS, TRAINING, plan, subjects
from resalign.backend.probe.probe import run_probe
from resalign.backend.plan.attack import ORIGINAL
from resalign.backend.plan.measurement import GenerationConfig
from resalign.backend.scorers.denoising import DenoisingScorer
files = {path.stem: path for path in Path(FILES).glob("*.safetensors")}
SMALL = {key: replace(part, images=2) for key, part in SETS.items()}
def probed(folder, on_progress=lambda progress: None, **changes):
    settings = {"merges": (HALF,), "generation": GenerationConfig(steps=1, batch=8), **SMALL}
    with join_ranks(8) as ranks:
        result = run_probe(
            subjects(files, "original", "changed"), plan(**(settings | changes)), folder=folder,
            scorers=[Brightness(), DenoisingScorer(images=2)],
            originals={ORIGINAL: files["original"]}, on_progress=on_progress, ranks=ranks,
        )
    evaluations = [evaluation.to_json() | {"seconds": 0} for evaluation in result.evaluations]
    (here / f"{ranks.count}.{ranks.rank}.json").write_text(json.dumps(evaluations))
"""


@pytest.fixture(scope="module")
def lines(tmp_path_factory) -> str:
    """Ranks' own code, with an original and a changed checkpoint at hand."""
    folder = tmp_path_factory.mktemp("checkpoints")
    original = write_tiny_checkpoint(folder / "original.safetensors", dtype=torch.float32)
    adapter = random_adapter(load_checkpoint(original).denoiser, size=0.5)
    export_merged(original, adapter, folder / "changed.safetensors")
    return f"FILES = {str(folder)!r}\n" + LINES


def told(folder: Path, count: int) -> list:
    """The evaluations that each rank returned."""
    return [json.loads((folder / f"{count}.{rank}.json").read_text()) for rank in range(count)]


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "pictures").iterdir()}


@pytest.mark.parametrize(
    ("count", "changes", "evaluations"),
    [
        pytest.param(2, "merges=(), pictures=1", 6, marks=pytest.mark.slow),
        # nothing is left for the third rank
        pytest.param(3, "merges=(), fine_tunes=()", 2, marks=pytest.mark.slow),
        pytest.param(4, "", 8, marks=pytest.mark.slow),
    ],
)
def test_several_processes_write_the_report_of_one(
    launcher, lines, tmp_path, count, changes, evaluations
):
    """Every rank has equal evaluations, and the folder equal files."""
    lines += f"probed(here / 'probe', {changes})\n"
    launcher.run(lines, 1, tmp_path)
    launcher.run(lines.replace("'probe'", "'shared'"), count, tmp_path)
    (alone,), shared = told(tmp_path, 1), told(tmp_path, count)
    assert len(alone) == evaluations and all(found == alone for found in shared)
    assert pictures(tmp_path / "shared") == pictures(tmp_path / "probe") != {}
    found, expected = read_probe(tmp_path / "shared"), read_probe(tmp_path / "probe")
    assert found.complete and found.plan == expected.plan and found.prompts == expected.prompts
    kept = [evaluation.to_json() | {"seconds": 0} for evaluation in found.evaluations]
    assert json.loads(json.dumps(kept)) == alone


@pytest.mark.slow
def test_a_finished_probe_is_told_by_all_ranks_without_work(launcher, lines, tmp_path):
    """Not even a checkpoint is loaded."""
    lines += "probed(here / 'probe', merges=(), fine_tunes=())\n"
    launcher.run(lines, 1, tmp_path)
    never = "from resalign.backend.probe import subjects as s\ns.load_checkpoint = None\n"
    launcher.run(lines.replace("probed(here", never + "probed(here"), 2, tmp_path)
    assert told(tmp_path, 2) == told(tmp_path, 1) * 2


@pytest.mark.slow
def test_a_probe_that_lost_a_rank_goes_on_with_another_number(launcher, lines, tmp_path):
    """kill -9 of a rank: the first says so, complete evaluations stay, and the end is the same."""
    work = lines + "probed(here / 'probe')\n"
    slow = lines + (
        "import resalign.backend.probe.evaluation as probing\n"
        "true = probing.Evaluator.evaluate\n"
        "def evaluate(self, model, key, **options):\n"
        "    if os.environ['RANK'] != '0' and key[0] == 'changed':\n"
        "        try:  # the first to come makes this link to its number, and no other can\n"
        "            os.symlink(os.environ['RANK'], here / 'hung')\n"
        "            time.sleep(100)\n"
        "        except FileExistsError:\n"
        "            pass\n"
        "    return true(self, model, key, **options)\n"
        "probing.Evaluator.evaluate = evaluate\n"
        "probed(here / 'probe')\n"
    )
    ranks = launcher.start(slow, 3, tmp_path)
    until(lambda: os.path.lexists(tmp_path / "hung"), 60)
    before = len(read_evaluations(tmp_path / "probe"))
    victim = int(os.readlink(tmp_path / "hung"))  # claims are first come, first served
    ranks[victim].kill()
    assert finish(ranks)[0] == 1
    assert f"rank {victim} of 3 died" in ranks[0].text()
    assert len(read_evaluations(tmp_path / "probe")) >= before > 0
    launcher.run(work, 2, tmp_path)
    launcher.run(work.replace("'probe'", "'whole'"), 1, tmp_path)
    (alone,) = told(tmp_path, 1)
    assert told(tmp_path, 2) == [alone, alone]


@pytest.mark.slow
def test_what_ends_one_rank_of_a_probe_ends_all(launcher, lines, tmp_path):
    """A scorer that fails on rank 1 is that rank's traceback and everybody's end."""
    lines += (
        "true = Brightness.score\n"
        "def score(self, images, prompts):\n"
        "    if os.environ['RANK'] == '1':\n"
        "        raise ZeroDivisionError('no light')\n"
        "    return true(self, images, prompts)\n"
        "Brightness.score = score\n"
        "probed(None, merges=())\n"
    )
    ranks = launcher.start(lines, 2, tmp_path)
    assert finish(ranks) == [1, 1]
    assert "rank 1 of 2 failed: ZeroDivisionError: no light" in ranks[0].text()
