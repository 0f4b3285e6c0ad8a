"""Diffusers folders of transformers: reads their configs and refuses quantised ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ...errors import CheckpointError
from .stored import StoredFolder


def denoiser_class(folder: StoredFolder, component: str) -> str | None:
    """Return the class that model_index.json names for a component; None where it names none."""
    named = folder.index.get(component)
    return named[1] if isinstance(named, list) and len(named) > 1 else None


def read_configs(folder: StoredFolder, components: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Read the configs of the components."""
    return {name: folder.read(f"{name}/config.json") for name in components}


def refuse_quantised(
    folder: str, configs: Mapping[str, Mapping[str, Any]], components: Iterable[str]
) -> None:
    """Raise where one of the components is quantised."""
    for component in components:
        if configs[component].get("quantization_config"):
            raise CheckpointError(
                f"{folder}: its {component} is quantised (quantization_config): give the bf16 "
                "folder"
            )
