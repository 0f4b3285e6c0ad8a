"""Reads hardening runs and probes from their folders, without loading a tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from ...backend.checkpoint.header import read_header
from ...backend.errors import ResAlignError
from ...backend.plan.methods import FACTS, is_test_run
from ...backend.plan.removal import share_removed
from ...backend.run import json_lines
from ...backend.text import json_text

STEPS = "steps.jsonl"  # a run's records
REPORT, AUDIT = "report.html", "audit.html"  # the pages in a probe's folder
_MARK = " | "  # between name and state; our names do not contain it


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder.

    steps: outer steps saved, of `total`. checkpoint: the file it hardens. prediction: what was
    decided that this predicts. parts: files of its components that were named. whole: its result is
    there, or can be made from the state alone. harms: harm loss of each step where it is finite.
    """

    name: str
    folder: Path
    steps: int
    total: int
    checkpoint: str
    concepts: tuple[str, ...]
    plan: dict[str, Any]
    prediction: str = ""
    whole: bool = True
    parts: Mapping[str, str] = field(default_factory=dict)
    harms: tuple[float, ...] = ()

    @property
    def finished(self) -> bool:
        return self.steps >= self.total and self.whole

    @property
    def is_test(self) -> bool:
        """True for a run that is too short to be of use, such as one of the preset `fast`."""
        method, users = self.plan.get("method", "resalign"), self.plan.get("fine_tunes")
        known = method if method in FACTS else "resalign"
        return is_test_run(SimpleNamespace(method=known, fine_tunes=users, outer_steps=self.total))

    @property
    def changes_all(self) -> bool:
        """True for a run that changes all weights, as Lasting does; no LoRA holds such a change."""
        return _is_dense(self.plan)

    @property
    def removed_nothing(self) -> bool:
        """True for a run whose losses say that the model knows the concepts as before."""
        harm, method = self.plan.get("harm") or {}, self.plan.get("method", "resalign")
        plan = SimpleNamespace(
            method=method, before=self.plan.get("before"),
            harm=SimpleNamespace(loss=harm.get("loss", "ascent"), cap=harm.get("cap", 0.0)),
            outer_steps=self.total,
        )  # fmt: skip
        return method in FACTS and share_removed(plan, self.harms) == 0.0

    @property
    def doubt(self) -> str:
        """Why a finished run is not to be published; empty if nothing here says so."""
        if self.is_test:
            return "test run, not safe to publish"
        return "removed nothing" if self.removed_nothing else ""

    @property
    def label(self) -> str:
        if self.finished:
            state = self.doubt or "finished"
        else:
            state = f"not finished: step {self.steps} of {self.total}"
        return f"{self.name}{_MARK}{state}"


@dataclass(frozen=True, slots=True)
class Probe:
    """A probe's folder. report: its page is there. measured: paths of what it compares.

    hardened: the last of them that is no reference, whose figures an export takes; "" if unknown.
    """

    name: str
    folder: Path
    report: bool
    measured: tuple[str, ...] = ()
    hardened: str = ""

    @property
    def label(self) -> str:
        return self.name if self.report else f"{self.name}{_MARK}probe, not finished"


T = TypeVar("T", bound="Run | Probe")


def read_runs(folder: Path) -> list[Run]:
    """Return the runs below a folder, newest first, without those that cannot be read."""
    found = [_run(path) for path in _newest(folder, "plan.json")]
    return [run for run in found if run is not None]


def read_probes(folder: Path) -> list[Probe]:
    """Return the probes below a folder, newest first."""
    return [
        Probe(path.name, path, (path / REPORT).is_file(), *_measured(path))
        for path in _newest(folder, "*.json")
    ]


def report_of(run: Run | None, probes: Iterable[Probe]) -> Probe | None:
    """Return the newest probe with a report that measured a run. probes: newest first."""
    if run is None:
        return None
    found = (probe for probe in probes if probe.report and str(run.folder) in probe.measured)
    return next(found, None)


def with_adapter(runs: list[Run]) -> list[Run]:
    """Return the runs that have saved something, also unfinished ones."""
    files = ("adapter.safetensors", "state.safetensors")  # the state is enough to make it again
    return [run for run in runs if any((run.folder / name).exists() for name in files)]


def preferred(runs: Iterable[Run]) -> Run | None:
    """Return the run to offer first: the newest finished one without a doubt, else with one.

    One that is not finished is never offered first. runs: newest first.
    """
    finished = [run for run in runs if run.finished]
    return next((run for run in finished if not run.doubt), next(iter(finished), None))


def named(label: Any, entries: Iterable[T]) -> T | None:
    """Return the run or probe of a label, whatever state the label shows."""
    name = str(label or "").partition(_MARK)[0]
    return next((entry for entry in entries if entry.name == name), None)


def _newest(folder: Path, mark: str) -> list[Path]:
    if not folder.is_dir():
        return []
    marked = [(path, next(path.glob(mark), None)) for path in folder.iterdir() if path.is_dir()]
    times = [(mark.stat().st_mtime, path) for path, mark in marked if mark is not None]
    return [path for _, path in sorted(times, key=lambda item: item[0], reverse=True)]


def _run(folder: Path) -> Run | None:
    try:
        plan = json_text.read(folder / "plan.json")
        plan.pop("checksum", None)
        job = folder / "job.json"
        about = json_text.read(job) if job.is_file() else {}
        return Run(
            name=folder.name,
            folder=folder,
            steps=saved_steps(folder),
            total=int(plan["outer_steps"]),
            checkpoint=str(about.get("checkpoint", "")),
            concepts=tuple(str(concept["name"]) for concept in plan["concepts"]),
            plan=plan,
            prediction=str(about.get("prediction", "")),
            parts={name: str(about[name]) for name in ("text_encoder", "vae") if about.get(name)},
            harms=_harms(folder),
            whole=(folder / "adapter.safetensors").exists() or not _is_dense(plan),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ResAlignError):
        return None  # half written, or of another version


def _measured(folder: Path) -> tuple[tuple[str, ...], str]:
    """Return `measured` and `hardened` of a Probe."""
    try:
        given = json_text.read(folder / "job.json")["checkpoints"]
        own = [str(one["path"]) for one in given if not one.get("role")]
        return tuple(str(one["path"]) for one in given), own[-1] if len(own) > 1 else ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ResAlignError):
        return (), ""


def _harms(folder: Path) -> tuple[float, ...]:
    """Return the finite harm losses of the steps."""
    try:
        steps = json_lines.read(folder / STEPS)
        return tuple(float(step["harm"]) for step in steps if step["harm"] is not None)
    except (OSError, ValueError, KeyError, TypeError, ResAlignError):
        return ()


def _is_dense(plan: dict[str, Any]) -> bool:
    """Return whether a method of the plan changes all weights, which no state holds as a change."""
    methods = [plan.get("method", ""), *(stage["method"] for stage in plan.get("before", ()))]
    return any(FACTS[method].dense for method in methods if method in FACTS)


def saved_steps(folder: Path) -> int:
    """Return the outer steps that a run's folder holds; 0 for none."""
    state = folder / "state.safetensors"
    if not state.exists():
        return 0
    return int(json_text.loads(read_header(state).metadata["resalign"])["step"])
