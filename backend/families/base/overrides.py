"""Config fields that a single file may set in its metadata, as shapes cannot tell them.

The key `resalign.config` holds JSON such as
{"unet": {"attention_head_dim": 4, "norm_num_groups": 8}}. The file is untrusted input, so few
fields are allowed, and each value is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...errors import CheckpointError
from ...text import json_text

CONFIG_KEY = "resalign.config"
Allowed = Mapping[str, Mapping[str, Callable[[Any], bool]]]  # component to field to check


def apply_overrides(
    file: str, configs: dict[str, dict[str, Any]], metadata: Mapping[str, str], allowed: Allowed
) -> None:
    """Apply the metadata key to `configs`, in place."""
    if CONFIG_KEY not in metadata:
        return
    try:
        overrides = json_text.loads(metadata[CONFIG_KEY])
        items = [(name, *item) for name, fields in overrides.items() for item in fields.items()]
    except (ValueError, AttributeError):
        raise CheckpointError(
            f"{file}: the metadata key {CONFIG_KEY} must be JSON that maps components to fields, "
            'e.g. {"unet": {"norm_num_groups": 8}}'
        ) from None
    for component, key, value in items:
        fields = allowed.get(component.removesuffix("_2"), {})
        if component not in configs or key not in fields:
            raise CheckpointError(
                f"{file}: the metadata key {CONFIG_KEY} sets {component}.{key}; it may set "
                + "; ".join(f"{name}: {', '.join(keys)}" for name, keys in allowed.items())
            )
        if not fields[key](value):
            raise CheckpointError(
                f"{file}: the metadata key {CONFIG_KEY} sets {component}.{key} to {value!r}, which "
                "is not a value for it"
            )
        configs[component][key] = value


def is_count(value: Any) -> bool:
    """A whole number from 1 to 4096."""
    return type(value) is int and 0 < value <= 4096


def are_counts(value: Any) -> bool:
    """A count, or a short list of counts."""
    if isinstance(value, list):
        return len(value) < 9 and all(map(is_count, value))
    return is_count(value)


def is_switch(value: Any) -> bool:
    """True or false."""
    return isinstance(value, bool)


def is_number(value: Any) -> bool:
    """A number above 0 and below 10 000."""
    return type(value) in (int, float) and 0 < value < 1e4
