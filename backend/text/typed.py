"""Values of records that may be a stranger's: of the type that the code reckons with, or refused.

Each function returns the value as it is, or raises a TypeError or ValueError that names the field;
whoever reads the record turns that into its own error.
"""

from __future__ import annotations

from typing import Any

_LARGEST = 2**63 - 1
_SHOWN = 40  # characters of a wrong value in a message


def text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{what} is {shown(value)}, not a text")
    return value


def count(value: Any, what: str) -> int:
    """A whole number from 0, in 64 bits."""
    if type(value) is not int:
        raise TypeError(f"{what} is {shown(value)}, not a whole number")
    if not 0 <= value <= _LARGEST:
        raise ValueError(f"{what} is {shown(value)}, out of range")
    return value


def flag(value: Any, what: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{what} is {shown(value)}, not true or false")
    return value


def figure(value: Any, what: str) -> float:
    """A number that float64 holds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} is {shown(value)}, not a number")
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise ValueError(f"{what} is {shown(value)}, out of range")
    return value


def shown(value: Any) -> str:
    """Return the beginning of a value, for a message."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _LARGEST:
        return f"a number of {len(str(abs(value)))} digits"
    found = repr(value)
    return found if len(found) <= _SHOWN else found[:_SHOWN] + "..."
