"""Checks the name of a new file, as a user enters it in a host; the same on every system."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import ConfigError

SUFFIX = ".safetensors"
LONGEST = 120  # characters
# File systems end at 255 bytes of UTF-8, where a Chinese letter has three. Companions, numbers and
# temporary names add to a name: `-lora`, `_00002`, `.safetensors`, `.resalign-partial`.
MOST_BYTES = 200
_NEVER = re.compile(r'[<>:"|?*\x00-\x1f]')
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # of Windows


def file_name_parts(text: str, what: str) -> list[str]:
    """Split a name, which may name subfolders, into its parts, without the suffix.

    Raises a ConfigError for a name that leads outside, that a system cannot store, or none.
    """
    name = text.strip().removesuffix(SUFFIX)
    if not name:
        raise ConfigError(f"{what} is empty: enter a name; use letters, digits, - and _")
    if len(name) > LONGEST:
        raise ConfigError(f"{what} has {len(name)} characters: use {LONGEST} at most")
    parts = re.split(r"[\\/]", name)
    for part in parts:
        if why := too_long(part):
            raise ConfigError(f"{what} {why}")
    bad = not all(parts) or ".." in parts or _NEVER.search(name)
    if bad or any(part != part.strip(" .") for part in parts):
        raise ConfigError(f"{what}: {text!r} is not a file name; use letters, digits, - and _")
    for part in parts:
        if _DEVICES.fullmatch(part):
            raise ConfigError(f"{what}: Windows keeps the name {part!r} for itself; use another")
    return parts


def too_long(name: str | Path) -> str:
    """Return why the last part of a path is too long to be stored; empty if it is not."""
    text = Path(name).name.removesuffix(SUFFIX)
    size = len(text.encode("utf-8", "surrogatepass"))
    if size <= MOST_BYTES:
        return ""
    return f"takes {size} bytes: use {MOST_BYTES} at most; letters beyond a to z take 2 to 4 each"
