"""Numbers of layers that an untrusted file may state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import CheckpointError

MOST_LAYERS = 128


def check_depths(
    file: str, configs: Mapping[str, Mapping[str, Any]], fields: Mapping[str, str], *, least: int
) -> None:
    """Raise for a network with fewer layers than `least`, or more than any model has.

    fields: by component, the config's field that holds its number of layers.
    """
    for component, field in fields.items():
        layers = configs[component][field]
        if not least <= layers <= MOST_LAYERS:
            raise CheckpointError(
                f"{file}: its {component} has {layers} layers, more or fewer than any model of "
                "its family"
            )
