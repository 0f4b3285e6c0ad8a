"""Inputs of nodes for fields of a plan: kind, range, choices and tooltip come from the field."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..backend.plan.document import explain
from ..backend.plan.field import INFINITY, Field
from ..backend.plan.settings import OWN
from .types import advanced

_MOST = 1_000_000  # of a number input whose field has no upper limit


def field_input(
    name: str,
    field: Field,
    *,
    keeps_preset: bool = False,
    hidden: bool = False,
    **options: Any,
) -> Any:
    """The input of a node for a field of a plan.

    keeps_preset: the input starts at a value of its own, 0 or `preset`, that leaves what the
    preset says. hidden: among the advanced inputs. options: replace what follows from the field,
    such as a narrower range; the step of a float is always given.
    """
    kind, found = _from_field(field, keeps_preset)
    found["tooltip"] = _tooltip(field, keeps_preset and kind is not io.Boolean)
    if keeps_preset and kind in (io.Int, io.Float):
        found["display_name"] = f"{name} (0 = auto)"
    found |= options
    return advanced(kind, name, **found) if hidden else kind.Input(name, **found)


def _from_field(field: Field, keeps_preset: bool) -> tuple[Any, dict[str, Any]]:
    if field.choices:
        choices = list(field.choices)
        if keeps_preset:
            return io.Combo, {"options": [OWN, *choices], "default": OWN}
        return io.Combo, {"options": choices, "default": field.default}
    if field.kind is bool:
        return io.Boolean, {"default": field.default}
    if field.kind is str:
        return io.String, {"default": field.default}
    assert field.range is not None, f"{field.name} has no range"
    low, high = field.range.low, field.range.high
    assert not isinstance(low, str) and not isinstance(high, str), "a limit is another field"
    number = int if field.is_whole else float
    found: dict[str, Any] = {
        "default": number(0) if keeps_preset else field.default,
        "min": number(0) if keeps_preset else low,
        "max": _MOST if high == INFINITY else number(high),
    }
    if number is float:
        found["max"] = float(found["max"])
        return io.Float, found
    if field.range.step:
        found["step"] = field.range.step
    return io.Int, found


def _tooltip(field: Field, keeps_preset: bool) -> str:
    own = OWN if field.choices else "0"
    return explain(field) + (f" {own} keeps the preset's value." if keeps_preset else "")
