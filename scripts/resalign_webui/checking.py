"""Checks values that a page sends: a page can be forged, so nothing is trusted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ...backend.errors import ConfigError

Values = Mapping[str, Any]
_LONGEST = 20_000  # characters of a text


def text(values: Values, name: str, default: str = "") -> str:
    value = values.get(name)
    if value is None:
        return default
    if not isinstance(value, str) or len(value) > _LONGEST:
        raise ConfigError(f"{_said(name)}: expected a text of at most {_LONGEST} characters")
    if "\0" in value or value.encode("utf-8", "replace").decode() != value:
        raise ConfigError(f"{_said(name)}: it contains characters that are not text")
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


def _said(name: str) -> str:
    return name.replace("_", " ")
