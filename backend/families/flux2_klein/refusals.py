"""Relatives of FLUX.2 klein 4B that share its names and are refused, each by its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import CheckpointError

_NINE, _DEV = 4096, 6144  # widths
_CHANNELS = 128


def refuse_relatives(file: str, config: Mapping[str, Any]) -> None:
    """Raise a CheckpointError for FLUX.2 models other than klein 4B. config: of the denoiser."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    if config["guidance_embeds"] or width == _DEV:
        raise CheckpointError(
            f"{file} is FLUX.2 dev (or distilled like it, with guidance as an input), which reads "
            "Mistral and is not supported: give FLUX.2 klein base 4B"
        )
    if width == _NINE:
        raise CheckpointError(
            f"{file} is FLUX.2 klein 9B, which reads Qwen3 8B, has another licence and is not "
            "supported: give FLUX.2 klein base 4B"
        )
    if config["in_channels"] != _CHANNELS:
        raise CheckpointError(
            f"{file}: its denoiser takes {config['in_channels']} channels, not {_CHANNELS}: an "
            "inpainting, control or otherwise extended variant of FLUX.2; give FLUX.2 klein base 4B"
        )


def distilled_klein(name: str) -> str:
    """Return why a file or folder of this name may be the distilled klein; empty for the base.

    Both have the same tensors: only the name tells them apart.
    """
    if "base" in name.lower():
        return ""
    return (
        f"FLUX.2 klein without `base` in the name {name[:80]!r}; base and distilled have the same "
        "tensors, and the plain name is that of the distilled model"
    )
