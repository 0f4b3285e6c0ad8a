"""Faults that an audit found in the handling of strangers' files, each as a kind."""

from __future__ import annotations

import copy
import json
import os
import time
from pathlib import Path

import pytest
import torch
from fakes_probe import fake_result

from resalign.backend.checkpoint.header import read_header
from resalign.backend.cli import main
from resalign.backend.errors import (
    CheckpointError,
    ConfigError,
    ExportError,
    ResAlignError,
    RunError,
)
from resalign.backend.jobs.check import check_job
from resalign.backend.jobs.export import refuse_existing
from resalign.backend.jobs.resume import job_in
from resalign.backend.plan.checks import check_distinct
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.job import Job
from resalign.backend.report.build import write_report
from resalign.backend.report.compare import compare_reports
from resalign.backend.report.schema import load_report
from resalign.backend.run.folder import RunFolder
from resalign.backend.run.records import StepRecord

PLAN = HardeningPlan(concepts=(Concept("weapon", prompts=("a gun",)),))
HOSTILE = [10**350, -(10**350), 1e308, -1, None, "\x1b[2J", [], {}, True, [[[]]], "../../x"]
STEP = {
    "step": 1, "harm": 0.5, "retain": 0.1, "resilience_weight": 1.0, "retain_weight": 1.0,
    "learning_rate": 0.1, "gradient_norm": 1.0, "seconds": 1.0, "simulations": [],
}  # fmt: skip


@pytest.fixture
def stranger(monkeypatch, tmp_path):
    """Folders are begun by somebody else within the call."""

    def begin(make):
        ours = os.environ["XDG_STATE_HOME"]
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "their state"))
        made = make()
        monkeypatch.setenv("XDG_STATE_HOME", ours)
        return made

    return begin


@pytest.fixture
def run(tmp_path) -> Path:
    job = Job(checkpoint="a.safetensors", output=str(tmp_path / "notes.safetensors"), plan=PLAN)
    RunFolder.create(tmp_path / "run", job).close()
    return tmp_path / "run"


# --- pipes ---------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="needs named pipes")
@pytest.mark.parametrize(
    "name", ["plan.json", "job.json", "checkpoint.json", "steps.jsonl", "state.safetensors",
             "adapter.safetensors", "run.lock", "run.pid", "kernels.json"],
)  # fmt: skip
def test_a_pipe_in_a_file_s_place_is_not_waited_for(run, tmp_path, stranger, name):
    """`resume`, `export` and `lora` of a received folder end at once, in one line."""
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    out = str(tmp_path / "out.safetensors")
    for command in (["resume", str(run)], ["export", str(run), "--output", out],
                    ["lora", str(run), "--output", out]):  # fmt: skip
        assert main(command) == 2
    with pytest.raises(ResAlignError), RunFolder.open(run) as opened:
        opened.kernels(), opened.source(), opened.load_state(), opened.load_adapter()


@pytest.mark.skipif(os.name == "nt", reason="needs named pipes")
def test_pipes_and_devices_are_no_checkpoints_plans_or_reports(tmp_path):
    for name in ("a.safetensors", "plan.toml", "report.json"):
        os.mkfifo(tmp_path / name)
    for path in (tmp_path / "a.safetensors", Path("/dev/zero")):
        with pytest.raises(CheckpointError, match="pipe or device"):
            read_header(path)
    assert main(["check", str(tmp_path / "plan.toml")]) == 2
    with pytest.raises(RunError, match="pipe or device"):
        load_report(tmp_path / "report.json")


# --- files beside --------------------------------------------------------------------------------


def test_a_received_folder_cannot_claim_a_file_beside_it(tmp_path, stranger):
    """Its outputs.json says that it was writing the user's own file, which stays."""
    mine = tmp_path / "mine.safetensors"
    mine.write_text("precious")
    job = Job(checkpoint="a.safetensors", output=str(mine), plan=PLAN)

    def make():
        with RunFolder.create(tmp_path / "run", job) as run:
            run.begin_outputs([mine])
            return run.writing()

    assert stranger(make) == (mine,)
    assert job_in(tmp_path / "run").output == str(mine)  # beside it: allowed, if it is free
    assert RunFolder.open(tmp_path / "run", read_only=True).writing() == ()


def test_a_card_or_curves_of_that_name_are_not_replaced(run, tmp_path):
    """An output called `notes` would write notes.md."""
    for name in ("notes.md", "notes-curves.png"):
        (tmp_path / name).write_text("mine")
    job = Job(checkpoint="a.safetensors", output=str(tmp_path / "notes.safetensors"), plan=PLAN)
    found = [text for text in check_job(job).problems if "exists already" in text]
    assert len(found) == 2 and "notes.md" in found[0] and "--overwrite" in found[1]
    assert not [text for text in check_job(job, overwrite=True).problems if "exists" in text]
    own = [(tmp_path / "notes.safetensors").absolute()]
    assert not [text for text in check_job(job, own=own).problems if "exists" in text]
    with pytest.raises(ExportError, match=r"notes\.md exists"):
        refuse_existing([tmp_path / "notes.md"], overwrite=False)
    refuse_existing([tmp_path / "notes.md", tmp_path / "none"], overwrite=True)


