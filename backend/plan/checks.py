"""The checks that a config value makes of itself, from the descriptions of its fields.

Each message names the owner, the field, what was found and what would be right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from numbers import Real
from typing import Any, get_origin

from ..errors import ConfigError
from ..text import typed
from ..text.refused import WHY, sexualises_minors
from .field import INFINITY, Field, Range, fields_of, number_text, parts_in

_LARGEST = 10**300  # a whole number beyond it cannot be shown as a float


def freeze_lists(value: Any) -> None:
    """Turn what was given for fields that hold tuples into tuples."""
    for field in fields_of(type(value)).values():
        if get_origin(field.kind) is tuple:
            object.__setattr__(value, field.name, tuple(getattr(value, field.name)))


def check_fields(value: Any, owner: str) -> None:
    """Raise ConfigError for the first field that its own description forbids."""
    for field in fields_of(type(value)).values():
        _check(field, getattr(value, field.name), owner, value)


def within(owner: str, name: str, value: float, low: float, high: float) -> None:
    """Raise ConfigError unless low ≤ value ≤ high."""
    check_range(owner, name, value, Range(low, high))


def check_range(owner: str, name: str, value: Any, allowed: Range, *, of: Any = None) -> None:
    """Raise ConfigError for a number outside a range. of: the value whose fields the ends name."""
    if not _is_number(value):
        raise ConfigError(f"{owner}: {name} is {value!r}; it must be a number")
    low, high = _end(allowed.low, of), _end(allowed.high, of)
    inside = low < value if allowed.above else low <= value
    if not inside or not value <= high:
        ends = [
            f"{text} ({number_text(end)})" if isinstance(text, str) else number_text(text)
            for text, end in ((allowed.low, low), (allowed.high, high))
        ]
        bound = f"more than {ends[0]}" if allowed.above else f"at least {ends[0]}"
        limit = "" if high == INFINITY else f" and at most {ends[1]}"
        hint = f"; usual values are {allowed.usual}" if allowed.usual else ""
        raise ConfigError(f"{owner}: {name} is {_short(value)}; it must be {bound}{limit}{hint}")
    if allowed.step and value % allowed.step:
        raise ConfigError(f"{owner}: {name} is {value}; it must be a multiple of {allowed.step}")


def check_distinct(owner: str, what: str, names: Iterable[Any]) -> None:
    """Raise ConfigError if a name or a number stands twice."""
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise ConfigError(f"{owner}: two {what} are called {repeated[0]!r}")


def check_prompts(owner: str, texts: Iterable[str]) -> None:
    """Raise ConfigError for a text that would sexualise minors; the message does not repeat it."""
    for place, text in enumerate(texts, start=1):
        if sexualises_minors(text):
            raise ConfigError(f"{owner}: text {place} {WHY}")


def _check(field: Field, found: Any, owner: str, of: Any) -> None:
    items = found if isinstance(found, tuple) else (found,)
    if field.not_empty and not (found.strip() if isinstance(found, str) else found):
        some = f"; choose from {', '.join(field.choices)}" if field.choices else ""
        raise ConfigError(f"{owner}: {field.name} is empty{some}")
    if field.choices:
        for item in items:
            if item not in field.choices:
                known = ", ".join(field.choices)
                raise ConfigError(f"{owner}: {field.name} is {item!r}; choose from {known}")
    if field.range is not None:
        for item in items:
            own = item is None or isinstance(item, tuple(parts_in(field.kind)))
            if not own and item not in field.words:
                check_range(owner, field.name, item, field.range, of=of)


def _short(value: Any) -> str:
    return typed.shown(value) if abs(value) > _LARGEST else f"{value:g}"


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _end(end: float | str, of: Any) -> float:
    return getattr(of, end) if isinstance(end, str) else end
