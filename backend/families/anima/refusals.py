"""Relatives of Anima that share its names and are refused, each by its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import CheckpointError

_CHANNELS = 16


def refuse_relatives(file: str, config: Mapping[str, Any]) -> None:
    """Raise for a denoiser of Cosmos that is not an image model of 16 channels. config: its own."""
    if config["in_channels"] != _CHANNELS or config["out_channels"] != _CHANNELS:
        raise CheckpointError(
            f"{file}: its denoiser takes {config['in_channels']} channels, not {_CHANNELS}: a "
            "video, inpainting or otherwise extended variant of Cosmos; give an Anima checkpoint"
        )
    if config.get("extra_pos_embed_type"):
        raise CheckpointError(
            f"{file}: its denoiser has learned positions, as Cosmos has for video and Anima has "
            "not; give an Anima checkpoint"
        )


def no_conditioner(file: str) -> CheckpointError:
    """Return the refusal of Cosmos Predict2 itself, which reads T5."""
    return CheckpointError(
        f"{file} has the denoiser of Cosmos Predict2 without a text conditioner (llm_adapter.*), "
        "which Anima keeps in the same file: Cosmos itself is not supported, and a conditioner "
        "from another file is not read; give an Anima checkpoint"
    )
