"""Harden text-to-image checkpoints so that a removed concept stays removed after fine-tuning.

Importing this package takes milliseconds and loads neither torch nor a host: every public name
is fetched from its module when it is first used (PEP 562). ComfyUI and the A1111 tab load this
same file under names of their own, and pytest executes it as a plain module, so it has no
relative import at its top level.
"""

from __future__ import annotations

__version__ = "0.1.0"
WEB_DIRECTORY = "./web"  # ComfyUI serves the scripts of this folder to its page

_MODULE_OF = {
    "Adapter": "backend.adapter.lora",
    "AdapterConfig": "backend.config",
    "CheckpointError": "backend.errors",
    "Concept": "backend.config",
    "ConfigError": "backend.errors",
    "DataError": "backend.errors",
    "DivergenceError": "backend.errors",
    "ExportError": "backend.errors",
    "FineTuneConfig": "backend.config",
    "HardenResult": "backend.harden",
    "HardeningPlan": "backend.config",
    "HarmConfig": "backend.config",
    "ImageSet": "backend.config",
    "Job": "backend.config",
    "Progress": "backend.progress",
    "Ramp": "backend.config",
    "RegulatorConfig": "backend.config",
    "ResAlignError": "backend.errors",
    "RunError": "backend.errors",
    "SolverConfig": "backend.config",
    "export_merged": "backend.checkpoint.save",
    "fine_tune_grid": "backend.config",
    "harden": "backend.harden",
    "inspect": "backend.checkpoint.inspect",
    "load_checkpoint": "backend.checkpoint.load",
    "load_lora": "backend.adapter.formats",
    "resume": "backend.harden",
    "save_lora": "backend.adapter.formats",
}

__all__ = ["WEB_DIRECTORY", "__version__", *_MODULE_OF]


def __getattr__(name: str) -> object:
    """The public name `name`, imported from its module on first use."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
