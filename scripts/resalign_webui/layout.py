"""Builds the tab: forms on the left, the running job on the right, and the events of buttons."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import gradio as gr

from . import pages, report_page, views
from .actions import Actions
from .forms import FITTING
from .parts import Parts, button, html, on, own_settings_only

_RUNS = {"export_run": 0, "probe_run": 1, "try_run": 1}  # lists, and the newest entry's index
_NEWEST = {"unfinished": 0, "report": 0, **_RUNS}
# Lists to which a finished job adds an entry, which is then selected; other choices stay.
_ADDED = {
    "harden": ("unfinished", *_RUNS), "resume": (*_NEWEST,), "probe": ("unfinished", "report"),
}  # fmt: skip
_NEXT = {"harden": "Probe", "resume": "Probe", "probe": "Export", "export": "Try my LoRA"}


def next_page(kind: str) -> str:
    """Return the page that follows a job that is done; empty if there is none."""
    return _NEXT.get(kind, "")


def build(actions: Actions) -> Any:
    """Build the gr.Blocks that hosts render into their page."""
    host = actions.host
    bind = partial(on, host=host)
    lists, parts = actions.choices(), Parts()
    with gr.Blocks(analytics_enabled=False) as blocks:
        html(views.STYLE, "style")
        _setup(actions, blocks)
        with gr.Row():
            with gr.Column(scale=3, min_width=420), gr.Tabs(elem_id="resalign_pages") as tabs:
                views_by_name: dict[str, Any] = {}
                for label, page in pages.PAGES:
                    with gr.Tab(label, id=label):
                        before = set(blocks.blocks)
                        page(parts, host, lists)
                        views_by_name |= _named_since(blocks, before)
            with gr.Column(scale=2, min_width=340):
                with gr.Row():  # all buttons above the panel, whose height changes
                    button_cancel = button("cancel", "Cancel", variant="stop", min_width=110,
                                           interactive=False)  # fmt: skip
                    button_follow = button("follow", "Show the running job", min_width=110)
                button_next = button("next", "Next", visible=False)
                live = html(views.loading_html(), "job")  # until the page's first event
        every = parts.list_of(lists)
        follow = _following(actions, list(lists))
        shown = [live, button_cancel, button_next, *every]
        _bind_jobs(actions, parts, views_by_name, (follow, shown))
        bind(button_next.click, lambda: gr.update(selected=next_page(actions.kind())), (), [tabs])
        bind(button_cancel.click, _nothing(actions.cancel), queue=False)
        bind(button_follow.click, follow, (), shown)
        bind(blocks.load, _following(actions, list(lists), fresh=True), (), shown)
        for name in ("refresh", "refresh_reports"):
            bind(views_by_name[name].click, lambda: _renewed(actions.refresh()), (), every)
        bind(views_by_name["fit"].click, _fitting(actions), (),
           [*parts.list_of(FITTING), views_by_name["harden_message"]])  # fmt: skip
        checkpoint = parts["checkpoint"]
        bind(checkpoint.change, actions.describe, [checkpoint], [views_by_name["about_checkpoint"]])
        bind(blocks.load, actions.describe, [checkpoint], [views_by_name["about_checkpoint"]])
        preset = parts["preset"]
        for changed in (preset, checkpoint):
            bind(changed.change, pages.preset_line, [preset, checkpoint],
                 [views_by_name["about_preset"]])  # fmt: skip
        bind(views_by_name["show_about"].click, actions.provenance, [parts["about"]],
           [views_by_name["about_view"]])  # fmt: skip
        bind(views_by_name["show_report"].click, actions.report, [parts["report"]],
           [views_by_name["report_view"]])  # fmt: skip
    own_settings_only(blocks)
    return blocks


def _setup(actions: Actions, blocks: Any) -> None:
    """Show why jobs cannot run, and a button that builds the worker; nothing if they can."""
    missing = actions.missing()
    said = html(missing, "missing")
    mend = button("mend", "Make the worker's environment", visible=bool(missing))

    def look() -> list[Any]:
        found = actions.missing()
        return [found, gr.update(visible=bool(found))]

    def make() -> Iterator[list[Any]]:
        told = ""
        for told in actions.build_worker():
            yield [told, gr.update(interactive=False)]
        yield [told, gr.update(interactive=True, visible=bool(actions.missing()))]

    on(mend.click, make, (), [said, mend], host=actions.host)
    on(blocks.load, look, (), [said, mend], host=actions.host)


def problem(text: str) -> Any:
    """Build a tab that shows only an error."""
    with gr.Blocks(analytics_enabled=False) as blocks:
        gr.HTML(views.STYLE + views.note(text, "error"))
    own_settings_only(blocks)
    return blocks


def _bind_jobs(
    actions: Actions, parts: Parts, named: dict[str, Any], following: tuple[Any, list[Any]]
) -> None:
    """Bind the job buttons: show a message on the page, then follow the job in the panel."""
    follow, outputs = following
    bind = partial(on, host=actions.host)
    for name, names, message, function in (
        ("harden", pages.HARDEN, "harden_message", actions.harden),
        ("check", pages.HARDEN, "harden_message", actions.check),
        ("resume", pages.RESUME, "harden_message", actions.resume),
        ("probe", pages.PROBE, "probe_message", actions.probe),
        ("try_lora", pages.LORA, "lora_message", actions.try_lora),
        ("export", pages.EXPORT, "export_message", actions.export),
        ("save_lora", pages.EXPORT, "export_message", actions.save_lora),
        ("audit", report_page.AUDIT, "report_message", actions.audit),
        ("labels", report_page.LABELS, "report_message", actions.labels),
        ("pack", report_page.PACK, "report_message", actions.pack),
    ):
        started = bind(
            named[name].click, _with_names(names, function), parts.list_of(names), [named[message]]
        )
        bind(started.then, follow, (), outputs)


def _fitting(actions: Actions) -> Callable[[], list[Any]]:
    """Return an event that fills in what the last check found to fit; other fields stay."""

    def fit() -> list[Any]:
        said, fields = actions.fitting()
        updates = [gr.update(value=fields[n]) if n in fields else gr.update() for n in FITTING]
        return [*updates, said]

    return fit


def _with_names(names: Sequence[str], function: Callable[[dict[str, Any]], str]) -> Any:
    def call(*values: Any) -> str:
        return function(dict(zip(names, values, strict=True)))

    return call


def _following(
    actions: Actions, names: list[str], *, fresh: bool = False
) -> Callable[[], Iterator[list[Any]]]:
    """Return an event that follows the job. fresh: the page has just been opened."""

    def follow() -> Iterator[list[Any]]:
        for shown, over in actions.follow():
            if over:
                choices = actions.choices()
                newest = _NEWEST if fresh else _ADDED.get(actions.kind(), ())
                lists = _renewed({name: choices[name] for name in names}, newest)
                page = next_page(actions.kind()) if actions.done() else ""
                after = gr.update(visible=bool(page), value=f"Next: {page}" if page else "Next")
                yield [shown, gr.update(interactive=False), after, *lists]
            else:
                running = [gr.update(interactive=True), gr.update(visible=False)]
                yield [shown, *running, *(gr.update() for _ in names)]

    return follow


def _renewed(choices: dict[str, list[str]], newest: Iterable[str] = ()) -> list[Any]:
    """Return updates of the lists; select the newest entry in those of `newest`."""
    return [
        gr.update(choices=found, value=next(iter(found[_NEWEST[name] :] or found[:1]), None))
        if name in newest
        else gr.update(choices=found)
        for name, found in choices.items()
    ]


def _nothing(function: Callable[[], Any]) -> Callable[[], None]:
    def call() -> None:
        function()

    return call


def _named_since(blocks: Any, before: set[Any]) -> dict[str, Any]:
    """Return a page's components by the name in their element id."""
    return {
        block.elem_id.removeprefix("resalign_"): block
        for key, block in blocks.blocks.items()
        if key not in before and str(getattr(block, "elem_id", "")).startswith("resalign_")
    }
