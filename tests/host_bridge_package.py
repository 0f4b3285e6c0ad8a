"""For scripts that run inside a host's Python: our package as ComfyUI loads it."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Any


def load_package(folder: str) -> None:
    """Load the package from its folder under the name `resalign`."""
    spec = importlib.util.spec_from_file_location(
        "resalign", os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["resalign"] = module
    spec.loader.exec_module(module)


def largest(one: Any, two: Any) -> float:
    return float((one - two).abs().max())
