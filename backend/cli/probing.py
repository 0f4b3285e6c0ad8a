"""probe, report, compare, verify: what a checkpoint does after others have worked on it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ConfigError, RunError
from ..plan.file import load_probe_job, to_json
from ..plan.hardening import ImageSet
from ..plan.probe import (
    BEFORE,
    ORIGINAL,
    LoraAttack,
    LoraFile,
    MergeAttack,
    ProbeCheckpoint,
    ProbeJob,
    ProbePlan,
    PromptKind,
    PromptSet,
    ScorerConfig,
)
from ..plan.probe_presets import preset_probe
from .console import Console
from .jobs import concepts_of
from .ranks import follow, joined, telling

if TYPE_CHECKING:
    from ..jobs.probe import Measured
    from ..parallel.ranks import Ranks

T = TypeVar("T", LoraAttack, MergeAttack)
NO_TRAINING = "none"  # --preset: the LoRAs and merges given, and nothing else


def probe(args: argparse.Namespace, console: Console) -> int:
    from ..jobs.check import resolve_device

    with joined(args, console) as ranks:
        if not ranks.first:
            return follow(ranks, console)
        job = probe_job_of(args)
        for checkpoint in job.checkpoints:
            if not Path(checkpoint.path).exists():
                raise ConfigError(f"{checkpoint.name}: {checkpoint.path} does not exist")
        job = replace(job, device=resolve_device(job.device))
        return run_job(job, console, ranks, new=True, open_it=args.open)


def run_job(
    job: ProbeJob, console: Console, ranks: Ranks, *, new: bool = False, open_it: bool = False
) -> int:
    """Run a probe, or go on with it, and write its report. new: the job is not kept yet."""
    from ..jobs.probe import run_probe_job

    ranks.share(("probe", to_json(job)))
    console.note("reading the checkpoints' SHA-256")
    how = f"; complete evaluations are kept, continue with: resalign resume {job.output}"
    with telling(ranks, lambda: how):
        found = run_probe_job(job, new=new, on_progress=console.progress, ranks=ranks)
    return _tell(found, console, open_it)


def report(args: argparse.Namespace, console: Console) -> int:
    from ..jobs.probe import report_of
    from ..probe.results_io import read_probe

    folder = Path(args.run_folder)
    result = read_probe(folder)
    if not result.evaluations:
        raise RunError(
            f"{folder} holds no evaluation yet: `resalign resume {folder}` continues the probe"
        )
    return _tell(report_of(result, folder), console, args.open)


def compare(args: argparse.Namespace, console: Console) -> int:
    from ..report.compare import compare_reports

    paths = [_report_json(Path(path)) for path in args.reports]
    page = compare_reports(paths, Path(args.output))
    console.result(f"comparison  {page}", "done", page=str(page))
    if args.open:
        _open(page)
    return 0


def probe_job_of(args: argparse.Namespace) -> ProbeJob:
    """The job that the arguments describe: a plan file, or checkpoints and flags."""
    given = list(args.checkpoints)
    if given and Path(given[0]).suffix.lower() in (".toml", ".json"):
        if len(given) > 1:
            raise ConfigError(f"{given[0]} names the checkpoints itself: give it alone")
        job = load_probe_job(given[0])
        plan = _changed(job.plan, args)
        output, device = args.output or job.output, args.device or job.device
        return replace(job, plan=plan, output=str(Path(output).absolute()), device=device)
    if not given or not args.concept:
        raise ConfigError(
            "give a plan file (`resalign plan new probe.toml --probe quick` writes one), or the "
            "original, the checkpoints to compare with it, and --concept"
        )
    concepts = concepts_of(args.concept)
    preset = args.preset or ("quick" if not (args.lora or args.merge) else NO_TRAINING)
    plan = ProbePlan(concepts=concepts) if preset == NO_TRAINING else preset_probe(preset, concepts)
    return ProbeJob(
        checkpoints=_named(given), output=str(Path(args.output or "probe").absolute()),
        plan=_changed(plan, args), device=args.device or "auto",
    )  # fmt: skip


def _named(paths: Sequence[str]) -> tuple[ProbeCheckpoint, ...]:
    """The first is `original`; the others are called after their files."""
    names = ["original"]
    for path in paths[1:]:
        stem = Path(path).name.removesuffix(".safetensors")
        taken = sum(name == stem or name.startswith(f"{stem} (") for name in names)
        names.append(f"{stem} ({taken + 1})" if taken else stem)
    return tuple(
        ProbeCheckpoint(name=name, path=str(Path(path).absolute()))
        for name, path in zip(names, paths, strict=True)
    )


def _changed(plan: ProbePlan, args: argparse.Namespace) -> ProbePlan:
    changes: dict[str, Any] = {}
    if args.concept:
        changes["concepts"] = concepts_of(args.concept)
    if args.scorer:
        changes["scorers"] = tuple(_scorer(text) for text in args.scorer)
    taken = [BEFORE, *(attack.name for attack in plan.attacks)]
    if args.lora:
        changes["loras"] = (*plan.loras, *(_own_name(_lora(t), taken) for t in args.lora))
    if args.merge:
        changes["merges"] = (*plan.merges, *(_own_name(_merge(t), taken) for t in args.merge))
    if args.seeds:
        changes["seeds"] = tuple(_whole(part, "--seeds") for part in args.seeds.split(","))
    for name, folder in (("forget_set", args.forget), ("retain_set", args.retain)):
        if folder:
            changes[name] = ImageSet(folder=str(Path(folder).absolute()))
    if args.data:
        data = str(Path(args.data).absolute())
        changes["fine_tunes"] = tuple(replace(attack, data=data) for attack in plan.fine_tunes)
    kinds: tuple[PromptKind, ...] = ("unsafe", "neighbour", "retain")
    files: dict[PromptKind, str] = {
        kind: file for kind in kinds if (file := getattr(args, f"{kind}_prompts"))
    }
    if files:
        kept = [part for part in plan.prompts if part.kind not in files]
        changes["prompts"] = (
            *(PromptSet(kind=kind, file=str(Path(f).absolute())) for kind, f in files.items()),
            *kept,
        )
    return replace(plan, **changes)


def _scorer(text: str) -> ScorerConfig:
    """NAME, or NAME=WEIGHTS."""
    name, _, weights = text.partition("=")
    return ScorerConfig(name=name, weights=str(Path(weights).absolute()) if weights else "")


def _lora(text: str) -> LoraAttack:
    """FILE[:STRENGTH], several joined by commas."""
    files = []
    for part in text.split(","):
        path, strength = _split_number(part, 1.0)
        files.append(LoraFile(path=str(Path(path).absolute()), strength=strength))
    return LoraAttack(name=" + ".join(Path(file.path).stem for file in files), loras=tuple(files))


def _merge(text: str) -> MergeAttack:
    """FILE[:WEIGHT] or original[:WEIGHT]."""
    other, weight = _split_number(text, 0.5)
    name = f"{weight:g} of {Path(other).stem}"
    other = other if other == ORIGINAL else str(Path(other).absolute())
    return MergeAttack(name=name, other=other, weight=weight)


def _own_name(attack: T, taken: list[str]) -> T:
    """Under a name of its own, added to `taken`: one LoRA may be given at several strengths, and
    files of different folders may have one name."""
    base, number = attack.name, 2
    if base in taken and isinstance(attack, LoraAttack):
        base += " at " + ", ".join(f"{lora.strength:g}" for lora in attack.loras)
    name = base
    while name in taken:
        name, number = f"{base} ({number})", number + 1
    taken.append(name)
    return replace(attack, name=name)


def _split_number(text: str, default: float) -> tuple[str, float]:
    """`path:0.7` in two; a path may hold colons of its own (C:\\models)."""
    head, colon, tail = text.rpartition(":")
    if colon:
        try:
            return head, float(tail)
        except ValueError:
            pass
    return text, default


def _whole(text: str, option: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{option}: {text!r} is no whole number") from None


def _tell(found: Measured, console: Console, open_it: bool) -> int:
    from ..probe.headline import headline

    files, complete = found.files, found.result.complete
    text = [headline(found.summary), "", f"report  {files.html}"]
    if not complete:
        text.append("The probe is not finished: rows are missing.")
    console.result(
        "\n".join(text), "done", html=str(files.html), markdown=str(files.markdown),
        report=str(files.json), complete=complete, summary=found.summary.to_json(),
    )  # fmt: skip
    if open_it:
        _open(files.html)
    return 0


def _report_json(path: Path) -> Path:
    path = path / "report.json" if path.is_dir() else path
    if not path.is_file():
        raise RunError(f"{path} does not exist: `resalign report FOLDER` writes it")
    return path


def _open(page: Path) -> None:
    import webbrowser

    webbrowser.open(page.resolve().as_uri())
