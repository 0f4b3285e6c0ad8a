"""The folder of a probe, which survives a crash at any moment.

    job.json          checkpoints, device and output (absent where a program runs the probe)
    plan.json         the plan, every default spelled out, and the models under test
    prompts.json      every image that an evaluation draws: text, seed, guidance
    looks.jsonl       one `Evaluation` per line, appended when it is complete
    reference.safetensors   what the original draws and predicts: the reference of utility
    pictures/         the kept images
    cache/            encoded image sets, by content
    run.lock          held by the process that works on it
    run.pid           which process that is, for the message to others

A stopped probe continues with the first missing evaluation. The fine-tuning run that it belongs to
is repeated from its start, which takes time and changes nothing. Every file has a checksum
(`run/sealed.py`); a damaged evaluation or reference is made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.cache import clear_leftovers
from ..errors import ConfigError, RunError
from ..plan.file import differences, from_json, to_json
from ..plan.methods import without_test_run
from ..plan.probe import ProbeJob, ProbePlan
from ..run import json_lines
from ..run.files import explained, make_folder, read_file, replace_file, sync
from ..run.lock import RunLock
from ..run.sealed import (
    open_record,
    peek_json,
    read_json,
    read_tensors,
    seal_record,
    write_json,
    write_tensors,
)
from ..run.trust import MARK, is_marked, marked
from ..text import json_text, typed
from .prompts import ImageRequest
from .results import SCHEMA_VERSION, Evaluation, ModelInfo

JOB = "job.json"
PROMPTS = "prompts.json"
PLAN, EVALUATIONS, REFERENCE = "plan.json", "looks.jsonl", "reference.safetensors"
PICTURES, CACHE = "pictures", "cache"
_LONGEST = 24  # characters of a name in a picture's file name


log = logging.getLogger(__name__)

Requests = Mapping[str, Sequence[ImageRequest]]  # by kind of prompt


class ProbeFolder:
    """A probe on disk. Use it as a context manager, or call `close`, to release the lock."""

    def __init__(self, path: Path, lock: RunLock) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def begin(
        cls, path: Path | str, plan: ProbePlan, models: Sequence[ModelInfo], requests: Requests
    ) -> ProbeFolder:
        """Create the folder, or continue the probe of the same plan and models in it."""
        path = Path(path)
        make_folder(path, "probe folder")
        wanted = _record(plan, models)
        lock = RunLock(path)
        try:
            if (path / PLAN).exists():
                _check_same(path, read_json(path / PLAN), wanted)
            else:
                write_json(path / PLAN, wanted)
            _keep_prompts(path, requests)
            _keep_intact(path)
            clear_leftovers(path / CACHE)
            make_folder(path / PICTURES, "folder of pictures")
        except BaseException:
            lock.release()
            raise
        return cls(path, lock)

    @property
    def cache(self) -> Path:
        return self.path / CACHE

    def evaluations(self) -> tuple[Evaluation, ...]:
        """Return the complete evaluations so far, each once."""
        return read_evaluations(self.path)

    def add(self, evaluation: Evaluation) -> None:
        """Append an evaluation and sync the file: a crash right after loses nothing."""
        path = self.path / EVALUATIONS
        record = json_lines.finite(evaluation.to_json())
        json_lines.append(path, seal_record(record, EVALUATIONS, _owner(self.path)))
        sync(path)

    def save_picture(self, image: Tensor, *names: str) -> str:
        """Keep one image, [3, height, width] in 8 bit; return its path within the folder."""
        relative = picture_name(*names)
        with explained(self.path / relative):
            write_png(image, self.path / relative)
        return relative

    def save_reference(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep what the original draws and predicts."""
        write_tensors(self.path / REFERENCE, tensors, {}, _owner(self.path))

    def load_reference(self) -> dict[str, Tensor] | None:
        """Load the saved reference; None if it is missing or damaged, and must be made again."""
        path = self.path / REFERENCE
        try:
            return read_tensors(path, _owner(self.path))[0] if path.exists() else None
        except RunError as error:
            log.warning("%s; it is made again", error)
            return None

    def close(self) -> None:
        self._lock.release()

    def __enter__(self) -> ProbeFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def picture_name(*names: str) -> str:
    """Return the path, within a probe's folder, of the picture with these names."""
    return f"{PICTURES}/{'-'.join(map(_slug, names))}.png"


def write_png(image: Tensor, file: Path | IO[bytes]) -> None:
    """Write one image, [3, height, width] in 8 bit."""
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    Image.fromarray(pixels).save(file, format="PNG")


