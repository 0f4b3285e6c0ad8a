"""Checkpoints under test: files, which are loaded when their turn comes, and loaded models."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from ..adapter.dense import AnyAdapter
from ..adapter.lora import Adapter
from ..adapter.merge_in_place import merged
from ..checkpoint.detect import detect
from ..checkpoint.hashing import source_hashes
from ..checkpoint.info import CheckpointInfo
from ..checkpoint.inspect import inspect
from ..checkpoint.load import load_checkpoint
from ..errors import ConfigError, RunError
from ..model.model import Model
from ..plan.methods import is_test_run, of_test_run, steps_of_test_run
from ..plan.probe import ProbeCheckpoint
from ..progress import ProgressCallback, silent
from ..run.folder import RunFolder
from .results import ModelInfo


class Subject(Protocol):
    """A checkpoint under test. The probe opens one at a time."""

    @property
    def info(self) -> ModelInfo: ...

    def opened(self) -> AbstractContextManager[Model]:
        """Yield the loaded model; inside, the probe may change its weights, and restores them."""
        ...


class FileSubject:
    """A checkpoint file or diffusers folder. Reading its SHA-256 takes seconds per GB.

    checkpoint: as it was recognised.
    """

    def __init__(
        self,
        checkpoint: ProbeCheckpoint,
        device: str = "cpu",
        *,
        on_progress: ProgressCallback = silent,
    ) -> None:
        self._device = device
        self.checkpoint = detect(
            checkpoint.path, prediction=checkpoint.prediction, parts=checkpoint.parts
        )
        found = inspect(self.checkpoint, hash=True, on_progress=on_progress)
        self.info = ModelInfo(
            name=checkpoint.name,
            source=self.checkpoint.path.name,
            sha256=found.sha256,
            family=found.family,
            method=_method_of(found.hardened),
            role=checkpoint.role,
        )

    @contextmanager
    def opened(self) -> Iterator[Model]:
        with loaded(self.checkpoint, self._device) as model:
            yield model


class RunSubject:
    """A finished hardening run: its checkpoint with its adapter merged in, without an export.

    checkpoint: the one that it hardens, as it was recognised. parts: files of its components that
    the run's job named.
    """

    def __init__(
        self,
        checkpoint: ProbeCheckpoint,
        device: str = "cpu",
        *,
        on_progress: ProgressCallback = silent,
    ) -> None:
        run = RunFolder.open(checkpoint.path, read_only=True)
        done, total = run.steps_saved, run.plan.outer_steps
        if run.job is None:
            raise RunError(f"{checkpoint.name}: {run.path} does not say what it hardened")
        if done < total:
            raise RunError(
                f"{checkpoint.name}: {run.path} stopped after step {done} of {total}: resume it "
                "first, then probe it"
            )
        self._device, self.parts = device, run.job.parts
        self.checkpoint = detect(
            run.job.checkpoint, prediction=run.job.prediction, parts=self.parts
        )
        self._adapter, _ = run.load_adapter()
        if run.source():
            hashes = source_hashes(self.checkpoint, on_progress=on_progress)
            run.check_source(hashes, self.checkpoint.path)
        found = inspect(self.checkpoint)
        test = of_test_run(total) if is_test_run(run.plan) else ""
        self.info = ModelInfo(
            name=checkpoint.name,
            source=self.checkpoint.path.name,
            family=found.family,
            method=f"adapter of a run{test}, {adapter_digest(self._adapter)}",
            role=checkpoint.role,
        )

    @contextmanager
    def opened(self) -> Iterator[Model]:
        with loaded(self.checkpoint, self._device) as model, merged(model, self._adapter):
            yield model


class LoadedSubject:
    """A model in memory, with an adapter merged into it or as it is."""

    def __init__(self, name: str, model: Model, adapter: AnyAdapter | None = None) -> None:
        self._model, self._adapter = model, adapter
        self.info = ModelInfo(
            name=name,
            source=model.source.name if model.source else "",
            family=model.family.name,
            method="" if adapter is None else f"adapter in memory, {adapter_digest(adapter)}",
        )

    @contextmanager
    def opened(self) -> Iterator[Model]:
        if self._adapter is None:
            yield self._model
            return
        with merged(self._model, self._adapter) as model:
            yield model


def _method_of(hardened: Mapping[str, Any]) -> str:
    """Return the method in a file's header; one that a test run applied says so."""
    steps = steps_of_test_run(hardened.get("training"))
    return str(hardened.get("method", "")) + (of_test_run(steps) if steps else "")


def subject_of(
    checkpoint: ProbeCheckpoint, device: str = "cpu", *, on_progress: ProgressCallback = silent
) -> Subject:
    """Make the subject of a path: a checkpoint's file or folder, or a hardening run's folder."""
    if (Path(checkpoint.path) / "plan.json").is_file():
        return RunSubject(checkpoint, device, on_progress=on_progress)
    return FileSubject(checkpoint, device, on_progress=on_progress)


@contextmanager
def loaded(checkpoint: Path | CheckpointInfo, device: str) -> Iterator[Model]:
    """Load a checkpoint, and free its memory on leaving."""
    holder: list[Any] = [load_checkpoint(checkpoint, device=device)]
    try:
        yield holder[0]
    finally:
        holder.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def check_subjects(subjects: Sequence[Subject]) -> None:
    """Raise a ConfigError unless names differ and all are of the original's family."""
    infos = [subject.info for subject in subjects]
    if not infos:
        raise ConfigError("probe: no checkpoint was given")
    names = [info.name for info in infos]
    if len(set(names)) < len(names):
        raise ConfigError(f"probe: checkpoints need different names, these are {', '.join(names)}")
    for info in infos[1:]:
        if info.family != infos[0].family:
            raise ConfigError(
                f"probe: {info.name} is of family {info.family}, {names[0]} of {infos[0].family}; "
                "only checkpoints of one family compare"
            )


def adapter_digest(adapter: AnyAdapter) -> str:
    """Return an adapter's digest: no probe may be resumed with another adapter's evaluations."""
    kind = f"{adapter.rank} {adapter.alpha}" if isinstance(adapter, Adapter) else "dense"
    found = hashlib.sha256(kind.encode())
    for name, tensor in sorted(adapter.tensors.items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().double().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]
