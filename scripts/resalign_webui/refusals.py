"""Refuses at the click what a job would refuse once the host has given up its model.

Looks at headers, names of files, run folders and the worker's environment; torch is not imported.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from ...backend.checkpoint.called import hardened_by
from ...backend.checkpoint.detect import detect
from ...backend.checkpoint.header import read_header
from ...backend.checkpoint.not_a_lora import why_not_a_lora, why_other_base
from ...backend.data.picture_file import is_picture
from ...backend.errors import CheckpointError, ConfigError, ResAlignError
from ...backend.jobs.family_defaults import family_at
from ...backend.plan.attack import ORIGINAL
from ...backend.plan.auto import decided_as
from ...backend.plan.detector_packages import DETECTOR_PACKAGES
from ...backend.plan.file import from_json, plan_hash, to_json
from ...backend.plan.fine_tune import RETAIN
from ...backend.plan.hardening import HardeningPlan
from ...backend.plan.images import ImageSet
from ...backend.plan.probe import ProbePlan
from ...backend.text import json_text
from ...backend.text.walk import walk_once
from ...backend.worker.requests import checkpoint_path
from . import graphics
from .host import Host
from .runs import Probe, Run

_PARTS = ("text_encoder", "vae")
_ENCODED = "encoded.safetensors"  # stands for the pictures of a folder: backend/data/encoded_file
_ROLES = {"oracle": "never-learned checkpoint", "plain": "another method's checkpoint"}
_ASK = (  # -I, as workers are started, so that both see the same packages
    "import sys; from importlib.util import find_spec; "
    "print('resalign:', *[name for name in sys.argv[1:] if find_spec(name) is None])"
)
_PATIENCE = 20.0  # seconds for an interpreter to answer


def refuse(request: Mapping[str, Any], host: Host) -> None:
    """Raise a ConfigError for a job of which it is known that it cannot run."""
    job = request["job"]
    if job in ("harden", "probe", "try_lora") and (why := graphics.absent(request["device"])):
        raise ConfigError(why)
    if job == "harden":
        plan = from_json(HardeningPlan, request["plan"], where="plan")
        _refuse_empty_folders(plan)
        _refuse_another_run(Path(request["run_folder"]), plan, request)
    elif job == "probe":
        _refuse_probe(request, host)
    elif job == "try_lora":
        _refuse_lora(request)


def _refuse_probe(request: Mapping[str, Any], host: Host) -> None:
    plan = from_json(ProbePlan, request["plan"], where="plan")
    for number, one in enumerate(request["checkpoints"]):
        what = _ROLES.get(str(one.get("role")), "hardened" if number else "original")
        _refuse_unknown(what, one["path"], one)
    for attack in plan.fine_tunes:
        if (path := attack.trained_on) and path != ORIGINAL:
            _refuse_unknown("LoRA of a sibling", path, {})
    _refuse_empty_folders(plan)
    for scorer in plan.scorers:
        _refuse_missing(scorer.name, host)


def _refuse_lora(request: Mapping[str, Any]) -> None:
    for name in ("original", "hardened"):
        if request.get(name):
            _refuse_unknown(name, request[name], request)
    path = Path(request["lora"])
    header = _header("LoRA", path)
    if why := why_not_a_lora(path, header):
        raise ConfigError(f"LoRA: {why}")
    family = family_at(checkpoint_path(request["original"]))
    if family is not None and (why := why_other_base(path, header, family)):
        raise ConfigError(f"LoRA: {why}")


def _header(what: str, path: Path) -> Any:
    try:
        return read_header(path)
    except CheckpointError as error:
        raise ConfigError(f"{what}: {error}") from None


def _refuse_unknown(what: str, path: str, given: Mapping[str, Any]) -> None:
    """Refuse what is not a checkpoint of a known family; a run folder stands for its checkpoint.

    given: entries of the request that decide how the file is read.
    """
    if path == "demo":
        return
    if (Path(path) / "plan.json").is_file():
        source = _job_of(Path(path)).get("checkpoint")
        if source and source != "demo" and not Path(str(source)).exists():
            raise ConfigError(
                f"{what}: {source}, which the run {Path(path).name} hardened, is missing: put it "
                "back under that name"
            )
        return
    parts = {name: str(given[name]) for name in _PARTS if given.get(name)}
    try:
        detect(path, prediction=given.get("prediction") or "", parts=parts)
    except CheckpointError as error:
        raise ConfigError(f"{what}: {error}") from None


def _refuse_empty_folders(plan: HardeningPlan | ProbePlan) -> None:
    for folder in dict.fromkeys(_folders(plan)):
        path = Path(folder)
        if path.is_dir() and not (path / _ENCODED).is_file() and not _has_picture(path):
            raise ConfigError(
                f"pictures: the folder {folder} has none that can be read: choose one that holds "
                "images, each with its caption in a .txt file"
            )


def _folders(value: Any) -> Iterator[str]:
    """Yield each folder of pictures in a plan."""
    if isinstance(value, ImageSet):
        if value.folder:
            yield value.folder
        return
    for item in fields(value):
        found = getattr(value, item.name)
        if item.name == "data" and isinstance(found, str) and found not in ("", RETAIN):
            yield found
        for one in found if isinstance(found, tuple) else (found,):
            if is_dataclass(one):
                yield from _folders(one)


def _has_picture(folder: Path) -> bool:
    return any(
        is_picture(Path(name))
        for _, _, names in walk_once(folder)
        for name in names
        if not name.startswith(".")
    )


def _refuse_another_run(folder: Path, plan: HardeningPlan, request: Mapping[str, Any]) -> None:
    """Refuse a name that a run of another plan or checkpoint has; the same run continues."""
    if not (folder / "plan.json").is_file():
        return
    used = f"name of the run: {folder.name} is the name of another run already"
    advice = "choose another name, or press Resume to continue that run"
    try:
        kept = json_text.read(folder / "plan.json")
        kept.pop("checksum", None)
        stored = from_json(HardeningPlan, kept, where="plan")
        pair = [decided_as(stored, plan), decided_as(plan, stored)]
        one, other = (plan_hash(from_json(HardeningPlan, to_json(each))) for each in pair)
        source = _job_of(folder).get("checkpoint")
    except (OSError, ValueError, AttributeError, ResAlignError):
        raise ConfigError(f"{used}, which cannot be read: choose another name") from None
    if one != other:
        raise ConfigError(f"{used}, with other settings: {advice}")
    if source and checkpoint_path(str(source)) != checkpoint_path(request["checkpoint"]):
        raise ConfigError(f"{used}, of another checkpoint: {advice}")


def _job_of(folder: Path) -> dict[str, Any]:
    try:
        found = json_text.read(folder / "job.json")
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def other_report(run: Run, probe: Probe) -> str:
    """Say that a probe has not measured what a run made, as far as that is seen without reading
    weights; the export compares those."""
    path = Path(probe.hardened)
    if not probe.hardened or path == run.folder:
        return ""
    advice = f"probe {run.name} itself, choose its report, or none"
    if (path / "plan.json").is_file():
        return f"{probe.name} measured the run {path.name}, not {run.name}: {advice}"
    if not path.is_file():
        return ""  # gone, or a folder: the export tells
    found = hardened_by(path)
    if not found:
        return f"{probe.name} measured {path.name}, which was never hardened: {advice}"
    try:
        own = plan_hash(from_json(HardeningPlan, run.plan, where="plan"))
    except ConfigError:
        return ""
    if found.get("plan_sha256") not in ("", None, own):
        return f"{probe.name} measured {path.name}, which another run hardened: {advice}"
    return ""


def _refuse_missing(scorer: str, host: Host) -> None:
    modules, install = DETECTOR_PACKAGES.get(scorer, ((), ""))
    if not modules:
        return
    python = str(host.worker_python())
    if lacking := _lacking(python, modules):
        command = install.replace("pip install", f'"{python}" -m pip install')
        raise ConfigError(
            f"what is counted: {scorer} needs the package {lacking[0]}, which the environment of "
            f"the jobs does not have: choose denoising, or install it: {command}"
        )


def _lacking(python: str, modules: Sequence[str]) -> list[str]:
    """Return the modules that a Python lacks; none where it does not answer."""
    left_out = ("PYTHONPATH", "PYTHONSTARTUP", "PYTHONHOME")  # as for the worker
    try:
        found = subprocess.run(
            [python, "-I", "-c", _ASK, *modules], capture_output=True, text=True,
            stdin=subprocess.DEVNULL, timeout=_PATIENCE, check=True,
            env={name: value for name, value in os.environ.items() if name not in left_out},
        )  # fmt: skip
    except (OSError, ValueError, subprocess.SubprocessError):
        return []
    last = found.stdout.strip().splitlines()[-1:] or [""]
    return last[0].removeprefix("resalign:").split() if last[0].startswith("resalign:") else []
