"""A plan file to start from, in TOML, with a comment on every field.

The text is built from the config classes and a preset, so it names every field and always
parses; a field without a comment here is an error (and a failing test).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .comments import COMMENTS, HEAD
from .hardening import (
    AdapterConfig,
    Concept,
    FineTuneConfig,
    HardeningPlan,
    HarmConfig,
    ImageSet,
    Job,
    Ramp,
    RegulatorConfig,
    SolverConfig,
)
from .kernels import KernelConfig
from .presets import plan_preset, preset_plan
from .probe import (
    LoraAttack,
    LoraFile,
    ProbeCheckpoint,
    ProbeJob,
    ProbePlan,
    ScorerConfig,
)
from .probe_comments import PROBE_COMMENTS, PROBE_HEAD
from .probe_presets import preset_probe, probe_preset
from .stages import EditConfig, ProjectionConfig, Stage

EXAMPLE = Concept(
    "weapons",
    prompts=("a pistol", "a person holding a rifle", "a combat knife on a table"),
    anchor="a garden tool",
)
_BLOCKS = (
    AdapterConfig, HarmConfig, SolverConfig, RegulatorConfig, EditConfig, ProjectionConfig,
    KernelConfig,
)  # fmt: skip
_TABLES = {(ProbePlan, name) for name in ("loras", "merges", "fine_tunes")}
_TABLES |= {(HardeningPlan, "before")}
_COMMENTS = {**COMMENTS, **PROBE_COMMENTS}


def write_template(
    path: Path | str,
    preset: str = "balanced",
    *,
    concepts: Iterable[Concept] = (EXAMPLE,),
    checkpoint: str = "model.safetensors",
    output: str = "model-hardened.safetensors",
    overwrite: bool = False,
) -> Path:
    """Write a plan file; it parses to a valid job as it stands."""
    text = template(preset, concepts=concepts, checkpoint=checkpoint, output=output)
    return _write(Path(path), text, overwrite)


def write_probe_template(
    path: Path | str,
    preset: str = "quick",
    *,
    concepts: Iterable[Concept] = (EXAMPLE,),
    checkpoints: Sequence[ProbeCheckpoint] = (),
    output: str = "probe",
    overwrite: bool = False,
) -> Path:
    """Write a probe's plan file; it parses to a valid job as it stands."""
    text = probe_template(preset, concepts=concepts, checkpoints=checkpoints, output=output)
    return _write(Path(path), text, overwrite)


def _write(path: Path, text: str, overwrite: bool) -> Path:
    if path.suffix.lower() != ".toml":
        raise ConfigError(f"{path.name}: a template is TOML; call it {path.stem}.toml")
    try:
        with path.open("w" if overwrite else "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{path} exists already; choose another name or remove it") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
    return path


def template(
    preset: str = "balanced",
    *,
    concepts: Iterable[Concept] = (EXAMPLE,),
    checkpoint: str = "model.safetensors",
    output: str = "model-hardened.safetensors",
) -> str:
    """The text of a plan file."""
    chosen, concepts = plan_preset(preset), tuple(concepts)
    plan = preset_plan(preset, concepts)
    job = Job(checkpoint=checkpoint, output=output, plan=plan)
    lines = [HEAD.format(preset=preset, summary=chosen.summary), ""]
    lines += [*_fields(job), "", "[plan]", *_fields(plan), ""]
    for number, concept in enumerate(concepts):
        lines += ["[[plan.concepts]]", *_fields(concept, explain=number == 0), ""]
        if number == 0:
            images = ImageSet(folder="data/weapons")
            lines += [*_commented(["[plan.concepts.images]", *_fields(images)]), ""]
    lines += [*_commented(["[plan.forget_set]", 'folder = "data/forget"']), ""]
    retain = ImageSet(folder="data/retain")
    lines += [*_commented(["[plan.retain_set]", *_fields(retain, explain=False)]), ""]
    for block in _BLOCKS:
        name = next(f.name for f in fields(plan) if isinstance(getattr(plan, f.name), block))
        lines += [f"[plan.{name}]", *_fields(getattr(plan, name)), ""]
    if plan.before:
        lines += _tables("plan.before", plan.before)
    else:
        lines += _commented(["[[plan.before]]", *_fields(Stage(method="closed_form"))])
        lines += [""]
    lines += _pool(chosen.grids, chosen.single)
    return "\n".join(lines).rstrip() + "\n"


