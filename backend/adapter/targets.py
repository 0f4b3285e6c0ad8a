"""Selects the modules of the denoiser that an adapter changes, by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    from torch import nn


def target_modules(
    denoiser: nn.Module, groups: Mapping[str, str], targets: Iterable[str]
) -> tuple[str, ...]:
    """List all linear and convolution layers that the targets select, in network order.

    groups: the family's `targets`.
    """
    from torch import nn  # takes seconds; matching names does not need it

    targets = tuple(targets)
    pattern = target_pattern(groups, targets)
    names = tuple(
        name
        for name, module in denoiser.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and pattern.search("." + name)
    )
    if not names:
        raise ConfigError(
            f"adapter: targets {', '.join(targets)} match no layer of this denoiser; choose "
            f"another of {', '.join(groups)}"
        )
    return names


def target_pattern(groups: Mapping[str, str], targets: Iterable[str]) -> re.Pattern[str]:
    """Return the expression to search in "." + the name of a module of the denoiser."""
    targets = tuple(targets)
    unknown = [target for target in targets if target not in groups]
    if unknown:
        raise ConfigError(
            f"adapter: this denoiser has no target {unknown[0]!r}; choose from {', '.join(groups)}"
        )
    return re.compile("|".join(f"(?:{groups[target]})" for target in targets))
