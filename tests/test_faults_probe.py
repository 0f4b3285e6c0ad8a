"""Probes and last outputs that die, or whose disk is full, at every file operation."""

from __future__ import annotations

import contextlib
import shutil
from functools import partial
from pathlib import Path

import pytest
from fakes_data import tiny_family
from fakes_export import random_adapter
from fakes_faults import (
    OUTPUTS,
    RUN,
    evaluations,
    finished_run,
    moved,
    results,
    without_outputs,
)
from faulty_disk import Killed, fails_at, faulty_disk

from resalign.backend.cli import main
from resalign.backend.jobs.probe import probe_job
from resalign.backend.plan.attack import FineTuneAttack
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.images import ImageSet
from resalign.backend.plan.measurement import GenerationConfig, PromptSet, UtilityConfig
from resalign.backend.plan.probe import ProbePlan
from resalign.backend.probe.subjects import LoadedSubject

ONE = {"images": 1, "sampling_steps": 1}
PLAN = ProbePlan(
    concepts=(Concept("bad", prompts=("bad",)),), forget_set=ImageSet(prompts=("bad",), **ONE),
    retain_set=ImageSet(prompts=("good",), **ONE), generation=GenerationConfig(steps=1),
    fine_tunes=(FineTuneAttack(name="tune", steps=2, looks=(1, 2), batch=1, rank=1),),
    prompts=(PromptSet(kind="retain", prompts=("good",)),), pictures=1,
    utility=UtilityConfig(drift_samples=1),
)  # fmt: skip


@pytest.fixture(scope="module")
def measure():
    """Run the probe in a folder to its report, or continue there."""
    model = tiny_family()
    adapter = random_adapter(model.denoiser, ("cross_attention_kv",))

    def run(folder: Path) -> dict:
        subjects = LoadedSubject("original", model), LoadedSubject("hardened", model, adapter)
        probe_job(PLAN, folder=folder / "probe", subjects=subjects)
        return evaluations(folder)

    return run


@pytest.fixture(scope="module")
def whole(measure, tmp_path_factory) -> dict:
    return measure(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("kind", ["kill", "full"])
@pytest.mark.parametrize("at", [3, 30])
def test_a_probe_continues_after_a_fault(monkeypatch, measure, whole, tmp_path, at, kind):
    assert fails_at(monkeypatch, lambda: measure(tmp_path), tmp_path, at, kind)
    assert measure(tmp_path) == whole


@pytest.mark.reliability
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["kill", "full"])
def test_a_probe_continues_after_a_fault_at_every_file_operation(
    monkeypatch, measure, whole, tmp_path, kind
):
    report, at = (), 1
    (tmp_path / "1").mkdir()
    while fails_at(monkeypatch, partial(measure, tmp_path / str(at)), tmp_path / str(at), at, kind):
        folder = tmp_path / str(at)
        assert measure(folder) == whole, at
        names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        report = report or names
        assert [n for n in names if not n.endswith(".tmp")] == report, at
        shutil.rmtree(folder)
        at += 1
        (tmp_path / str(at)).mkdir()
    assert at > 60
    print(f"probe, {kind} at each of {at - 1} file operations: all equal, with report")


# --- the last outputs of a run ------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a finished run and what it wrote."""
    return finished_run(tmp_path_factory.mktemp("place"))


COMMANDS = {
    "resume": lambda folder: ["resume", str(folder / RUN)],
    "export": lambda folder: [
        "export", str(folder / RUN), "--output", str(folder / "hardened.safetensors")
    ],
    "lora": lambda folder: [
        "lora", str(folder / RUN), "--output", str(folder / "hardened-lora.safetensors")
    ],
}  # fmt: skip


@pytest.mark.reliability
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["kill", "full"])
@pytest.mark.parametrize("name", COMMANDS)
def test_the_last_outputs_after_a_fault_at_every_file_operation(
    monkeypatch, place, tmp_path, capsys, name, kind
):
    """`resume` finishes what it was writing; the others ask before they replace a whole file."""
    wanted, at = results(place), 1
    while True:
        folder = without_outputs(moved(place, tmp_path / str(at)))
        command, code = COMMANDS[name](folder), None
        with (
            faulty_disk(monkeypatch, folder, at, kind) as disk,
            contextlib.suppress(Killed),
        ):
            code = main(command)
        if not disk.broken:
            break
        assert code in (None, 0, 2), at  # 0: where only a removal failed
        said = capsys.readouterr().err
        assert "Traceback" not in said
        if code == 2:
            assert "No space left" in said, (at, said)
        code = main(command)
        if code and name != "resume":
            assert "overwrit" in capsys.readouterr().err, at
            code = main([*command, "--overwrite"])
        found = results(folder)
        assert code == 0 or "exists already" in capsys.readouterr().err, at
        assert found == {key: wanted[key] for key in found} and found, at
        if name == "resume":
            assert all((folder / output).exists() for output in OUTPUTS), at
            assert not (folder / RUN / "outputs.json").exists(), at
        assert not list(folder.rglob("*.resalign-partial")), at
        shutil.rmtree(folder)
        at += 1
    with capsys.disabled():
        print(f"{name}, {kind} at each of {at - 1} file operations: all equal")
