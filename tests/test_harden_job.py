"""harden_job: one assembly of a run for files and loaded models, with the engine replaced."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from resalign.backend.adapter.lora import Adapter
from resalign.backend.errors import ConfigError, RunError
from resalign.backend.jobs import harden as module
from resalign.backend.jobs.check import CheckReport
from resalign.backend.jobs.device import DeviceMemoryError
from resalign.backend.jobs.follow import follow
from resalign.backend.jobs.harden import harden_job, stored_job
from resalign.backend.jobs.previews import PreviewSettings
from resalign.backend.parallel.ranks import SingleProcess
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.job import Job
from resalign.backend.progress import Progress
from resalign.backend.run.records import StepRecord
from resalign.backend.worker.serve import judge

PLAN = HardeningPlan(concepts=(Concept("weapon", ("a pistol",)),), outer_steps=3, warm_up_steps=3)
REPORT = CheckReport(problems=(), warnings=("careful",), checkpoint="m", device="cpu", images={})


def record(step):
    return StepRecord(
        step=step, harm=0.1, retain=0.1, resilience_weight=0.0, retain_weight=1.0,
        learning_rate=1e-4, gradient_norm=1.0, seconds=0.1,
    )  # fmt: skip


class Engine:
    """Takes steps without a network, and notes what it was given."""

    def __init__(self):
        self.models, self.loaded, self.checked = [], [], []
        self.error: BaseException | None = None

    def harden(self, model, plan, *, run_folder, on_progress, ranks):
        self.models.append(model)
        if run_folder is not None:
            for step in range(run_folder.steps_saved + 1, plan.outer_steps + 1):
                run_folder.append(record(step).to_json())
                run_folder.save_state(step, {"x": torch.zeros(1)}, {})
                if self.error is not None:
                    raise self.error
                values = record(step).values()
                on_progress(Progress(stage="harden", step=step, total=3, values=values))
            run_folder.save_adapter(Adapter({}, rank=4, alpha=4.0))
        return SimpleNamespace(warnings=("no relapse", "careful"), seconds=1.5)

    def load(self, path, *, device, **types):
        self.loaded.append((str(path), device))
        return SimpleNamespace(resolution=64)

    def check(self, job, **options):
        self.checked.append(options)
        return REPORT


@pytest.fixture
def engine(monkeypatch):
    fake = Engine()
    monkeypatch.setattr("resalign.backend.hardening.run.harden", fake.harden)
    monkeypatch.setattr("resalign.backend.checkpoint.load.load_checkpoint", fake.load)
    monkeypatch.setattr(module, "check_job", fake.check)
    return fake


@pytest.fixture
def job(tmp_path):
    output = str(tmp_path / "out.safetensors")
    return Job(checkpoint=str(tmp_path / "m.safetensors"), output=output, plan=PLAN)


def test_a_job_is_checked_loaded_and_run_once(engine, job, tmp_path):
    ready = []
    found = harden_job(job, on_ready=lambda run, report: ready.append((run.steps_saved, report)))
    assert engine.loaded == [(job.checkpoint, "cpu")], "on the device that `auto` stands for"
    assert ready == [(0, REPORT)]
    assert found.folder == tmp_path / "out.safetensors.run" and len(found.records) == 3
    assert found.warnings == ("careful", "no relapse"), "each once"
    assert stored_job(found.folder).device == "cpu"
    again = harden_job(job)
    assert len(engine.models) == 1 and again.seconds is None and again.records == found.records


def test_encoders_are_spared_unless_previews_need_them(engine, job, tmp_path, monkeypatch):
    drawn = []

    class Previews:
        def __init__(self, settings, model, plan): ...

        def begin(self, step):
            drawn.append(("begin", step))

        def __call__(self, progress):
            drawn.append(progress.step)

    monkeypatch.setattr(module, "Previews", Previews)
    show = PreviewSettings(show=lambda *_, **__: None, every=2)
    for number, previews in enumerate((None, replace(show, every=0), show)):
        harden_job(job, folder=tmp_path / str(number), previews=previews)
    assert [model.spare_encoders for model in engine.models] == [True, True, False]
    assert drawn == [("begin", 0), 1, 2, 3]


def test_a_loaded_model_is_built_only_where_steps_are_left(engine, tmp_path):
    opened = []

    @contextmanager
    def model():
        opened.append("in")
        yield SimpleNamespace(resolution=64)
        opened.append("out")

    for _ in range(2):
        harden_job(PLAN, folder=tmp_path, model=model())
    assert opened == ["in", "out"]
    assert engine.checked == [] and engine.loaded == [], "a host has checked its own model"
    assert engine.models[0].spare_encoders
    with pytest.raises(RunError, match="continue it there"):
        stored_job(tmp_path)


def test_a_full_device_is_explained_for_a_job_and_left_to_the_host_for_its_model(
    engine, job, tmp_path
):
    engine.error = torch.cuda.OutOfMemoryError("CUDA out of memory.\nmore")
    with pytest.raises(DeviceMemoryError, match=r"memory of cpu is full .*gradient_chec") as found:
        harden_job(job)
    assert judge(found.value)[0] == "memory"

    @contextmanager
    def model():
        yield SimpleNamespace()

    with pytest.raises(torch.cuda.OutOfMemoryError):
        harden_job(PLAN, folder=tmp_path / "other", model=model())


def test_a_folder_is_begun_or_continued_as_asked(engine, job, tmp_path):
    with pytest.raises(RunError, match="not a run folder"):
        harden_job(job, start="resume")
    engine.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        harden_job(job, start="new")
    with pytest.raises(RunError, match="already holds a run"):
        harden_job(job, start="new")
    with pytest.raises(RunError, match=r"holds a run on .*, not on"):
        harden_job(replace(job, checkpoint="other"))
    engine.error = None
    found = harden_job(job, start="resume")
    assert [record.step for record in found.records] == [1, 2, 3]
    assert [options["resuming"] for options in engine.checked] == [False, False, True]


def test_a_run_that_a_host_began_is_continued_by_a_job_only_where_that_is_asked_for(
    engine, job, tmp_path
):
    """The host has then compared its model with the job's checkpoint."""
    folder = tmp_path / "run"

    @contextmanager
    def opened():
        yield SimpleNamespace(resolution=64)

    engine.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        harden_job(PLAN, folder=folder, model=opened())
    engine.error = None
    with pytest.raises(RunError, match="a model that a program had loaded"):
        harden_job(job, folder=folder)
    assert len(harden_job(job, folder=folder, adopt=True).records) == 3
    assert stored_job(folder).checkpoint == job.checkpoint
    other = replace(job, checkpoint=str(tmp_path / "other.safetensors"))
    with pytest.raises(RunError, match="not on"):
        harden_job(other, folder=folder, adopt=True)


def test_problems_stop_a_job_before_its_folder_is_made(engine, job, monkeypatch, tmp_path):
    monkeypatch.setattr(
        module, "check_job", lambda job, **_: replace(REPORT, problems=("no disk", "no images"))
    )
    with pytest.raises(ConfigError, match="no disk; no images"):
        harden_job(job)
    assert not any(tmp_path.iterdir())


def test_other_ranks_take_part_in_what_the_first_one_shares(engine, job):
    class Rank(SingleProcess):
        """Hears what the first rank shares, and is placed on a GPU of its own."""

        heard: list = []  # noqa: RUF012

        def share(self, value, classes=()):
            if value is not None:
                self.heard.append(value)
            return value if value is not None else (self.heard or [None])[-1]

        def place(self, device):
            return f"{device}:7"

    harden_job(job, ranks=Rank())
    follow(Rank())
    assert engine.loaded == [(job.checkpoint, "cpu:7")] * 2
    assert engine.models[1].spare_encoders
    Rank.heard.clear()
    follow(Rank())
    assert len(engine.models) == 2, "nothing is left to do"
