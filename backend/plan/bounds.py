"""Checks of a plan's fields at birth: each message names the owner, the field, and the range."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import ConfigError


def choice(owner: str, name: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{owner}: {name} is {value!r}; choose from {', '.join(allowed)}")


def within(
    owner: str,
    name: str,
    value: float,
    low: float,
    high: float,
    hint: str = "",
    *,
    above: bool = False,
) -> None:
    """`low` ≤ value ≤ `high`, or `low` < value where `above`."""
    if not (low < value if above else low <= value) or not value <= high:
        bound = f"more than {low:g}" if above else f"at least {low:g}"
        limit = "" if high == float("inf") else f" and at most {high:g}"
        raise ConfigError(f"{owner}: {name} is {value:g}; it must be {bound}{limit}{hint}")
