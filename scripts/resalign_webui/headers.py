"""The actions that tell what a checkpoint's header says, without a job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...backend.errors import ResAlignError
from ...backend.worker.requests import checkpoint_path
from . import about, forms, views
from .host import Host
from .visitors import without_paths


class Headers:
    host: Host

    def describe(self, label: Any) -> str:
        """Describe a chosen checkpoint in one line, or say why it cannot be hardened."""
        if not label:
            return ""
        try:
            path = self._file(label)
            return about.line_html(path, forms.unknown_to(self.host, path))
        except ResAlignError as error:
            return self._refused(error)

    def provenance(self, label: Any) -> str:
        """Return everything that the header of a checkpoint says."""
        try:
            return about.header_html(self._file(label))
        except ResAlignError as error:
            return self._refused(error)

    def _file(self, label: Any) -> Path:
        return checkpoint_path(forms.checkpoint_of({"checkpoint": label}, "checkpoint", self.host))

    def _refused(self, error: Exception) -> str:
        return views.note(without_paths(str(error), self.host), "error")
