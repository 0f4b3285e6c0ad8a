"""Harden text-to-image checkpoints so that a removed concept returns less after fine-tuning.

Importing this package takes milliseconds and loads neither torch nor a host: every public name
is fetched from its module when it is first used (PEP 562). ComfyUI and the A1111 tab load this
same file under names of their own, and pytest executes it as a plain module, so it has no
relative import at its top level.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names for editors and type checkers; a test compares
    from .backend.adapter.dense import DenseAdapter as DenseAdapter
    from .backend.adapter.formats import load_lora as load_lora
    from .backend.adapter.formats import save_lora as save_lora
    from .backend.adapter.lora import Adapter as Adapter
    from .backend.checkpoint.inspect import inspect as inspect
    from .backend.checkpoint.load import load_checkpoint as load_checkpoint
    from .backend.checkpoint.save import export_merged as export_merged
    from .backend.errors import CheckpointError as CheckpointError
    from .backend.errors import ConfigError as ConfigError
    from .backend.errors import DataError as DataError
    from .backend.errors import DivergenceError as DivergenceError
    from .backend.errors import ExportError as ExportError
    from .backend.errors import RankError as RankError
    from .backend.errors import ResAlignError as ResAlignError
    from .backend.errors import RunError as RunError
    from .backend.errors import UndecidedError as UndecidedError
    from .backend.hardening.run import HardenResult as HardenResult
    from .backend.hardening.run import harden as harden
    from .backend.hardening.run import resume as resume
    from .backend.memory.plan import MemoryPlan as MemoryPlan
    from .backend.memory.plan import plan_memory as plan_memory
    from .backend.parallel.launch import join_ranks as join_ranks
    from .backend.plan.adapter import AdapterConfig as AdapterConfig
    from .backend.plan.attack import FineTuneAttack as FineTuneAttack
    from .backend.plan.attack import LoraAttack as LoraAttack
    from .backend.plan.attack import LoraFile as LoraFile
    from .backend.plan.attack import MergeAttack as MergeAttack
    from .backend.plan.concept import Concept as Concept
    from .backend.plan.durable import DistilConfig as DistilConfig
    from .backend.plan.durable import EraseConfig as EraseConfig
    from .backend.plan.durable import VariedConfig as VariedConfig
    from .backend.plan.fine_tune import FineTuneConfig as FineTuneConfig
    from .backend.plan.fine_tune import fine_tune_grid as fine_tune_grid
    from .backend.plan.hardening import HardeningPlan as HardeningPlan
    from .backend.plan.harm import HarmConfig as HarmConfig
    from .backend.plan.images import ImageSet as ImageSet
    from .backend.plan.job import Job as Job
    from .backend.plan.measurement import CountingConfig as CountingConfig
    from .backend.plan.measurement import GenerationConfig as GenerationConfig
    from .backend.plan.measurement import PromptSet as PromptSet
    from .backend.plan.measurement import ScorerConfig as ScorerConfig
    from .backend.plan.measurement import UtilityConfig as UtilityConfig
    from .backend.plan.probe import ProbeCheckpoint as ProbeCheckpoint
    from .backend.plan.probe import ProbePlan as ProbePlan
    from .backend.plan.probe_presets import preset_probe as preset_probe
    from .backend.plan.ramp import Ramp as Ramp
    from .backend.plan.regulator import RegulatorConfig as RegulatorConfig
    from .backend.plan.solver import SolverConfig as SolverConfig
    from .backend.plan.sweep import Sweep as Sweep
    from .backend.probe.probe import probe as probe
    from .backend.probe.probe import run_probe as run_probe
    from .backend.probe.results import ProbeResult as ProbeResult
    from .backend.probe.results_io import read_probe as read_probe
    from .backend.probe.subjects import FileSubject as FileSubject
    from .backend.probe.subjects import LoadedSubject as LoadedSubject
    from .backend.probe.summarise import summarise as summarise
    from .backend.progress import Picture as Picture
    from .backend.progress import Progress as Progress
    from .backend.report.build import build_report as build_report
    from .backend.report.build import curve_png as curve_png
    from .backend.report.build import write_report as write_report
    from .backend.report.compare import compare_reports as compare_reports
    from .backend.report.schema import load_report as load_report
    from .backend.scorers.denoising import DenoisingScorer as DenoisingScorer
    from .backend.scorers.protocol import ModelScorer as ModelScorer
    from .backend.scorers.protocol import Scorer as Scorer
    from .backend.scorers.registry import build_scorer as build_scorer
    from .backend.scorers.registry import scorer_names as scorer_names
    from .backend.scorers.scores import Scores as Scores

__version__ = "0.1.0"
WEB_DIRECTORY = "./web"  # ComfyUI serves the scripts of this folder to its page

_MODULE_OF = {
    "Adapter": "backend.adapter.lora",
    "AdapterConfig": "backend.plan.adapter",
    "CheckpointError": "backend.errors",
    "Concept": "backend.plan.concept",
    "ConfigError": "backend.errors",
    "DataError": "backend.errors",
    "DenoisingScorer": "backend.scorers.denoising",
    "DenseAdapter": "backend.adapter.dense",
    "DistilConfig": "backend.plan.durable",
    "DivergenceError": "backend.errors",
    "EraseConfig": "backend.plan.durable",
    "ExportError": "backend.errors",
    "FileSubject": "backend.probe.subjects",
    "FineTuneAttack": "backend.plan.attack",
    "FineTuneConfig": "backend.plan.fine_tune",
    "GenerationConfig": "backend.plan.measurement",
    "HardenResult": "backend.hardening.run",
    "HardeningPlan": "backend.plan.hardening",
    "HarmConfig": "backend.plan.harm",
    "ImageSet": "backend.plan.images",
    "Job": "backend.plan.job",
    "LoadedSubject": "backend.probe.subjects",
    "LoraAttack": "backend.plan.attack",
    "LoraFile": "backend.plan.attack",
    "MemoryPlan": "backend.memory.plan",
    "MergeAttack": "backend.plan.attack",
    "ModelScorer": "backend.scorers.protocol",
    "Picture": "backend.progress",
    "ProbeCheckpoint": "backend.plan.probe",
    "ProbePlan": "backend.plan.probe",
    "ProbeResult": "backend.probe.results",
    "Progress": "backend.progress",
    "PromptSet": "backend.plan.measurement",
    "Ramp": "backend.plan.ramp",
    "RegulatorConfig": "backend.plan.regulator",
    "RankError": "backend.errors",
    "ResAlignError": "backend.errors",
    "RunError": "backend.errors",
    "Scorer": "backend.scorers.protocol",
    "ScorerConfig": "backend.plan.measurement",
    "Scores": "backend.scorers.scores",
    "SolverConfig": "backend.plan.solver",
    "Sweep": "backend.plan.sweep",
    "CountingConfig": "backend.plan.measurement",
    "UndecidedError": "backend.errors",
    "UtilityConfig": "backend.plan.measurement",
    "VariedConfig": "backend.plan.durable",
    "build_report": "backend.report.build",
    "build_scorer": "backend.scorers.registry",
    "curve_png": "backend.report.build",
    "compare_reports": "backend.report.compare",
    "export_merged": "backend.checkpoint.save",
    "fine_tune_grid": "backend.plan.fine_tune",
    "harden": "backend.hardening.run",
    "inspect": "backend.checkpoint.inspect",
    "join_ranks": "backend.parallel.launch",
    "load_checkpoint": "backend.checkpoint.load",
    "load_report": "backend.report.schema",
    "load_lora": "backend.adapter.formats",
    "plan_memory": "backend.memory.plan",
    "preset_probe": "backend.plan.probe_presets",
    "probe": "backend.probe.probe",
    "read_probe": "backend.probe.results_io",
    "resume": "backend.hardening.run",
    "run_probe": "backend.probe.probe",
    "save_lora": "backend.adapter.formats",
    "scorer_names": "backend.scorers.registry",
    "summarise": "backend.probe.summarise",
    "write_report": "backend.report.build",
}

__all__ = ["WEB_DIRECTORY", "__version__", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    """The public name `name`, imported from its module on first use."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


async def comfy_entrypoint() -> Any:
    """Return the nodes; ComfyUI calls it."""
    from .nodes import load

    return load()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
