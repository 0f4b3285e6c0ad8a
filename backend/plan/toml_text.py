"""TOML, from wherever it is: Python has it since 3.11; before, tomli does, or pip's copy of it.

The tab reads concepts in A1111's process, often a Python 3.10, where nothing may be installed.
"""

import re
import sys
from typing import TYPE_CHECKING, Any

from ..text.json_text import DEEPEST, JsonError, check_depth

if TYPE_CHECKING or sys.version_info >= (3, 11):
    from tomllib import loads as _loads  # pyright: ignore[reportMissingImports]
else:
    try:
        from tomli import loads as _loads
    except ModuleNotFoundError:
        from pip._vendor.tomli import loads as _loads

__all__ = ["TOMLDecodeError", "loads"]

_LONGEST = 4 << 20  # characters: it is parsed in Python, some MB per second
_PART = r"""[\w"'-]+"""
_DOTTED = re.compile(  # a key of many parts, which takes quadratic time
    rf"(?:^|[{{,])[ \t]*\[{{0,2}}[ \t]*{_PART}(?:[ \t]*\.[ \t]*{_PART}){{{DEEPEST},}}", re.MULTILINE
)


class TOMLDecodeError(ValueError):
    """A text that is not TOML, or beyond the limits; the message says which."""


def loads(text: str) -> dict[str, Any]:
    """Parse TOML; raise a TOMLDecodeError, and no other error, where that fails."""
    if len(text) > _LONGEST:
        raise TOMLDecodeError(f"longer than {_LONGEST >> 20} MiB")
    if _DOTTED.search(text):
        raise TOMLDecodeError(f"a key has more than {DEEPEST} parts")
    try:
        value = _loads(text)
        check_depth(value)
    except RecursionError:
        raise TOMLDecodeError(f"nested more than {DEEPEST} levels deep") from None
    except (ValueError, JsonError) as error:
        raise TOMLDecodeError(str(error)) from None
    return value
