"""The folder of a run, which survives a crash at any moment.

    job.json               checkpoint, output, device (absent where a host runs a bare plan)
    plan.json              the plan, every default spelled out
    checkpoint.json        SHA-256 of the checkpoint's files, where it came from files
    machine.json           threads and versions that it began with (see numerics/determinism.py)
    kernels.json           kernels that it trains with (see model/kernels.py)
    steps.jsonl            one record per outer step, appended and flushed
    state.safetensors      all that continuing needs, as of the last saved step
    adapter.safetensors    the result, once all steps are done
    outputs.json           the files that the run was writing when it was stopped
    run.lock, run.pid      held by the process that works on the run, and its number

The state is written beside the old one, synced, and put in its place in one move. A killed run
therefore loses the steps since the last save and nothing else. The state holds the records up to
its step, the machine and the kernels, so that `steps.jsonl`, `machine.json`, `kernels.json` and the
adapter are made again from it where they are missing or damaged. Every file has a checksum
(`sealed.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..adapter.dense import AnyAdapter, DenseAdapter
from ..adapter.lora import Adapter
from ..errors import RunError
from ..plan.auto import decided_as, undecided
from ..plan.hardening import HardeningPlan
from ..plan.job import Job
from ..plan.methods import FACTS
from ..text import typed
from . import json_lines
from .files import explained, make_folder, read_file, replace_file, sync
from .kept_records import kept_records, pack, up_to
from .lock import RunLock
from .rebuild import adapter_of_state, last_stage
from .sealed import read_header, read_json, read_tensors, write_json, write_tensors
from .stored import check_same_plan, key_of, read_job, read_plan, write_work
from .trust import is_marked

STEPS, STATE, ADAPTER = "steps.jsonl", "state.safetensors", "adapter.safetensors"
MACHINE, KERNELS = "machine.json", "kernels.json"
SOURCE, OUTPUTS = "checkpoint.json", "outputs.json"
_MOST_THREADS = 4096
_RECORDS = "records"  # tensor of the state: the records up to its step, compressed


class RunFolder:
    """A run on disk. Use as a context manager, or call `close`, to release the lock."""

    def __init__(self, path: Path, plan: HardeningPlan, job: Job | None, lock: RunLock | None):
        self.path, self.plan, self.job = path, plan, job
        self._lock = lock
        self._key = key_of(plan)
        self._known: list[dict[str, Any]] | None = None  # the records so far
        self._remembered: dict[str, Any] = {}  # contents of the files that the state repeats

    @classmethod
    def create(cls, path: Path | str, work: Job | HardeningPlan) -> RunFolder:
        """Begin a run. A folder prepared for the same plan in which no step was saved is reused.

        work: a job, or just a plan if the caller keeps track of the checkpoint itself.
        """
        path = Path(path)
        plan, job = (work.plan, work) if isinstance(work, Job) else (work, None)
        make_folder(path, "run folder")
        lock = RunLock(path)
        try:
            if (path / "plan.json").exists():
                check_same_plan(path, read_plan(path), plan)
            if (path / STATE).exists():
                raise RunError(
                    f"{path} already holds a run of this plan: continue it with "
                    f"`resalign resume {path}`, or choose another run folder"
                )
            with explained(path / STEPS):
                for name in (STEPS, SOURCE, OUTPUTS):
                    (path / name).unlink(missing_ok=True)
            write_work(path, plan, job)
            return cls(path, plan, job or read_job(path, plan), lock)
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
            stored = read_plan(path)
            if plan is not None:
                check_same_plan(path, stored, plan)
            return cls(path, stored, read_job(path, stored), lock)
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
            check_same_plan(folder.path, folder.plan, plan)
            return folder
        exists = (Path(folder) / "plan.json").is_file()
        return cls.open(folder, plan) if exists else cls.create(folder, plan)

    def decide(self, plan: HardeningPlan) -> None:
        """Write down what the device makes of every `auto`. plan: the folder's own, decided."""
        if undecided(self.plan):
            self._check_writable()
            job = None if self.job is None else replace(self.job, plan=plan)
            write_work(self.path, plan, job)
            self.plan, self.job, self._key = plan, job, key_of(plan)

    @property
    def is_ours(self) -> bool:
        """Return True if this user began the run on this machine, as `trust` knows it."""
        path = self.path / "job.json"
        return path.exists() and is_marked(read_json(path, self._key), self._key)

    def machine(self, now: dict[str, Any]) -> dict[str, Any]:
        """Return the machine that the run began on; record `now` if none was recorded yet."""
        self._check_writable()
        found = self._repeated(MACHINE)
        if found is not None:
            _check_machine(self.path / MACHINE, found)
        if found is None:
            found = now
            write_json(self.path / MACHINE, found, self._key)
        self._remembered[MACHINE] = found
        return found

    def kernels(self) -> dict[str, Any] | None:
        """Return the kernels that were last chosen for the run."""
        return self._repeated(KERNELS)

    def save_kernels(self, chosen: Mapping[str, Any]) -> None:
        self._check_writable()
        write_json(self.path / KERNELS, chosen, self._key)
        self._remembered[KERNELS] = dict(chosen)

    def source(self) -> dict[str, str]:
        """Return the SHA-256 of the checkpoint's files by name; empty if they were not recorded."""
        if not (self.path / SOURCE).exists():
            return {}
        return {str(k): str(v) for k, v in read_json(self.path / SOURCE, self._key).items()}

    def keep_source(self, hashes: Mapping[str, str]) -> None:
        """Record the checkpoint's files, before the first step is saved."""
        self._check_writable()
        write_json(self.path / SOURCE, hashes, self._key)

    def check_source(self, hashes: Mapping[str, str], path: Path) -> None:
        """Raise a RunError unless these are the files that the run hardens.

        hashes: of `path`, by name. A single file may have been renamed.
        """
        kept = self.source()
        same = kept == dict(hashes)
        if len(kept) == len(hashes) == 1:
            same = [*kept.values()] == [*hashes.values()]
        if kept and not same:
            raise RunError(
                f"{path} is not the checkpoint that {self.path} hardens: its SHA-256 has changed "
                "since the run began; put the original back, or begin a new run"
            )

    def writing(self) -> tuple[Path, ...]:
        """Return the outputs that this run was writing when it was stopped.

        Of a run that this user did not begin there are none: its folder may name any file.
        """
        if not (self.path / OUTPUTS).exists() or not self.is_ours:
            return ()
        found = read_json(self.path / OUTPUTS, self._key).get("writing")
        return tuple(Path(str(name)) for name in found) if isinstance(found, list) else ()

    def begin_outputs(self, paths: Iterable[Path]) -> None:
        """Record that these files are the run's own, so that an interrupted export is finished."""
        self._check_writable()
        names = sorted({str(path.absolute()) for path in paths})
        write_json(self.path / OUTPUTS, {"writing": names}, self._key)

    def end_outputs(self) -> None:
        with explained(self.path / OUTPUTS, "removed"):
            (self.path / OUTPUTS).unlink(missing_ok=True)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one step's record (it must have `step`); figures that are not finite become null."""
        self._check_writable()
        known = self._known_records()
        json_lines.append(self.path / STEPS, record)
        known.append(json_lines.finite(record))

    def records(self) -> list[dict[str, Any]]:
        """Return the records so far, without a last line that was cut off by a crash."""
        if not (self.path / STATE).exists():
            return json_lines.read(self.path / STEPS)
        step, tensors, _ = self._read_state()
        kept = self._kept_records(step, tensors)
        try:
            return [*kept, *json_lines.read(self.path / STEPS)[len(kept) :]]
        except RunError:  # damaged after the state's records
            return kept

    def save_state(
        self, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Replace the saved state. values: anything JSON can hold (NaN and infinity included)."""
        self._check_writable()
        records = up_to(self._known_records(), step)
        if (self.path / STEPS).exists():
            sync(self.path / STEPS)
        packed = pack(records)
        header = {"step": step, "values": dict(values), "files": self._remembered}
        write_tensors(self.path / STATE, {**tensors, _RECORDS: packed}, header, self._owner)

    def load_state(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """Return (step, tensors, values) of the last saved step; None if no step was saved.

        The records of the folder are made those up to that step, unless it was opened read-only.
        """
        state, records = None, []
        if (self.path / STATE).exists():
            step, tensors, header = self._read_state()
            state = step, tensors, header["values"]
            records = self._kept_records(step, tensors)
            tensors.pop(_RECORDS, None)
            self._remembered = {**header.get("files", {}), **self._remembered}
        if self._lock is not None:
            path, lines = self.path / STEPS, b"".join(map(json_lines.line_of, records))
            if (read_file(path) if path.is_file() else b"") != lines:
                replace_file(path, lines)
            self._known = records
        return state

    def save_adapter(self, adapter: AnyAdapter, metadata: Mapping[str, Any] | None = None) -> Path:
        """Write the current adapter in our own names; return the file."""
        self._check_writable()
        own: dict[str, Any] = {"kind": "dense"}
        if isinstance(adapter, Adapter):
            own = {"rank": adapter.rank, "alpha": adapter.alpha}
        header = {**own, "metadata": dict(metadata or {})}
        write_tensors(self.path / ADAPTER, adapter.tensors, header, self._owner)
        return self.path / ADAPTER

    def load_adapter(self) -> tuple[AnyAdapter, dict[str, Any]]:
        """Load the adapter of the last save, and its metadata.

        It is made again from the state where its file is missing or damaged; a dense one cannot,
        as it is a difference from the original weights: `finished` is then False.
        """
        damage: RunError | None = None
        if (self.path / ADAPTER).exists():
            try:
                tensors, header = read_tensors(self.path / ADAPTER, self._owner)
                if header.get("kind") == "dense":
                    return DenseAdapter(tensors), header["metadata"]
                return Adapter(tensors, header["rank"], header["alpha"]), header["metadata"]
            except KeyError as error:
                damage = RunError(f"{self.path / ADAPTER} is damaged: it has no {error}")
            except RunError as error:
                damage = error
        rebuilt = self._rebuilt_adapter()
        if rebuilt is not None:
            return rebuilt
        raise damage or RunError(
            f"{self.path} has no adapter yet: `resalign resume {self.path}` continues the run"
        )

    @property
    def finished(self) -> bool:
        """Return True if every step is saved, and the adapter is there or made from the states.

        A change of all weights, also of a stage before, is not in any state: resuming makes it
        again if its file is missing or damaged.
        """
        if self.steps_saved < self.plan.outer_steps:
            return False
        try:
            self.load_adapter()
        except RunError:
            return False
        return True

    @property
    def steps_saved(self) -> int:
        """Return the number of outer steps in the saved state; `plan.outer_steps` when finished."""
        if not (self.path / STATE).exists():
            return 0
        step = read_header(self.path / STATE).get("step")
        if type(step) is not int or step < 0:
            raise RunError(f"{self.path / STATE} is damaged: it has no step")
        return step

    @property
    def _owner(self) -> str:
        """Return what the tensors of this run belong to: its plan and its checkpoint."""
        return " ".join([self._key, *sorted(self.source().values())])

    def _read_state(self) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
        path = self.path / STATE
        tensors, header = read_tensors(path, self._owner)
        if type(header.get("step")) is not int or not isinstance(header.get("values"), dict):
            raise RunError(f"{path} is damaged: it has no step and values")
        if header["step"] > self.plan.outer_steps:
            raise RunError(
                f"{path} is the state after step {header['step']}, and the plan has "
                f"{self.plan.outer_steps}: it belongs to another run"
            )
        return header["step"], tensors, header

    def _rebuilt_adapter(self) -> tuple[AnyAdapter, dict[str, Any]] | None:
        if FACTS[self.plan.method].dense or not (self.path / STATE).exists():
            return None
        step, tensors, _ = self._read_state()
        earlier = None
        if self.plan.before:
            with RunFolder.open(last_stage(self.path, self.plan), read_only=True) as stage:
                earlier, _ = stage.load_adapter()
        adapter = adapter_of_state(self.plan.adapter, tensors, earlier)
        return None if adapter is None else (adapter, {"step": step})

    def _repeated(self, name: str) -> dict[str, Any] | None:
        """Return a file that the state repeats; the state's copy if it is missing or damaged."""
        path, damage = self.path / name, None
        if path.exists():
            try:
                return read_json(path, self._key)
            except RunError as error:
                damage = error
        kept = None
        if (self.path / STATE).exists():
            kept = self._read_state()[2].get("files", {}).get(name)
        if kept is None and damage is not None:
            raise damage
        return kept

    def _known_records(self) -> list[dict[str, Any]]:
        if self._known is None:
            self._known = json_lines.read(self.path / STEPS)
        return self._known

    def _kept_records(self, step: int, tensors: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        return kept_records(self.path / STEPS, step, tensors.get(_RECORDS))

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


def _check_machine(path: Path, found: Mapping[str, Any]) -> None:
    """Raise a RunError unless the record of a machine has what resuming reads of it."""
    try:
        typed.text(found["instructions"], "instructions")
        typed.text(found["torch"], "torch")
        if not 1 <= typed.count(found["threads"], "threads") <= _MOST_THREADS:
            raise ValueError(f"threads is {found['threads']}")
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path} is damaged ({error}): put the original back") from None


def begun_with(folder: RunFolder | Path | str | None, plan: HardeningPlan) -> HardeningPlan:
    """Replace every `auto` of a plan by what the run in this folder began with, if there is one."""
    if isinstance(folder, RunFolder):
        return decided_as(plan, folder.plan)
    if folder is None or not (Path(folder) / "plan.json").is_file():
        return plan
    return decided_as(plan, read_plan(Path(folder)))
