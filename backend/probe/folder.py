"""One probe is one folder, which survives a crash at any moment.

    job.json          checkpoints, device and output (absent where a program runs the probe)
    plan.json         the plan, every default spelled out, and the models under test
    prompts.json      every image that a look draws: text, seed, guidance
    looks.jsonl       one `Look` per line, appended when it is complete
    reference.safetensors   what the original draws and predicts: what utility is measured against
    pictures/         the kept images
    cache/            encoded image sets, by content
    run.lock          held by the process that works on it

A probe that was stopped goes on with the first look that is missing; the fine-tuning run that
it belongs to is done again from its start, which costs time and changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import ConfigError, RunError
from ..plan.file import differences, from_json, to_json
from ..plan.probe import ProbeJob, ProbePlan
from ..run import json_lines
from ..run.folder import read_json, write_json
from ..run.lock import RunLock
from .prompts import ImageRequest
from .results import SCHEMA_VERSION, Look, ModelInfo

JOB = "job.json"
PROMPTS = "prompts.json"
PLAN, LOOKS, REFERENCE = "plan.json", "looks.jsonl", "reference.safetensors"
PICTURES, CACHE = "pictures", "cache"
_LONGEST = 24  # characters of a name in a picture's file name


Requests = Mapping[str, Sequence[ImageRequest]]  # by kind of prompt


class ProbeFolder:
    """A probe on disk. Use as a context manager, or call `close`, to let go of the lock."""

    def __init__(self, path: Path, lock: RunLock) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def begin(
        cls, path: Path | str, plan: ProbePlan, models: Sequence[ModelInfo], requests: Requests
    ) -> ProbeFolder:
        """Create the folder, or go on with the probe of the same plan and models in it."""
        path = Path(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"probe folder {path} cannot be created: {error}") from None
        wanted = _record(plan, models)
        lock = RunLock(path)
        try:
            if (path / PLAN).exists():
                _check_same(path, read_json(path / PLAN), wanted)
            else:
                write_json(path / PLAN, wanted)
            _keep_prompts(path, requests)
            json_lines.cut(path / LOOKS)
            (path / PICTURES).mkdir(exist_ok=True)
        except BaseException:
            lock.release()
            raise
        return cls(path, lock)

    @property
    def cache(self) -> Path:
        return self.path / CACHE

    def looks(self) -> tuple[Look, ...]:
        """All complete looks so far, each once."""
        return read_looks(self.path)

    def add(self, look: Look) -> None:
        """Keep a look, synced: a crash right after loses nothing."""
        path = self.path / LOOKS
        json_lines.append(path, look.to_json())
        with path.open("rb+") as file:
            os.fsync(file.fileno())

    def save_picture(self, image: Tensor, *names: str) -> str:
        """Keep one image, [3, height, width] in 8 bit; returns its path within the folder."""
        relative = picture_name(*names)
        write_png(image, self.path / relative)
        return relative

    def save_reference(self, tensors: Mapping[str, Tensor]) -> None:
        """What the original draws and predicts."""
        temporary = self.path / (REFERENCE + ".tmp")
        save_file({name: t.contiguous() for name, t in tensors.items()}, temporary)
        os.replace(temporary, self.path / REFERENCE)

    def load_reference(self) -> dict[str, Tensor] | None:
        """As saved; None where nothing was, or what was is damaged: it is made again then."""
        try:
            return load_file(self.path / REFERENCE)
        except (FileNotFoundError, SafetensorError):
            return None

    def close(self) -> None:
        self._lock.release()

    def __enter__(self) -> ProbeFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def picture_name(*names: str) -> str:
    """Where the picture with these names lies in a probe's folder."""
    return f"{PICTURES}/{'-'.join(map(_slug, names))}.png"


def write_png(image: Tensor, file: Path | IO[bytes]) -> None:
    """[3, height, width] in 8 bit."""
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    Image.fromarray(pixels).save(file, format="PNG")


