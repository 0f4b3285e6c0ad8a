"""JSON from files of strangers: bounded in size, nesting and digits.

`json` itself raises a RecursionError for deep nesting and a plain ValueError for huge integers, and
what it accepts may still be too deep for the functions that walk it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .regular_file import check_regular

DEEPEST = 100  # levels of lists and objects
LONGEST = 64 << 20  # bytes of a file
_DIGITS = 400  # of a whole number; float64 ends at 309


class JsonError(ValueError):
    """A text that is not JSON, or beyond the limits; the message says which."""


def loads(text: str | bytes) -> Any:
    """Parse JSON; raise a JsonError, and no other error, where that fails."""
    if len(text) > LONGEST:
        raise JsonError(f"longer than {LONGEST >> 20} MiB")
    try:
        value = json.loads(text, parse_int=_whole)
    except RecursionError:
        raise JsonError(f"nested more than {DEEPEST} levels deep") from None
    except ValueError as error:  # UnicodeDecodeError included
        raise JsonError(str(error)) from None
    check_depth(value)
    return value


def read_bounded(path: Path) -> bytes:
    """Read a text file that may be a stranger's, without a byte order mark."""
    check_regular(path)
    with path.open("rb") as file:
        data = file.read(LONGEST + 1)
    return data.removeprefix(b"\xef\xbb\xbf")


def read(path: Path) -> Any:
    """Read a JSON file; raise a JsonError or an OSError."""
    return loads(read_bounded(path))


def check_depth(value: Any) -> None:
    """Raise a JsonError if lists and objects are nested too deep; does not recurse."""
    level = [value]
    for _ in range(DEEPEST + 1):
        inner: list[Any] = []
        for part in level:
            if isinstance(part, dict):
                inner += part.values()
            elif isinstance(part, list):
                inner += part
        level = [part for part in inner if isinstance(part, dict | list)]
        if not level:
            return
    raise JsonError(f"nested more than {DEEPEST} levels deep")


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise JsonError(f"a number has {len(digits)} digits")
    return int(digits)