def probe_template(
    preset: str = "quick",
    *,
    concepts: Iterable[Concept] = (EXAMPLE,),
    checkpoints: Sequence[ProbeCheckpoint] = (),
    output: str = "probe",
) -> str:
    """The text of a probe's plan file."""
    checkpoints = tuple(checkpoints) or (
        ProbeCheckpoint(name="original", path="model.safetensors"),
        ProbeCheckpoint(name="hardened", path="model-hardened.safetensors"),
    )
    plan = preset_probe(preset, concepts)
    job = ProbeJob(checkpoints=checkpoints, output=output, plan=plan)
    lines = [PROBE_HEAD.format(preset=preset, summary=probe_preset(preset).summary), ""]
    lines += [*_fields(job), "", *_tables("checkpoints", checkpoints)]
    lines += ["[plan]", *_fields(plan), ""]
    for name in ("generation", "utility"):
        lines += [f"[plan.{name}]", *_fields(getattr(plan, name)), ""]
    for name in ("concepts", "prompts", "scorers", "merges", "fine_tunes"):
        lines += _tables(f"plan.{name}", getattr(plan, name))
    scorer = ScorerConfig(name="nudenet", threshold=0.45)
    lora = LoraAttack(name="my LoRA", loras=(LoraFile(path="my-lora.safetensors"),))
    for title, value in (("plan.scorers", scorer), ("plan.loras", lora)):
        lines += _commented([f"[[{title}]]", *_fields(value, explain=value is lora)])
        lines += [""]
    lines += _commented(["[[plan.loras.loras]]", *_fields(lora.loras[0])])
    for name in ("forget_set", "retain_set"):
        lines += ["", *_commented([f"[plan.{name}]", f'folder = "data/{name.split("_")[0]}"'])]
    return "\n".join(lines).rstrip() + "\n"


def _tables(title: str, values: Sequence[Any]) -> list[str]:
    """One TOML table each, the first of them explained."""
    lines = []
    for number, value in enumerate(values):
        lines += [f"[[{title}]]", *_fields(value, explain=number == 0), ""]
    return lines


def _pool(grids: Sequence[Any], single: Sequence[FineTuneConfig]) -> list[str]:
    """The pool of simulated users: grids explained, single configurations after them."""
    lines = []
    for number, grid in enumerate(grids):
        lines.append("[[plan.fine_tune_grid]]")
        for item in fields(FineTuneConfig):
            if item.name != "name":
                value = grid.get(item.name, item.default)
                lines += _entry(FineTuneConfig, item.name, value, explain=number == 0)
        lines.append("")
    for config in single:
        lines += ["[[plan.fine_tunes]]", *_fields(config, explain=not grids), ""]
    if not single:
        example = FineTuneConfig(name="my own", data="data/pets", steps=20)
        lines += ["# One more, by itself:"]
        lines += _commented(["[[plan.fine_tunes]]", *_fields(example, explain=False)])
    return lines


def _fields(value: Any, *, explain: bool = True) -> list[str]:
    """The plain fields of a config value; tables among them are written by the caller."""
    lines: list[str] = []
    for item in fields(value):
        lines += _entry(type(value), item.name, getattr(value, item.name), explain=explain)
    return lines


def _entry(cls: type, name: str, value: Any, *, explain: bool) -> list[str]:
    is_table = is_dataclass(value) and not isinstance(value, Ramp)
    is_tables = isinstance(value, tuple) and any(is_dataclass(item) for item in value)
    no_tables = value == () and (cls, name) in _TABLES
    if value is None or is_table or is_tables or no_tables:
        return []
    text = _COMMENTS[cls][name]
    comment = [f"# {line}" for line in text.splitlines()] if explain else []
    return [*comment, f"{name} = {_toml(value)}"]


def _toml(value: Any) -> str:
    if isinstance(value, Ramp):
        parts = (f"{item.name} = {_toml(getattr(value, item.name))}" for item in fields(value))
        return "{ " + ", ".join(parts) + " }"
    if isinstance(value, tuple | list):
        inline = "[" + ", ".join(_toml(item) for item in value) + "]"
        if len(inline) < 80 or not value:
            return inline
        return "[\n" + "".join(f"  {_toml(item)},\n" for item in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return repr(value)


def _commented(lines: Iterable[str]) -> list[str]:
    return [line if line.startswith("#") else f"#{line}" for line in lines]
