"""TOML, from wherever it is: Python has it since 3.11; before, tomli does, or pip's copy of it.

The tab reads concepts in A1111's process, often a Python 3.10, where nothing may be installed.
"""

import json
import sys
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or sys.version_info >= (3, 11):
    from tomllib import TOMLDecodeError, loads  # pyright: ignore[reportMissingImports]
else:
    try:
        from tomli import TOMLDecodeError, loads
    except ModuleNotFoundError:
        from pip._vendor.tomli import TOMLDecodeError, loads

__all__ = ["TOMLDecodeError", "loads", "value_text"]


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
