"""Form components by name, and events that work with every supported version of gradio."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gradio as gr

# In gradio 3.41 and 4.40 only one event of a kind runs at a time by default; two windows that
# follow one job need two.
_EVENT = {"show_progress": "hidden", "api_name": False, "api_visibility": "private",
          "concurrency_limit": None}  # fmt: skip


class Parts:
    """Creates components and keeps them by name."""

    def __init__(self) -> None:
        self.by_name: dict[str, Any] = {}

    def __call__(self, name: str, kind: Any, label: str, **options: Any) -> Any:
        made = kind(label=label, elem_id=f"resalign_{name}", **options)
        self.by_name[name] = made
        return made

    def __getitem__(self, name: str) -> Any:
        return self.by_name[name]

    def list_of(self, names: Iterable[str]) -> list[Any]:
        return [self.by_name[name] for name in names]


def button(name: str, label: str, **options: Any) -> Any:
    return gr.Button(label, elem_id=f"resalign_{name}", **options)


def html(value: str = "", name: str = "") -> Any:
    return gr.HTML(value, elem_id=f"resalign_{name}" if name else None)


def on(
    event: Callable[..., Any],
    function: Callable[..., Any],
    inputs: Sequence[Any] = (),
    outputs: Sequence[Any] = (),
    **options: Any,
) -> Any:
    """Bind a function, without the options that the installed gradio does not have."""
    known = inspect.signature(event).parameters
    options = {name: value for name, value in {**_EVENT, **options}.items() if name in known}
    if "api_visibility" in known:
        options.pop("api_name", None)
    return event(function, list(inputs), list(outputs), **options)


def own_settings_only(blocks: Any) -> None:
    """Exclude our components from ui-config.json, where hosts store first defaults forever."""
    for block in blocks.blocks.values():
        block.do_not_save_to_config = True
