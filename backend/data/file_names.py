"""Finds files of a folder by names that other systems wrote.

A table written on Windows has backslashes and may differ in case; macOS may write names in the
decomposed Unicode form. An exact match always wins; a looser one counts only if it is the only one.
"""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from ..errors import DataError


class FileNames:
    """Names of a folder's files, relative to it and with forward slashes."""

    def __init__(self, folder: Path, files: Iterable[Path]) -> None:
        self._folder = folder
        self.by_name = {path.relative_to(folder).as_posix(): path for path in files}
        self._composed: dict[str, list[str]] = {}
        self._folded: dict[str, list[str]] = {}
        for name in self.by_name:
            composed = unicodedata.normalize("NFC", name)
            self._composed.setdefault(composed, []).append(name)
            self._folded.setdefault(composed.casefold(), []).append(name)

    def name_of(self, path: Path) -> str:
        """Return the relative name of one of the files."""
        return path.relative_to(self._folder).as_posix()

    def find(self, name: str) -> Path | None:
        """Return the file of a relative name; raise if several differ from it in case only."""
        if name in self.by_name:
            return self.by_name[name]
        composed = unicodedata.normalize("NFC", name)
        for found in (self._composed.get(composed), self._folded.get(composed.casefold())):
            if found and len(found) > 1:
                raise DataError(
                    f"image set {self._folder}: {name} could be {' or '.join(sorted(found))}; "
                    "rename one of them"
                )
            if found:
                return self.by_name[found[0]]
        return None

    def find_written(self, text: str, base: str) -> Path | None:
        """Return the file that a table names. base: the table's folder, relative to the set's."""
        for written in dict.fromkeys((text, text.replace("\\", "/"))):
            for name in self._relative(written, base):
                if path := self.find(name):
                    return path
        return None

    def _relative(self, written: str, base: str) -> list[str]:
        if not os.path.isabs(written):
            return [posixpath.normpath(posixpath.join(base, written))]
        found = []
        for resolve in (os.path.abspath, os.path.realpath):
            name = os.path.relpath(resolve(written), resolve(self._folder))
            found.append(name.replace(os.sep, "/"))
        return found