def read_plan(path: Path | str) -> tuple[ProbePlan, tuple[ModelInfo, ...]]:
    """Plan and models of the probe in a folder."""
    path = Path(path)
    if not (path / PLAN).is_file():
        raise RunError(f"{path} is no probe's folder: it has no {PLAN}")
    data = read_json(path / PLAN)
    if "models" not in data:
        raise RunError(f"{path} is no probe's folder: it holds a hardening run")
    if data.get("schema") != SCHEMA_VERSION:
        raise RunError(f"{path / PLAN} was written by another version")
    try:
        plan = from_json(ProbePlan, data["plan"], where="plan")
        return plan, tuple(ModelInfo(**model) for model in data["models"])
    except (ConfigError, TypeError) as error:
        raise RunError(f"{path / PLAN} was written by another version: {error}") from None


def save_job(job: ProbeJob, models: Sequence[ModelInfo]) -> None:
    """Write down which files the probe in `job.output` is of, so that it can be gone on with.

    A RunError, with nothing written, where the folder is another probe's or a hardening run's:
    what they need to go on has the same name.
    """
    path = Path(job.output)
    if (path / PLAN).is_file():
        _check_same(path, read_json(path / PLAN), _record(job.plan, models))
    elif (path / JOB).is_file() and read_job(path) is None:
        raise RunError(f"{path} holds a hardening run: choose another folder for the probe")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"probe folder {path} cannot be created: {error}") from None
    write_json(path / JOB, to_json(job))


def read_job(path: Path | str) -> ProbeJob | None:
    """The job of a probe's folder; None where it is no probe that `resalign probe` began."""
    file = Path(path) / JOB
    data = read_json(file) if file.is_file() else {}
    if "checkpoints" not in data:
        return None
    try:
        return replace(from_json(ProbeJob, data, where="job"), output=str(path))
    except ConfigError as error:
        raise RunError(f"{file} was written by another version: {error}") from None


def read_requests(path: Path | str) -> dict[str, tuple[ImageRequest, ...]]:
    """Every image that a look of this probe draws; prompt files may be gone by now."""
    stored = read_json(Path(path) / PROMPTS)
    try:
        return {kind: tuple(ImageRequest(*row) for row in rows) for kind, rows in stored.items()}
    except (AttributeError, TypeError) as error:
        raise RunError(f"{Path(path) / PROMPTS} is damaged: {error}") from None


def read_looks(path: Path) -> tuple[Look, ...]:
    """The looks in a probe's folder; works while the probe is under way."""
    looks = (Look.from_json(record) for record in json_lines.read(path / LOOKS))
    return tuple({look.key: look for look in looks}.values())


def to_pixels(images: Tensor) -> Tensor:
    """[n, 3, h, w] from −1 to 1 to 8 bit, as a PNG holds them."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()


def _record(plan: ProbePlan, models: Sequence[ModelInfo]) -> dict[str, Any]:
    """What a probe is told from another by."""
    return {
        "schema": SCHEMA_VERSION, "plan": to_json(plan), "models": [asdict(m) for m in models]
    }  # fmt: skip


def _slug(name: str) -> str:
    """For a file's name: no two names get one slug, also where systems ignore case."""
    plain = "".join(c if c.isalnum() else "_" for c in name)[:_LONGEST]
    if plain == name and name == name.lower():
        return plain
    return f"{plain}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _keep_prompts(path: Path, requests: Requests) -> None:
    rows = {kind: [[r.text, r.seed, r.guidance] for r in part] for kind, part in requests.items()}
    if not (path / PROMPTS).exists():
        write_json(path / PROMPTS, rows)
    elif read_json(path / PROMPTS) != rows:
        raise RunError(
            f"{path}: the prompts are others than when this probe began (a prompt file has "
            "changed): choose another folder"
        )


def _check_same(path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    if "models" not in stored:
        raise RunError(f"{path} holds a hardening run: choose another folder for the probe")
    found = differences(stored, json.loads(json.dumps(wanted)))
    if found:
        raise RunError(
            f"{path} belongs to another probe ({'; '.join(found[:5])}): choose another folder"
        )
