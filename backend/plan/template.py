"""Plan files to start from, in TOML, with a comment on every field.

The text is built from the config classes and a preset: the comments are the fields' own help, and
it always parses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .adapter import AdapterConfig
from .attack import LoraAttack, LoraFile
from .concept import Concept
from .document import comment_lines, value_text
from .durable import DistilConfig, EraseConfig, VariedConfig
from .field import field_of
from .fine_tune import FineTuneConfig
from .hardening import HardeningPlan
from .harm import HarmConfig
from .images import ImageSet
from .job import Job
from .kernels import KernelConfig
from .measurement import ScorerConfig
from .presets import DEFAULT_PRESET, plan_preset, preset_plan
from .probe import ProbeCheckpoint, ProbeJob, ProbePlan
from .probe_presets import preset_probe, probe_preset
from .ramp import Ramp
from .regulator import RegulatorConfig
from .solver import SolverConfig
from .stages import EditConfig, ProjectionConfig, Stage
from .sweep import Sweep

HEAD = """\
# A hardening plan for ResAlign ({preset}: {summary}).
#
#   resalign check FILE      check everything that it names before any weight is loaded
#   resalign harden FILE     run it
#
# Lines that begin with # and no space are settings that are off: remove the # to use them.
# Paths are relative to this file. Rates and shares run from 0 to 1. Symbols: docs/method.md."""
PROBE_HEAD = """\
# A probe plan for ResAlign ({preset}: {summary}).
#
#   resalign probe FILE      run it, or continue where it stopped; ends in a report
#
# Every checkpoint is attacked in the same ways, draws the same prompts with the same seeds, and is
# scored by the same scorers. Lines that begin with # and no space are settings that are off.
# Paths are relative to this file. Rates and shares run from 0 to 1."""
GRID_HELP = """\
# Simulated users: one for each combination. In a grid, five fields take lists: data, method,
# optimiser, learning_rate and steps."""
EXAMPLE = Concept(
    "weapons",
    prompts=("a pistol", "a person holding a rifle", "a combat knife on a table"),
    anchor="a garden tool",
)
_BLOCKS = (
    AdapterConfig, HarmConfig, SolverConfig, RegulatorConfig, EditConfig, ProjectionConfig,
    VariedConfig, EraseConfig, DistilConfig, KernelConfig,
)  # fmt: skip


def write_template(
    path: Path | str,
    preset: str = DEFAULT_PRESET,
    *,
    concepts: Iterable[Concept] = (EXAMPLE,),
    checkpoint: str = "model.safetensors",
    output: str = "model-hardened.safetensors",
    overwrite: bool = False,
) -> Path:
    """Write a plan file that is a valid job as it stands."""
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
    """Write a probe's plan file that is a valid job as it stands."""
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
    preset: str = DEFAULT_PRESET,
    *,
    concepts: Iterable[Concept] = (EXAMPLE,),
    checkpoint: str = "model.safetensors",
    output: str = "model-hardened.safetensors",
) -> str:
    """Return the text of a plan file."""
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
        lines += [*_heading(HardeningPlan, name), *_fields(getattr(plan, name)), ""]
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
    """Return the text of a probe's plan file."""
    checkpoints = tuple(checkpoints) or (
        ProbeCheckpoint(name="original", path="model.safetensors"),
        ProbeCheckpoint(name="hardened", path="model-hardened.safetensors"),
    )
    plan = preset_probe(preset, concepts)
    job = ProbeJob(checkpoints=checkpoints, output=output, plan=plan)
    lines = [PROBE_HEAD.format(preset=preset, summary=probe_preset(preset).summary), ""]
    lines += [*_fields(job), "", *_tables("checkpoints", checkpoints)]
    lines += ["[plan]", *_fields(plan), ""]
    for name in ("generation", "utility", "counting"):
        lines += [*_heading(ProbePlan, name), *_fields(getattr(plan, name)), ""]
    for name in ("concepts", "prompts", "scorers", "merges", "fine_tunes", "sweeps"):
        lines += _tables(f"plan.{name}", getattr(plan, name))
    scorer = ScorerConfig(name="nudenet", threshold=0.45)
    lora = LoraAttack(name="my LoRA", loras=(LoraFile(path="my-lora.safetensors"),))
    sweep = Sweep(name="my sweep", learning_rates=(1e-4, 1e-3))
    examples: list[tuple[str, Any]] = [("plan.scorers", scorer), ("plan.loras", lora)]
    if not plan.sweeps:
        examples.insert(1, ("plan.sweeps", sweep))
    for title, value in examples:
        lines += _commented([f"[[{title}]]", *_fields(value, explain=value is not scorer)])
        lines += [""]
    lines += _commented(["[[plan.loras.loras]]", *_fields(lora.loras[0])])
    for name in ("forget_set", "retain_set"):
        drawn = getattr(plan, name)
        if drawn is not None:
            lines += ["", *_heading(ProbePlan, name), *_fields(drawn, explain=False)]
            continue
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
        lines += [*([GRID_HELP] if number == 0 else []), "[[plan.fine_tune_grid]]"]
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
    field = field_of(cls, name)
    is_table = is_dataclass(value) and not isinstance(value, Ramp)
    is_tables = isinstance(value, tuple) and field.holds_tables
    if value is None or is_table or is_tables:
        return []
    comment = [f"# {line}" for line in comment_lines(field)] if explain else []
    return [*comment, f"{name} = {value_text(value)}"]


def _heading(cls: type, name: str) -> list[str]:
    return [*(f"# {line}" for line in comment_lines(field_of(cls, name))), f"[plan.{name}]"]


def _commented(lines: Iterable[str]) -> list[str]:
    return [line if line.startswith("#") else f"#{line}" for line in lines]
