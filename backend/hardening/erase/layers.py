"""The layers that may be erased from."""

from __future__ import annotations

import re
from typing import Any

from ...adapter.targets import target_modules
from ...errors import ConfigError
from ..setup import Setup


def erasable(setup: Setup) -> dict[str, Any]:
    """Return the layers to erase from by name: ordinary ones that do not read latents or times."""
    model, targets = setup.denoiser.model, setup.plan.erase.targets
    family = model.family
    groups = family.targets if targets else {"all": ""}
    entrances = re.compile(family.entrances)
    names = target_modules(model.denoiser, groups, targets or ("all",))
    layers = {name: model.denoiser.get_submodule(name) for name in names}
    found = {
        name: layer
        for name, layer in layers.items()
        if not entrances.search("." + name) and getattr(layer, "groups", 1) == 1
    }
    if not found:
        raise ConfigError(f"erase: targets {', '.join(targets)} leave no layer to erase from")
    return found
