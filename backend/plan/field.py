"""The description of a plan's fields: help, range and choices, written once, in the annotation.

    rank: Annotated[int, Range(1, 1024, usual="4 to 16"), Help("Rank of the adapter.")] = 4

Everything that tells people about a field reads it through `fields_of` or `field_of`: the checks of
a value, plan templates, docstrings, ComfyUI's inputs, the tab's forms, `--help` and docs/plan.md.
"""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, MISSING, dataclass, fields, is_dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal, Union

INFINITY = float("inf")


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers that a field accepts, ends included.

    Either end may be the name of another field of the same value, whose value is then the limit.
    above: the lower end itself is excluded. step: the value must be a multiple of it. usual: what
    people choose, as text; shown with the range, and in the error for a value outside it.
    """

    low: float | str
    high: float | str = INFINITY
    _: KW_ONLY
    above: bool = False
    step: int = 0
    usual: str = ""

    def __str__(self) -> str:
        low, high = number_text(self.low), number_text(self.high)
        if self.above:
            text = f"more than {low}" + ("" if self.high == INFINITY else f", at most {high}")
        else:
            text = f"at least {low}" if self.high == INFINITY else f"{low} to {high}"
        text += f", a multiple of {self.step}" if self.step else ""
        return text + (f"; usually {self.usual}" if self.usual else "")


@dataclass(frozen=True, slots=True)
class Help:
    """The meaning of a field, in sentences. label: its name on a form, where that is clearer."""

    text: str
    label: str = ""


class Choices:
    """The meaning of each value of a `Literal`, as a phrase; optional where the names say it."""

    def __init__(self, **meanings: str) -> None:
        self.meanings = meanings


class Mark:
    """A property that a field has or has not."""

    def __init__(self, name: str) -> None:
        self.name = name


NOT_EMPTY = Mark("not empty")  # an empty text or list is an error
PATH = Mark("path")  # in a plan file, relative to the file's folder


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a plan, as its annotation describes it."""

    owner: type
    name: str
    kind: Any  # its type, without the description
    default: Any  # MISSING where the field is required
    help: str
    label: str
    range: Range | None
    choices: Mapping[str, str]  # each value of the Literal, or of the items, and its meaning
    is_path: bool
    not_empty: bool

    @property
    def type_text(self) -> str:
        return type_text(self.kind)

    @property
    def is_whole(self) -> bool:
        """True for a whole number, also where a word such as `auto` may stand in its place."""
        return self.kind is int or int in typing.get_args(self.kind)

    @property
    def words(self) -> tuple[str, ...]:
        """The words that may stand in place of a number."""
        return tuple(
            word
            for option in typing.get_args(self.kind)
            if typing.get_origin(option) is Literal
            for word in typing.get_args(option)
        )

    @property
    def holds_tables(self) -> bool:
        """True for a list of config values."""
        return typing.get_origin(self.kind) is tuple and any(parts_in(self.kind))

    @property
    def limits(self) -> str:
        """The range as a sentence, empty where there is none."""
        text = str(self.range) if self.range else ""
        return f"{text[:1].upper()}{text[1:]}." if text else ""


@lru_cache
def fields_of(cls: type) -> dict[str, Field]:
    """The fields of a config class by name, in their order."""
    hints = _hints(cls)
    return {item.name: _field(cls, item, hints[item.name]) for item in fields(cls)}


def field_of(cls: type, path: str) -> Field:
    """A field by its path: `seed`, or `solver.gamma` for one of a part."""
    name, _, rest = path.partition(".")
    found = fields_of(cls)[name]
    return field_of(next(parts_in(found.kind)), rest) if rest else found


def value_at(value: Any, path: str) -> Any:
    """The value of a field by its path."""
    for name in path.split("."):
        value = getattr(value, name)
    return value


def classes_of(*roots: type) -> tuple[type, ...]:
    """Config classes and all that their fields are made of, each once."""
    found: dict[type, None] = {}
    for root in roots:
        if root not in found:
            found[root] = None
            for field in fields_of(root).values():
                for part in parts_in(field.kind):
                    found |= dict.fromkeys(classes_of(part))
    return tuple(found)


def parts_in(kind: Any) -> Iterator[type]:
    """The config classes in a field's type: itself, an item, or a member of a union."""
    if is_dataclass(kind):
        yield typing.cast(type, kind)
    for option in typing.get_args(kind):
        yield from parts_in(option)


def number_text(value: float | str) -> str:
    """A number as people write it: 1000000, 0.0001, 2^63 - 1; a field's name as it is."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and value >= 2**31 - 1:
        power = (value + 1).bit_length() - 1
        if value in (2**power, 2**power - 1):
            return f"2^{power}" + (" - 1" if value < 2**power else "")
    return str(int(value)) if abs(value) < 1e9 and value == int(value) else f"{value:g}"


def type_text(kind: Any) -> str:
    """A type in words: `whole number`, `list of texts`, `number or Ramp`."""
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_option_text(option) for option in options if option is not type(None))
    if origin is tuple:
        return f"list of {type_text(options[0])}" + ("" if is_dataclass(options[0]) else "s")
    if origin is Literal:
        return "choice"
    names = {bool: "true or false", int: "whole number", float: "number", str: "text"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _option_text(kind: Any) -> str:
    """A member of a union: words by themselves, as they are written."""
    if typing.get_origin(kind) is Literal:
        return " or ".join(f'"{word}"' for word in typing.get_args(kind))
    return type_text(kind)


def plain_types(cls: type) -> dict[str, Any]:
    """The type of each field, without its description."""
    return {name: field.kind for name, field in fields_of(cls).items()}


def _hints(cls: type) -> dict[str, Any]:
    # Not get_type_hints(cls): Python 3.10 cannot evaluate an InitVar.
    names = {item.name: item.type for item in fields(cls)}
    holder = type("Hints", (), {"__annotations__": names})
    return typing.get_type_hints(holder, vars(sys.modules[cls.__module__]), include_extras=True)


def _field(cls: type, item: Any, hint: Any) -> Field:
    kind, marks = _unwrapped(hint)
    if typing.get_origin(kind) is tuple:
        inner, more = _unwrapped(typing.get_args(kind)[0])
        if more:
            kind, marks = tuple[inner, ...], (*more, *marks)
    else:
        inner = kind
    meanings = next((mark.meanings for mark in marks if isinstance(mark, Choices)), {})
    values = typing.get_args(inner) if typing.get_origin(inner) is Literal else ()
    # The last one counts: a shared type may bring its own, and a field may replace it.
    told = next((mark for mark in reversed(marks) if isinstance(mark, Help)), Help(""))
    default = item.default
    if item.default_factory is not MISSING:
        default = item.default_factory()
    return Field(
        owner=cls,
        name=item.name,
        kind=kind,
        default=default,
        help=told.text,
        label=told.label or item.name.replace("_", " ").capitalize(),
        range=next((mark for mark in reversed(marks) if isinstance(mark, Range)), None),
        choices={value: meanings.get(value, "") for value in values},
        is_path=PATH in marks,
        not_empty=NOT_EMPTY in marks,
    )


def _unwrapped(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    if typing.get_origin(hint) is Annotated:
        kind, *marks = typing.get_args(hint)
        return kind, tuple(marks)
    return hint, ()
