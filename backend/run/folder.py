"""The folder of a run, which survives a crash at any moment.

    job.json               checkpoint, output, device (absent where a host runs a bare plan)
    plan.json              the plan, every default spelled out
    machine.json           threads and versions that it began with (see numerics/determinism.py)
    kernels.json           kernels that it trains with (see model/kernels.py)
    steps.jsonl            one record per outer step, appended and flushed
    state.safetensors      all that continuing needs, as of the last saved step
    adapter.safetensors    the adapter of that step; the result, once all steps are done
    run.lock, run.pid      held by the process that works on the run, and its number

The state is written beside the old one, synced, and put in its place in one move, after the
records up to its step are on disk. A killed run therefore loses the steps since the last save
and nothing else: `load_state` also cuts the records back to the saved step.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..adapter.dense import AnyAdapter, DenseAdapter
from ..adapter.lora import Adapter
from ..errors import ConfigError, RunError
from ..plan.file import differences, from_json, plan_hash, to_json
from ..plan.hardening import HardeningPlan
from ..plan.job import Job
from . import json_lines
from .lock import RunLock

STEPS, STATE, ADAPTER = "steps.jsonl", "state.safetensors", "adapter.safetensors"
MACHINE, KERNELS = "machine.json", "kernels.json"
_HEADER = "resalign"  # the one metadata key, holding JSON: safetensors shuffles several keys


class RunFolder:
    """A run on disk. Use as a context manager, or call `close`, to release the lock."""

    def __init__(self, path: Path, plan: HardeningPlan, job: Job | None, lock: RunLock | None):
        self.path, self.plan, self.job = path, plan, job
        self._lock = lock

    @classmethod
    def create(cls, path: Path | str, work: Job | HardeningPlan) -> RunFolder:
        """Begin a run. A folder prepared for the same plan in which no step was saved is reused.

        work: a job, or just a plan if the caller keeps track of the checkpoint itself.
        """
        path = Path(path)
        plan, job = (work.plan, work) if isinstance(work, Job) else (work, None)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"run folder {path} cannot be created: {error}") from None
        lock = RunLock(path)
        try:
            if (path / "plan.json").exists():
                _check_same_plan(path, _read_plan(path), plan)
                if (path / STATE).exists():
                    raise RunError(
                        f"{path} already holds a run of this plan: continue it with "
                        f"`resalign resume {path}`, or choose another run folder"
                    )
            (path / STEPS).unlink(missing_ok=True)
            write_json(path / "plan.json", to_json(plan))
            if job is not None:
                without_plan = {k: v for k, v in to_json(job).items() if k != "plan"}
                write_json(path / "job.json", without_plan)
            return cls(path, plan, job or _read_job(path, plan), lock)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def open(
        cls, path: Path | str, plan: HardeningPlan | None = None, *, read_only: bool = False
    ) -> RunFolder:
        """Open an existing run; with `plan`, only if it is that plan's.

        read_only: no lock, and nothing is changed; works while the run is under way.
        """
        path = Path(path)
        if not (path / "plan.json").is_file():
            raise RunError(f"{path} is not a run folder: it has no plan.json")
        lock = None if read_only else RunLock(path)
        try:
            stored = _read_plan(path)
            if plan is not None:
                _check_same_plan(path, stored, plan)
            return cls(path, stored, _read_job(path, stored), lock)
        except BaseException:
            if lock:
                lock.release()
            raise

    @classmethod
    def of(cls, folder: RunFolder | Path | str | None, plan: HardeningPlan) -> RunFolder | None:
        """Open the folder's run of this plan; create it if there is none."""
        if folder is None:
            return None
        if isinstance(folder, RunFolder):
            _check_same_plan(folder.path, folder.plan, plan)
            return folder
        exists = (Path(folder) / "plan.json").is_file()
        return cls.open(folder, plan) if exists else cls.create(folder, plan)

    def machine(self, now: dict[str, Any]) -> dict[str, Any]:
        """Return the machine that the run began on; record `now` if none was recorded yet."""
        self._check_writable()
        path = self.path / MACHINE
        if not path.exists():
            write_json(path, now)
        return read_json(path)

    def kernels(self) -> dict[str, Any] | None:
        """Return the kernels that were last chosen for the run."""
        return read_json(self.path / KERNELS) if (self.path / KERNELS).exists() else None

    def save_kernels(self, chosen: Mapping[str, Any]) -> None:
        self._check_writable()
        write_json(self.path / KERNELS, dict(chosen))

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one step's record (it must have `step`); figures that are not finite become null."""
        self._check_writable()
        json_lines.append(self.path / STEPS, record)

    def records(self) -> list[dict[str, Any]]:
        """Return the records so far, without a last line that was cut off by a crash."""
        return json_lines.read(self.path / STEPS)

    def save_state(
        self, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Replace the saved state. values: anything JSON can hold (NaN and infinity included)."""
        self._check_writable()
        if (self.path / STEPS).exists():
            _sync(self.path / STEPS)
        header = {"step": step, "values": dict(values)}
        _write_tensors(self.path / STATE, tensors, header)

    def load_state(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """Return (step, tensors, values) of the last saved step; None if no step was saved.

        The records after that step are removed, unless the folder was opened read-only.
        """
        state = None
        if (self.path / STATE).exists():
            tensors, header = _read_tensors(self.path / STATE)
            state = header["step"], tensors, header["values"]
        if self._lock is not None:
            last = state[0] if state else 0
            json_lines.cut(self.path / STEPS, lambda record: record["step"] <= last)
        return state

    def save_adapter(self, adapter: AnyAdapter, metadata: Mapping[str, Any] | None = None) -> Path:
        """Write the current adapter in our own names; return the file."""
        self._check_writable()
        own = {"kind": "dense"}
        if isinstance(adapter, Adapter):
            own = {"rank": adapter.rank, "alpha": adapter.alpha}
        header = {**own, "metadata": dict(metadata or {})}
        _write_tensors(self.path / ADAPTER, adapter.tensors, header)
        return self.path / ADAPTER

    def load_adapter(self) -> tuple[AnyAdapter, dict[str, Any]]:
        """Load the adapter of the last save, and its metadata."""
        if not (self.path / ADAPTER).exists():
            raise RunError(
                f"{self.path} has no adapter yet: `resalign resume {self.path}` continues the run"
            )
        tensors, header = _read_tensors(self.path / ADAPTER)
        if header.get("kind") == "dense":
            return DenseAdapter(tensors), header["metadata"]
        return Adapter(tensors, header["rank"], header["alpha"]), header["metadata"]

    @property
    def steps_saved(self) -> int:
        """Return the number of outer steps in the saved state; `plan.outer_steps` when finished."""
        return _read_header(self.path / STATE)["step"] if (self.path / STATE).exists() else 0

    def close(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_writable(self) -> None:
        if self._lock is None:
            raise RuntimeError(f"{self.path} was opened read-only or is closed")


def _check_same_plan(path: Path, stored: HardeningPlan, plan: HardeningPlan) -> None:
    if plan_hash(stored) != plan_hash(plan):
        fields = "; ".join(differences(to_json(stored), to_json(plan))[:5])
        raise RunError(
            f"{path} belongs to another plan ({fields}): choose another run folder, or resume it "
            "with its own plan"
        )


def _read_plan(path: Path) -> HardeningPlan:
    try:
        return from_json(HardeningPlan, read_json(path / "plan.json"), where="plan")
    except ConfigError as error:
        raise RunError(f"{path / 'plan.json'} was written by another version: {error}") from None


def _read_job(path: Path, plan: HardeningPlan) -> Job | None:
    if not (path / "job.json").exists():
        return None
    try:
        return from_json(Job, {**read_json(path / "job.json"), "plan": to_json(plan)})
    except ConfigError as error:
        raise RunError(f"{path / 'job.json'} was written by another version: {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a run's or probe's folder; raise a RunError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}") from None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, synced."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    _replace(temporary, path)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], header: dict[str, Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    plain = {name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)}
    save_file(plain, temporary, metadata={_HEADER: json.dumps(header)})
    _replace(temporary, path)


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Copy tensors to memory of their own: the library's are views of the mapped file, aligned as
    its header happens to end, and Windows cannot replace a file that is mapped."""
    header = _read_header(path)
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}, header  # noqa: SIM118


def _read_header(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()[_HEADER])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged and cannot be read: {error}") from None


def _replace(temporary: Path, path: Path) -> None:
    """Move a finished file into place; its bytes and its name are on disk afterwards."""
    _sync(temporary)
    os.replace(temporary, path)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
