"""The components of a form by name, and events that every version of gradio understands."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gradio as gr

from ...backend.plan.field import Field
from ...backend.plan.settings import OWN
from .host import Host
from .origin import guarded

# In gradio 3.41 and 4.40 only one event of a kind runs at a time by default; two windows that
# follow one job need two.
_EVENT = {"show_progress": "hidden", "api_name": False, "api_visibility": "private",
          "concurrency_limit": None}  # fmt: skip


# A list's entries have a label and a value, except in A1111's gradio, where the label is the value.
_MAJOR = int(str(getattr(gr, "__version__", "9")).partition(".")[0])
_PAIRS = _MAJOR >= 4

# From gradio 5 on, a choice that its server did not offer is refused in gradio's words. A page that
# stayed open over a restart has such choices. Our functions check what they are given.
_REFUSES_CHOICES = _MAJOR >= 5
# In a help text, for a field in which 0 keeps the preset's value instead
_WHAT_0_DOES = re.compile(r"; 0: [^.;]*|(?<=\.) 0: [^.;]*\.")
_NEED_PREPROCESSING = {"file", "image", "gallery", "uploadbutton"}


def listed(choices: Sequence[Any]) -> list[Any]:
    """Return choices, each an entry or (label, value), as a list of this gradio takes them."""
    return list(choices) if _PAIRS else [one[0] if _is_pair(one) else one for one in choices]


def entry(choices: Iterable[Any], value: Any) -> Any:
    """Return what a list has for an entry: its value, or where this gradio has none, its label."""
    labels = {} if _PAIRS else {one[1]: one[0] for one in choices if _is_pair(one)}
    return labels.get(value, value)


def _is_pair(choice: Any) -> bool:
    return isinstance(choice, tuple)


class Parts:
    """Components by name. `values` makes a mapping of what an event hands over."""

    def __init__(self) -> None:
        self.by_name: dict[str, Any] = {}

    def __call__(self, name: str, kind: Any, label: str, **options: Any) -> Any:
        made = kind(label=label, elem_id=f"resalign_{name}", **options)
        self.by_name[name] = made
        return made

    def field(self, name: str, field: Field, *, keeps_preset: bool = False, **options: Any) -> Any:
        """A component for a field of a plan: label, choices and help come from the field.

        keeps_preset: it starts empty or at `preset`, which leaves what the preset says.
        """
        kind, found = _component(field, keeps_preset)
        label = options.pop("label", "")
        if not label:
            label = field.label
            if keeps_preset and kind is gr.Number and "placeholder" not in found:
                label += " (0: auto)"  # this gradio shows an empty number as 0
        said = _WHAT_0_DOES.sub("", field.help) if keeps_preset else field.help
        return self(name, kind, label, **{"info": said, **found, **options})

    def __getitem__(self, name: str) -> Any:
        return self.by_name[name]

    def list_of(self, names: Iterable[str]) -> list[Any]:
        return [self.by_name[name] for name in names]


def _component(field: Field, keeps_preset: bool) -> tuple[Any, dict[str, Any]]:
    if field.choices:
        choices = [OWN, *field.choices] if keeps_preset else list(field.choices)
        value = OWN if keeps_preset else field.default
        return gr.Dropdown, {"choices": choices, "value": value, "min_width": 180}
    if field.kind is bool:
        return gr.Checkbox, {"value": field.default, "min_width": 160}
    value = None if keeps_preset else field.default
    found = {"value": value, "precision": 0 if field.is_whole else None, "min_width": 180}
    if keeps_preset and "placeholder" in inspect.signature(gr.Number.__init__).parameters:
        found["placeholder"] = "auto"
    return gr.Number, found


def button(name: str, label: str, **options: Any) -> Any:
    return gr.Button(label, elem_id=f"resalign_{name}", **options)


def html(value: str = "", name: str = "") -> Any:
    return gr.HTML(value, elem_id=f"resalign_{name}" if name else None)


def on(
    event: Callable[..., Any],
    function: Callable[..., Any],
    inputs: Sequence[Any] = (),
    outputs: Sequence[Any] = (),
    *,
    host: Host,
    **options: Any,
) -> Any:
    """Bind a function, which refuses other pages' requests (origin.py).

    Options that this gradio does not have are left out.
    """
    function = guarded(function, lambda: not host.remote(), gr.Request, gr.Error)
    known = inspect.signature(event).parameters
    kinds = {type(one).__name__.lower() for one in inputs}
    if _REFUSES_CHOICES and not kinds & _NEED_PREPROCESSING:
        options["preprocess"] = False
    options = {name: value for name, value in {**_EVENT, **options}.items() if name in known}
    if "api_visibility" in known:
        options.pop("api_name", None)
    return event(function, list(inputs), list(outputs), **options)


def own_settings_only(blocks: Any) -> None:
    """The hosts keep each component's first default in ui-config.json and prefer it for ever;
    ours come from the code."""
    for block in blocks.blocks.values():
        block.do_not_save_to_config = True
