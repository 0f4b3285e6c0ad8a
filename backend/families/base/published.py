"""Published configs, which each family keeps as JSON beside its code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def published_in(folder: Path) -> Callable[[str], dict[str, Any]]:
    """Return the function that reads `<name>.json` of a family's folder: the published config of a
    component, or of `scheduler`."""

    def published(name: str) -> dict[str, Any]:
        return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))

    return published
