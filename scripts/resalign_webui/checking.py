"""Reads values that a page sends. A page can be forged, so every value is checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ...backend.errors import ConfigError
from ...backend.plan.field import INFINITY, Field
from ...backend.plan.settings import OWN

Values = Mapping[str, Any]
_LONGEST = 20_000  # characters of a text


def text(values: Values, name: str, default: str = "") -> str:
    value = values.get(name)
    if value is None:
        return default
    if not isinstance(value, str) or len(value) > _LONGEST:
        raise ConfigError(f"{_said(name)}: expected a text of at most {_LONGEST} characters")
    if "\0" in value or value.encode("utf-8", "replace").decode() != value:
        raise ConfigError(f"{_said(name)}: it contains characters that are not valid in text")
    return value.strip()


def flag(values: Values, name: str) -> bool:
    value = values.get(name, False)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise ConfigError(f"{_said(name)}: expected yes or no, not {str(value)[:80]!r}")


def whole(values: Values, name: str, default: int, low: int, high: int) -> int:
    value = number(values, name, default, low, high)
    if value != int(value):
        raise ConfigError(f"{_said(name)} is {value:g}; it must be a whole number")
    return int(value)


def number(values: Values, name: str, default: float, low: float, high: float) -> float:
    value = values.get(name)
    if value is None or value == "":
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{_said(name)}: {str(value)[:80]!r} is not a number")
    if not low <= value <= high:
        raise ConfigError(f"{_said(name)} is {value:g}; it must be from {low:g} to {high:g}")
    return value


def one_of(values: Values, name: str, choices: Iterable[str], default: str = "") -> str:
    value, known = values.get(name) or default, list(choices)
    if value in known:
        return str(value)
    raise ConfigError(f"{_said(name)} is {str(value)[:80]!r}; choose from {', '.join(known)}")


def some_of(values: Values, name: str, choices: Iterable[str]) -> list[str]:
    found, known = values.get(name) or [], list(choices)
    if not isinstance(found, list | tuple):
        raise ConfigError(f"{_said(name)}: expected a list, not {str(found)[:80]!r}")
    for value in found:
        if value not in known:
            wrong = str(value)[:80]
            raise ConfigError(f"{_said(name)}: {wrong!r} is none of {', '.join(known)}")
    return list(dict.fromkeys(found))


def field_value(
    values: Values, name: str, field: Field, *, default: Any = None, keeps_preset: bool = False
) -> Any:
    """The value for a field of a plan, within its range or among its choices.

    keeps_preset: 0 or `preset` is allowed too, and is the default; it leaves what the preset says.
    """
    if field.choices:
        choices = [OWN, *field.choices] if keeps_preset else list(field.choices)
        return one_of(values, name, choices, default or choices[0])
    if field.kind is bool:
        return flag(values, name)
    low, high = limits_of(field)
    if keeps_preset:
        low, default = 0, 0
    read = whole if field.is_whole else number
    return read(values, name, field.default if default is None else default, low, high)  # type: ignore[arg-type]


def limits_of(field: Field) -> tuple[Any, Any]:
    """The ends of a field's range; a field that has none, or another field as one, is a bug."""
    assert field.range is not None, f"{field.name} has no range"
    low, high = field.range.low, field.range.high
    assert not isinstance(low, str) and not isinstance(high, str), f"{field.name}: no fixed range"
    return low, 1_000_000 if high == INFINITY else high


def _said(name: str) -> str:
    return name.replace("_", " ")
