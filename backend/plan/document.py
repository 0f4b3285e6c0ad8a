"""The description of fields as text: docstrings, tooltips, and lines of comment."""

from __future__ import annotations

import json
import textwrap
import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar

from .field import Field, fields_of, parts_in

C = TypeVar("C", bound=type)


def document(cls: C) -> C:
    """Class decorator: let `help(cls)` show the descriptions of the fields below the docstring."""
    setattr(cls, "__doc__", _Docstring(cls.__doc__))  # noqa: B010
    return cls


class _Docstring:
    """Builds a class's docstring when somebody reads it: importing a plan stays quick."""

    def __init__(self, text: str | None) -> None:
        self._text = text

    def __get__(self, instance: object, owner: type) -> str | None:
        if self._text is None:  # python -OO
            return None
        lines = [line for field in fields_of(owner).values() for line in _entry(field)]
        body = "\n".join(f"    {line}".rstrip() for line in lines)
        return f"{self._text.rstrip()}\n\n    Fields:\n{body}\n"


def explain(field: Field) -> str:
    """Help, meanings of the choices, and limits as one paragraph."""
    told = {value: meaning for value, meaning in field.choices.items() if meaning}
    choices = "; ".join(f"{value}: {meaning}" for value, meaning in told.items())
    parts = (field.help, f"{choices[:1]}{choices[1:]}." if choices else "", field.limits)
    return " ".join(part for part in parts if part)


def comment_lines(field: Field, width: int = 92) -> list[str]:
    """The description as lines: help and limits, then one line for each choice."""
    told = any(field.choices.values())
    names = "" if told or not field.choices else f"One of {', '.join(field.choices)}."
    if field.choices and isinstance(field.default, tuple):
        names = names.replace("One of", "Any of")
    lines = textwrap.wrap(" ".join(filter(None, (field.help, names, field.limits))), width)
    if typing.get_origin(field.kind) in (typing.Union, types.UnionType) and field.range:
        lines += [_inline(part) for part in parts_in(field.kind)]
    for value, meaning in field.choices.items():
        if told:
            lines += textwrap.wrap(
                f"{value}: {meaning}" if meaning else value,
                width, initial_indent="  ", subsequent_indent="    ",
            )  # fmt: skip
    return lines


def default_text(field: Field) -> str:
    """The default as it is written in a plan file; empty where it is a table, or there is none."""
    value = field.default
    if value is MISSING or value is None or is_dataclass(value):
        return ""
    if isinstance(value, tuple) and any(is_dataclass(item) for item in value):
        return ""
    return value_text(value)


def value_text(value: Any) -> str:
    """A value as TOML writes it; long lists over several lines, config values as inline tables."""
    if is_dataclass(value):
        parts = (f"{item.name} = {value_text(getattr(value, item.name))}" for item in fields(value))
        return "{ " + ", ".join(parts) + " }"
    if isinstance(value, tuple | list):
        inline = "[" + ", ".join(value_text(item) for item in value) + "]"
        if len(inline) < 80 or not value:
            return inline
        return "[\n" + "".join(f"  {value_text(item)},\n" for item in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return repr(value)


def _inline(cls: type) -> str:
    """A config value that stands in place of a number, as TOML writes it."""
    parts = []
    for field in fields_of(cls).values():
        names = " or ".join(f'"{value}"' for value in field.choices)
        parts.append(f"{field.name} = {names or default_text(field) or '...'}")
    return "  " + "{ " + ", ".join(parts) + " }"


def _entry(field: Field) -> list[str]:
    default = default_text(field)
    if field.default is MISSING:
        default = "required"
    kind = ", ".join(filter(None, (field.type_text, default and f"default {default}")))
    kind = kind.replace("default required", "required")
    lines = comment_lines(field, 84)
    return [f"    {field.name} ({kind})", *(f"        {line}" for line in lines)]
