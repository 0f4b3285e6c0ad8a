"""Sides of images that a model cannot take, named before any weight is loaded.

A field of a plan allows multiples of 8. A model may need more: a transformer takes several elements
of a latent as one token.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint.info import CheckpointInfo
from ..errors import ConfigError


def size_problems(info: CheckpointInfo, sides: Mapping[str, int]) -> list[str]:
    """Return a sentence for each side that the model cannot take.

    sides: in pixels, by the names of their fields; 0 stands for the checkpoint's own.
    """
    family = info.family
    step = family.latents.space(info.configs.get(family.vae, {})).step
    return [
        f"{name} is {side or info.resolution}; {family.title} takes multiples of {step}"
        for name, side in sides.items()
        if (side or info.resolution) % step
    ]


def check_size(who: str, info: CheckpointInfo, sides: Mapping[str, int]) -> None:
    """Raise a ConfigError for sides that the model cannot take. who: begins the sentence."""
    if found := size_problems(info, sides):
        raise ConfigError(f"{who}: {'; '.join(found)}")
