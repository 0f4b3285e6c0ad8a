"""The requests that a worker accepts, parsed strictly and checked before anything heavy is loaded.

A request is a flat JSON object with `job` and the fields of that job's class below. Paths are
absolute, also inside a plan: a worker has no folder that they could be relative to. Does not
import torch, so that a host can check a request in its own process.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import ConfigError
from ..plan.attack import ORIGINAL
from ..plan.checks import within
from ..plan.file import PATH_FIELDS, from_json
from ..plan.fine_tune import RETAIN
from ..plan.hardening import HardeningPlan
from ..plan.job import Prediction, TextEncoder, Vae
from ..plan.probe import ProbeCheckpoint, ProbePlan
from ..plan.probe_settings import AUDITED, MOST_AUDITED, no_audit

DEMO = "demo"  # stands for the embedded checkpoint
_WORDS = ("", RETAIN, ORIGINAL)  # allowed in place of a path


@dataclass(frozen=True, slots=True, kw_only=True)
class HardenRequest:
    """Harden `checkpoint`; if the run folder holds a part of this run, continue it.

    preview_every: outer steps between two previews, 0 for none. preview_prompt: empty for the first
    concept's first. show_pictures: do not blur. adopt: also continue a run that the host began in
    its own process, on this checkpoint. text_encoder, vae: their files, as in a job.
    """

    checkpoint: str
    plan: HardeningPlan
    run_folder: str
    device: str = "auto"
    prediction: Prediction = ""
    preview_every: int = 10
    preview_prompt: str = ""
    show_pictures: bool = False
    adopt: bool = False
    text_encoder: TextEncoder = ""
    vae: Vae = ""

    def __post_init__(self) -> None:
        within("harden", "preview_every", self.preview_every, 0, 1_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRequest:
    """Check everything that hardening needs, the device's memory included, without running it.

    run_folder: where the run would go; nothing is written. budget: GiB to fit into, 0 for all
    that the GPU has. text_encoder, vae: their files, as in a job.
    """

    checkpoint: str
    plan: HardeningPlan
    run_folder: str
    device: str = "auto"
    prediction: Prediction = ""
    budget: float = 0.0
    text_encoder: TextEncoder = ""
    vae: Vae = ""

    def __post_init__(self) -> None:
        within("check", "budget", self.budget, 0, 10_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeRequest:
    """Continue a run or a probe from its folder. device: empty for the one it began on.

    run_commands: run the commands of a probe's scorers although this user did not begin it here.
    """

    run_folder: str
    device: str = ""
    run_commands: bool = False
    preview_every: int = 10
    preview_prompt: str = ""
    show_pictures: bool = False

    def __post_init__(self) -> None:
        within("resume", "preview_every", self.preview_every, 0, 1_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """Write the hardened checkpoint of a run.

    checkpoint: its source, if that has moved. probe: folder of a finished probe, for the header.
    prediction: as of `harden`; empty: that of the run.
    """

    run_folder: str
    output: str
    checkpoint: str = ""
    overwrite: bool = False
    probe: str = ""
    prediction: Prediction = ""
    unfinished: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraRequest:
    """Write the adapter of a run as a LoRA.

    rank: of the nearest LoRA of a run that changed all weights; 0 where the adapter is a LoRA.
    """

    run_folder: str
    output: str
    format: Literal["", "kohya", "diffusers"] = ""
    rank: int = 0
    overwrite: bool = False
    unfinished: bool = False

    def __post_init__(self) -> None:
        within("lora", "rank", self.rank, 0, 1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRequest:
    """Probe checkpoints, the original first, in `folder`, or continue that probe.

    audit: pictures to draw for a person who checks the detector, 0 for none.
    """

    checkpoints: tuple[ProbeCheckpoint, ...]
    plan: ProbePlan
    folder: str
    device: str = "auto"
    show_pictures: bool = False
    audit: int = 0

    def __post_init__(self) -> None:
        within("probe", "audit", self.audit, 0, MOST_AUDITED)
        if self.audit and (why := no_audit(self.plan)):
            raise ConfigError(f"probe.audit: {why}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRequest:
    """Draw pictures of a probe for a person to label, or put their labels into its report.

    report: the probe's folder. labels: the file that the sheet saved; empty to draw a sheet.
    pictures, seed: of the sheet. overwrite: begin another although there are labels already.
    """

    report: str
    labels: str = ""
    pictures: int = AUDITED
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        within("audit", "pictures", self.pictures, 1, MOST_AUDITED)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackRequest:
    """Write the pack of a report for a release.

    report: the probe's folder. output: a new folder, or a file that ends in .zip. model: the one
    that is published, where the report has several. checkpoint: its file. license, base_model: of
    the base; empty: what the file's header says. sign: file of the publisher's private key.
    pictures: `none`, `blurred` or `all` as the probe kept them.
    """

    report: str
    output: str
    model: str = ""
    checkpoint: str = ""
    license: str = ""
    base_model: str = ""
    sign: str = ""
    pictures: Literal["none", "blurred", "all"] = "blurred"
    overwrite: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TryLoraRequest:
    """Generate the same prompts with a LoRA on the original and on a hardened checkpoint.

    hardened, run_folder: one of them. width, height: in pixels, 0 for the checkpoint's native
    size. count: pictures of each, with seeds counting up from `seed`. prediction: of the original,
    as of `harden`; one that contradicts itself predicts what the hardened one does. text_encoder,
    vae: their files, where a checkpoint's has none.
    """

    original: str
    lora: str
    prompt: str
    hardened: str = ""
    run_folder: str = ""
    prediction: Prediction = ""
    strength: float = 1.0
    negative: str = ""
    seed: int = 0
    steps: int = 20
    guidance: float = 7.0
    width: int = 0
    height: int = 0
    count: int = 1
    device: str = "auto"
    show_pictures: bool = False
    text_encoder: TextEncoder = ""
    vae: Vae = ""

    def __post_init__(self) -> None:
        if bool(self.hardened) == bool(self.run_folder):
            raise ConfigError("try_lora: give `hardened` or `run_folder`, one of them")
        for name, low, high in (
            ("strength", -100, 100), ("seed", 0, 2**63 - 1), ("steps", 1, 1000),
            ("guidance", 0, 50), ("width", 0, 4096), ("height", 0, 4096), ("count", 1, 64),
        ):  # fmt: skip
            within("try_lora", name, getattr(self, name), low, high)
        for name in ("width", "height"):
            if getattr(self, name) % 8:
                raise ConfigError(
                    f"try_lora: {name} is {getattr(self, name)}; it must be a multiple of 8"
                )


Request = (
    CheckRequest | HardenRequest | ResumeRequest | ExportRequest | LoraRequest | ProbeRequest
    | AuditRequest | PackRequest | TryLoraRequest
)  # fmt: skip
JOBS: dict[str, type] = {
    "check": CheckRequest,
    "harden": HardenRequest,
    "resume": ResumeRequest,
    "export": ExportRequest,
    "lora": LoraRequest,
    "probe": ProbeRequest,
    "audit": AuditRequest,
    "pack": PackRequest,
    "try_lora": TryLoraRequest,
}
# Paths of a request that must exist, and those that are created or may be omitted.
_CHECKPOINTS = ("checkpoint", "original", "hardened")
_PARTS = ("text_encoder", "vae")
_THERE = (*_CHECKPOINTS, *_PARTS, "lora", "probe", "report", "labels", "sign")
_PATHS = (*_THERE, "run_folder", "output", "folder")


def parse_request(data: Any) -> Request:
    """Parse a request; a ConfigError names the wrong field."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"request: expected an object with `job`, not {data!r}")
    job = data.get("job")
    if not isinstance(job, str) or job not in JOBS:
        raise ConfigError(f"request: job is {job!r}; choose from {', '.join(JOBS)}")
    known = [item.name for item in fields(JOBS[job])]
    for name in data:
        if name != "job" and name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"its fields are {', '.join(known)}"
            raise ConfigError(f"request: {name!r} is not a field of the job {job}; {hint}")
    given = {name: value for name, value in data.items() if name != "job"}
    request: Request = from_json(JOBS[job], given, where=job)
    for where, path in _paths_in(request, job):
        if path not in _WORDS and not Path(path).is_absolute():
            raise ConfigError(f"{where} is {path!r}; give an absolute path")
    return request