def _as_before(record: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what earlier versions did not record of a model."""
    models = [
        {**model, "method": without_test_run(str(model.get("method", "")))}
        for model in record.get("models", ())
    ]
    return {**record, "models": models}


def read_plan(path: Path | str) -> tuple[ProbePlan, tuple[ModelInfo, ...]]:
    """Read plan and models of the probe in a folder."""
    path = Path(path)
    if not (path / PLAN).is_file():
        raise RunError(f"{path} is not a probe folder: it has no {PLAN}")
    data = read_json(path / PLAN)
    if "models" not in data:
        raise RunError(f"{path} is not a probe folder: it holds a hardening run")
    if data.get("schema") != SCHEMA_VERSION:
        raise RunError(f"{path / PLAN} was written by another version")
    try:
        plan = from_json(ProbePlan, data["plan"], where="plan")
        models = tuple(ModelInfo(**model) for model in typed.entries(data["models"], "models"))
        if not models:
            raise ValueError("it has no models")
        return plan, models
    except (ConfigError, TypeError, ValueError, KeyError) as error:
        raise RunError(f"{path / PLAN} was written by another version: {error}") from None


def save_job(job: ProbeJob, models: Sequence[ModelInfo]) -> None:
    """Record the files that the probe in `job.output` is about, so that it can be resumed.

    Raises:
        RunError: the folder is another probe's or a hardening run's, whose job file has the same
            name. Nothing is written.
    """
    path = Path(job.output)
    if (path / PLAN).is_file():
        _check_same(path, read_json(path / PLAN), _record(job.plan, models))
    elif (path / JOB).is_file() and read_job(path) is None:
        raise RunError(f"{path} holds a hardening run: choose another folder for the probe")
    make_folder(path, "probe folder")
    write_json(path / JOB, marked(to_json(job)))


def read_job(path: Path | str) -> ProbeJob | None:
    """Read the job of a probe's folder; None if `resalign probe` did not begin it."""
    file = Path(path) / JOB
    if not file.is_file() or "checkpoints" not in peek_json(file):
        return None
    data = read_json(file)
    data.pop(MARK, None)
    try:
        return replace(from_json(ProbeJob, data, where="job"), output=str(path))
    except ConfigError as error:
        raise RunError(f"{file} was written by another version: {error}") from None


def is_ours(path: Path | str) -> bool:
    """Return True if this user began the probe of a folder on this machine."""
    file = Path(path) / JOB
    return file.is_file() and is_marked(read_json(file))


def read_requests(path: Path | str) -> dict[str, tuple[ImageRequest, ...]]:
    """Read every image request of this probe; its prompt files may be gone by now."""
    stored = read_json(Path(path) / PROMPTS, _owner(Path(path)))
    try:
        return {kind: tuple(map(_read_request, rows)) for kind, rows in stored.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise RunError(f"{Path(path) / PROMPTS} is damaged: {error}") from None


def _read_request(row: Any) -> ImageRequest:
    text, seed, guidance = row
    if guidance is not None:
        typed.figure(guidance, "guidance")
    return ImageRequest(typed.text(text, "a prompt"), typed.count(seed, "a seed"), guidance)


def read_evaluations(path: Path) -> tuple[Evaluation, ...]:
    """Read the intact evaluations in a probe's folder; works while the probe runs."""
    owner = _owner(path)
    found = (_evaluation(line, owner) for line in _lines(path))
    return tuple({each.key: each for each in found if each is not None}.values())


def to_pixels(images: Tensor) -> Tensor:
    """Convert [n, 3, h, w] from −1 to 1 to 8 bit, as a PNG holds them."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()


def _record(plan: ProbePlan, models: Sequence[ModelInfo]) -> dict[str, Any]:
    """Return the identity of a probe: two probes with different records must not share a folder."""
    return {
        "schema": SCHEMA_VERSION, "plan": to_json(plan), "models": [asdict(m) for m in models]
    }  # fmt: skip


def _slug(name: str) -> str:
    """Make a file name part: different names get different slugs, even where case is ignored."""
    plain = "".join(c if c.isalnum() else "_" for c in name)[:_LONGEST]
    if plain == name and name == name.lower():
        return plain
    return f"{plain}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _owner(path: Path) -> str:
    """Return what the files of a probe's folder belong to: its plan and its models."""
    record = read_json(path / PLAN)
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _lines(path: Path) -> list[bytes]:
    """Return the evaluations' whole lines, without a last one that was cut off by a crash."""
    file = path / EVALUATIONS
    lines = read_file(file).splitlines(keepends=True) if file.exists() else []
    return [line for line in lines if line.endswith(b"\n")]


def _evaluation(line: bytes, owner: str) -> Evaluation | None:
    """Read an evaluation; None where its line is damaged or another probe's."""
    try:
        record = open_record(json_text.loads(line), EVALUATIONS, owner)
        return None if record is None else Evaluation.from_json(record)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _keep_intact(path: Path) -> None:
    """Leave only intact evaluations in the file; those that are gone are made again."""
    file, owner = path / EVALUATIONS, _owner(path)
    if not file.exists():
        return
    lines = _lines(path)
    intact = [line for line in lines if _evaluation(line, owner) is not None]
    if len(intact) < len(lines):
        log.warning(
            "%s: %d of %d evaluations are damaged; they are made again",
            file, len(lines) - len(intact), len(lines),
        )  # fmt: skip
    if b"".join(intact) != read_file(file):
        replace_file(file, b"".join(intact))


def _keep_prompts(path: Path, requests: Requests) -> None:
    rows = {kind: [[r.text, r.seed, r.guidance] for r in part] for kind, part in requests.items()}
    if not (path / PROMPTS).exists():
        write_json(path / PROMPTS, rows, _owner(path))
    elif read_json(path / PROMPTS, _owner(path)) != rows:
        raise RunError(
            f"{path}: the prompts differ from those that this probe began with (a prompt file has "
            "changed): choose another folder"
        )


def _check_same(path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    if "models" not in stored:
        raise RunError(f"{path} holds a hardening run: choose another folder for the probe")
    same = json.loads(json.dumps(wanted))
    found = differences(_as_before(_with_defaults(stored)), _as_before(same))
    if found:
        raise RunError(
            f"{path} belongs to another probe ({'; '.join(found[:5])}): choose another folder"
        )


def _with_defaults(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the fields of plan and models that came after the folder was begun."""
    try:
        plan = to_json(from_json(ProbePlan, stored["plan"], where="plan"))
        models = [asdict(ModelInfo(**model)) for model in stored["models"]]
    except (ConfigError, KeyError, TypeError):
        return dict(stored)
    return {**stored, "plan": json.loads(json.dumps(plan)), "models": models}
