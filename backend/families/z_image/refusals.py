"""Relatives of Z-Image that share its names and are refused, each by its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import CheckpointError
from ..base.relatives import relative

_CHANNELS, OURS = 16, "Z-Image"


def refuse_relatives(file: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise for variants that have further tensors. shapes: of the denoiser, without prefix."""
    named = relative(shapes)
    if named and named != OURS:
        raise CheckpointError(f"{file} is {named}, which is not supported: give Z-Image")


def refuse_config(file: str, config: Mapping[str, Any]) -> None:
    """Raise for variants that differ in their inputs. config: of the denoiser."""
    if config.get("siglip_feat_dim"):
        raise CheckpointError(f"{file} is Z-Image Omni, which is not supported: give Z-Image")
    if config["in_channels"] != _CHANNELS:
        raise CheckpointError(
            f"{file}: its denoiser takes {config['in_channels']} channels, not {_CHANNELS}: a "
            "control or otherwise extended variant of Z-Image; give Z-Image itself"
        )