def job_of(request: Request) -> str:
    """Return the name of a request's job."""
    return next(name for name, kind in JOBS.items() if type(request) is kind)


def check_files(request: Request) -> None:
    """Raise a ConfigError if a file that the request needs is missing; opens no file."""
    job = job_of(request)
    for name in _THERE:
        path = getattr(request, name, "")
        if path and path != DEMO and not _exists(path):
            raise ConfigError(f"{job}.{name}: {path} does not exist")
    for checkpoint in getattr(request, "checkpoints", ()):
        if checkpoint.path != DEMO and not _exists(checkpoint.path):
            raise ConfigError(f"{job}.checkpoints: {checkpoint.path} does not exist")
    folder = getattr(request, "run_folder", "")
    if folder and not isinstance(request, HardenRequest | CheckRequest) and not (
        _exists(folder, "plan.json") or _exists(folder, "job.json")
    ):  # fmt: skip
        raise ConfigError(f"{job}.run_folder: {folder} is not a run folder: it has no plan.json")
    output = getattr(request, "output", "")
    if output and not _exists(str(Path(output).parent)):
        raise ConfigError(
            f"{job}.output: the folder {Path(output).parent} does not exist; create it"
        )
    if output and _exists(output) and not getattr(request, "overwrite", False):
        raise ConfigError(f"{job}.output: {output} exists already; choose another name")


def _exists(path: str, *names: str) -> bool:
    """Return whether a path exists; not one that the system cannot even look for."""
    try:
        return Path(path, *names).exists()
    except (OSError, ValueError):  # too long, a NUL, a loop of links
        return False


def checkpoint_path(text: str) -> Path:
    """Return the file that a request's checkpoint stands for."""
    if text != DEMO:
        return Path(text)
    from ..demo.plans import CHECKPOINT

    return CHECKPOINT


def _paths_in(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """Yield each path in a request and its plans, with the name of its field."""
    own = type(value) in JOBS.values()
    for item in fields(value):
        found, here = getattr(value, item.name), f"{where}.{item.name}"
        if item.name in (_PATHS if own else PATH_FIELDS.get(type(value), ())):
            a_checkpoint = isinstance(value, ProbeCheckpoint) or item.name in _CHECKPOINTS
            if not (found == DEMO and a_checkpoint):
                yield here, found
        elif is_dataclass(found):
            yield from _paths_in(found, here)
        elif isinstance(found, tuple):
            for number, one in enumerate(found):
                if is_dataclass(one):
                    yield from _paths_in(one, f"{here}[{number}]")
