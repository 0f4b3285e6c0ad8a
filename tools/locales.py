"""Writes locales/en/nodeDefs.json from the nodes' schemas: what a translator copies and fills.

    python tools/locales.py

Without a ComfyUI: the schemas are read against the tests' stand-in for it. A test compares.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "locales" / "en" / "nodeDefs.json"


def definitions(nodes: list[Any]) -> dict[str, Any]:
    """Return each node's texts in the form of ComfyUI's locale files."""
    return {one.node_id: _texts(one) for one in (node.define_schema() for node in nodes)}


def _texts(schema: Any) -> dict[str, Any]:
    inputs = {
        item.id: {"name": item.display_name or item.id, "tooltip": item.tooltip}
        for item in schema.inputs
    }
    outputs = {
        str(place): {"name": item.display_name or item.id}
        for place, item in enumerate(schema.outputs)
    }
    texts = {"display_name": schema.display_name, "description": schema.description}
    return texts | {"inputs": inputs} | ({"outputs": outputs} if outputs else {})


def text_of(nodes: list[Any]) -> str:
    return json.dumps(definitions(nodes), indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    import pytest

    sys.path.insert(0, str(ROOT / "tests"))
    from fakes_comfy import install

    spec = importlib.util.spec_from_file_location(
        "resalign", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec and spec.loader
    package = importlib.util.module_from_spec(spec)
    sys.modules["resalign"] = package
    spec.loader.exec_module(package)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as base:
        install(patch, Path(base))
        extension = asyncio.run(package.comfy_entrypoint())
        FILE.parent.mkdir(parents=True, exist_ok=True)
        nodes = asyncio.run(extension.get_node_list())
        FILE.write_text(text_of(nodes), encoding="utf-8")


if __name__ == "__main__":
    main()
