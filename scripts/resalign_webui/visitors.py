"""Removes absolute paths of this machine from all that visitors from others see."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .host import Host, roots

_END = r"\s/\\'\"<>|:;,()\[\]{}"  # what a path without quotes ends at
_QUOTED = re.compile(r"""(["'])((?:[A-Za-z]:[\\/]|\\\\|/)[^"'\n]+)\1""")
_POSIX = re.compile(rf"(?:file://|(?<![\w./]))/(?!/)(?:[^{_END}]+(?: [^{_END}]+)*/+)*[^{_END}]+/?")
_WINDOWS = re.compile(
    rf"(?<![A-Za-z0-9])(?:[A-Za-z]:[\\/]+|\\\\+)(?:[^{_END}]+(?: [^{_END}]+)*[\\/]+)*[^{_END}]*"
)
_SEPARATORS = re.compile(r"[\\/]+")
_KEPT = ("request", "pictures")  # of a state: its paths are shown by their last part alone


def without_paths(text: str, host: Host) -> str:
    """Return a text as a visitor may read it: unchanged on this machine alone.

    The host's own folders keep what lies below them; all other paths lose all but the last part.
    """
    if not host.remote():
        return text
    folders = [*roots(host), *host.further_folders()]
    for folder in sorted(folders, key=lambda path: len(str(path)), reverse=True):
        if folder.name:
            text = text.replace(str(folder), folder.name)
    text = _QUOTED.sub(lambda found: found[1] + _last(found[2]) + found[1], text)
    return _POSIX.sub(_unquoted, _WINDOWS.sub(lambda found: _last(found[0]), text))


def for_visitor(state: Any, host: Host) -> Any:
    """Return the state of a job without paths in its texts."""
    if not host.remote():
        return state
    if isinstance(state, str):
        return state if state.startswith("data:image/") else without_paths(state, host)
    if isinstance(state, Mapping):
        return {k: v if k in _KEPT else for_visitor(v, host) for k, v in state.items()}
    return [for_visitor(one, host) for one in state] if isinstance(state, list | tuple) else state


def _unquoted(found: re.Match[str]) -> str:
    """Replace a path that stands in a sentence; where it ends is what this machine knows.

    A part with a space belongs to it where such a folder is there; else the path ends at the space.
    """
    text = found[0].removeprefix("file://")
    first = text.find(" ")
    while first >= 0:
        end = text.find("/", first)
        if end < 0 or not Path(text[:end]).is_dir():
            break
        first = text.find(" ", end)
    if first < 0:
        return _last(text)
    kept = _POSIX.sub(_unquoted, text[first:])
    return _last(text[:first]) + kept


def _last(path: str) -> str:
    parts = [part for part in _SEPARATORS.split(path) if part]
    return parts[-1] if parts else ""