# --- records -------------------------------------------------------------------------------------


def leaves(value, path=()):
    """Yield the place of every value in a JSON value; of lists the first two entries only."""
    yield path
    entries = value.items() if isinstance(value, dict) else ()
    entries = enumerate(value[:2]) if isinstance(value, list) else entries
    for key, item in entries:
        yield from leaves(item, (*path, key))


def put(value, path, item):
    if not path:
        return item
    value = copy.deepcopy(value)
    at = value
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = item
    return value


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("report")
    result = fake_result(models=("original", "hardened"))
    write_report(result, folder)
    record = json.loads((folder / "report.json").read_text())
    record["looks"] = record["looks"][:4]
    return record


def survives(report: dict, folder: Path, path, item) -> None:
    file = folder / "report.json"
    file.write_text(json.dumps(put(report, path, item)))
    started = time.perf_counter()
    message = ""
    try:
        compare_reports([file], folder / "page")
    except ResAlignError as error:
        message = str(error)
    assert "\n" not in message, (path, item)
    assert time.perf_counter() - started < 5, (path, item)


@pytest.mark.parametrize(
    ("path", "item"),
    [
        (("looks", 0, "step"), 10**350), (("looks", 0, "utility", "drift"), -(10**350)),
        (("looks", 0, "sets", 0, "images"), []), (("looks", 0, "model"), []),
        (("models", 0, "source"), 5), (("models",), []), (("prompts",), []),
        (("plan", "generation", "steps"), 10**350), (("versions",), 5),
        (("looks", 1, "sets", 0, "scores", 0, "flagged", 0), {}),
    ],
)  # fmt: skip
def test_a_report_with_a_hostile_value_is_compared_or_refused(report, tmp_path, path, item):
    survives(report, tmp_path, path, item)


@pytest.mark.reliability
@pytest.mark.timeout(3600)
def test_a_report_with_any_value_replaced_is_compared_or_refused(report, tmp_path, capsys):
    places = list(leaves(report))
    for path in places:
        for item in HOSTILE:
            survives(report, tmp_path, path, item)
    with capsys.disabled():
        print(f"{len(places) * len(HOSTILE)} mutated reports: compared or refused in one line")


@pytest.mark.parametrize("item", [x for x in HOSTILE if x is not None])
@pytest.mark.parametrize("name", ["step", "harm", "simulations"])
def test_a_step_s_record_is_read_or_refused(name, item):
    if (name, item) in (("simulations", []), ("harm", 1e308), ("harm", -1)):
        StepRecord.from_json({**STEP, name: item})
    else:
        with pytest.raises(RunError, match="a step's record"):
            StepRecord.from_json({**STEP, name: item})


def test_a_hundred_thousand_names_are_compared_in_a_second():
    names = [str(number) for number in range(100_000)]
    started = time.perf_counter()
    check_distinct("probe", "attacks", names)
    with pytest.raises(ConfigError, match="'7'"):
        check_distinct("probe", "attacks", [*names, "7"])
    assert time.perf_counter() - started < 10  # one by one: hours


@pytest.mark.parametrize(
    "machine", [{}, {"threads": 10**12, "instructions": "AVX2", "torch": "2"},
                {"threads": [1], "instructions": "AVX2", "torch": "2"},
                {"threads": 1, "instructions": None, "torch": "2"}],
)  # fmt: skip
def test_a_machine_of_a_million_threads_is_refused(run, machine):
    (run / "machine.json").write_text(json.dumps(machine))
    with RunFolder.open(run) as opened, pytest.raises(RunError, match=r"machine\.json is damaged"):
        opened.machine({"threads": 1, "instructions": "AVX2", "torch": "2"})


def test_records_without_a_step_do_not_count(run):
    with RunFolder.open(run) as opened:
        opened.append(STEP)
        opened.save_state(1, {}, {})
    for step in (None, [[]], "1", True):
        (run / "steps.jsonl").write_text(json.dumps({**STEP, "step": step}) + "\n")
        records = RunFolder.open(run, read_only=True).records()
        assert [record["step"] for record in records] == [1]


def test_kernels_of_another_kind_are_refused(monkeypatch):
    from resalign.backend.model.kernels import choose_kernels
    from resalign.backend.plan.kernels import KernelConfig

    network = torch.nn.Linear(1, 1)
    for began in ({}, {"attention": "sdpa"}, {"unknown": 1}):
        with pytest.raises(ConfigError, match=r"kernels\.json"):
            choose_kernels(network, KernelConfig(), print, began=began)
