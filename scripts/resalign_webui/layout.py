"""Builds the tab: forms on the left, the running job on the right, and the events of buttons."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import gradio as gr

from . import choosing, guide, pages, report_forms, style, views
from .actions import Actions
from .forms import FITTING
from .parts import Parts, button, entry, html, listed, on, own_settings_only


def build(actions: Actions) -> Any:
    """Build the gr.Blocks that hosts render into their page."""
    bind = partial(on, host=actions.host)
    lists, parts = {name: listed(found) for name, found in actions.choices().items()}, Parts()
    with gr.Blocks(analytics_enabled=False) as blocks:
        html(style.STYLE, "style")
        _setup(actions, blocks)
        named: dict[str, Any] = {}
        with gr.Row():
            with gr.Column(scale=3, min_width=420), gr.Tabs(elem_id="resalign_pages") as tabs:
                opened: dict[str, Any] = {}
                for label, page in pages.PAGES:
                    with gr.Tab(guide.title(label), id=label) as opened[label]:
                        before = set(blocks.blocks)
                        page(parts, actions.host, lists)
                        named |= _named_since(blocks, before)
            with gr.Column(scale=2, min_width=340, elem_id="resalign_side"):
                before = set(blocks.blocks)
                live = _side(parts, lists)
                named |= _named_since(blocks, before)
        choosing.bind_lists(actions, parts, blocks, (opened, tabs), named)
        every = parts.list_of(lists)
        shown = [named["now"], live, *(named[name] for name in _BUTTONS), *every]
        follow = _following(actions, list(lists))
        _bind_jobs(
            actions,
            parts,
            named,
            (follow, shown),
            (named["follow"].click, named["catch_up"].click, blocks.load),
        )
        bind(named["cancel"].click, _nothing(actions.cancel), queue=False)
        for name in ("refresh", "refresh_reports"):
            bind(named[name].click, lambda: choosing.renewed(actions.refresh()), (), every)
        bind(named["fit"].click, _fitting(actions), (),
             [*parts.list_of(FITTING), named["check_message"]])  # fmt: skip
        checkpoint = parts["checkpoint"]
        bind(checkpoint.change, actions.describe, [checkpoint], [named["about_checkpoint"]])
        bind(blocks.load, actions.describe, [checkpoint], [named["about_checkpoint"]])
        bind(named["show_about"].click, actions.provenance, [parts["about"]],
             [named["about_view"]])  # fmt: skip
        bind(named["show_report"].click, _message_or_view(actions.report), [parts["report"]],
             [named["report_message"], named["report_view"]])  # fmt: skip
    own_settings_only(blocks)
    return blocks


_STARTS = ("harden", "check", "probe", "try_lora", "export", "save_lora", "audit", "labels", "pack")
_BUTTONS = ("cancel", "follow", "resume", "next", *_STARTS)  # whose state follows the job


def _side(parts: Parts, lists: dict[str, Any]) -> Any:
    """Build what is beside the forms, and on a narrow window above them; return the panel.

    All buttons are above the panel, whose height changes. `now` is for narrow windows alone.
    """
    with gr.Row(elem_id="resalign_controls"):
        html(name="now")
        button("cancel", "Cancel", variant="stop", min_width=90, interactive=False)
        button("resume", "Resume", min_width=90, visible=bool(lists["unfinished"]))
        button("follow", "Show the running job", min_width=110, interactive=False)
        button("catch_up", "Show the job")  # pressed by our script alone, also where none runs
        button("next", "Next", variant="primary", visible=False, min_width=200)
    pages.resume_fields(parts, lists)
    return html(views.loading_html(), "job")  # until the page's first event


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
        gr.HTML(style.STYLE + views.note(text, "error"))
    own_settings_only(blocks)
    return blocks


def _bind_jobs(
    actions: Actions,
    parts: Parts,
    named: dict[str, Any],
    following: tuple[Any, list[Any]],
    opened: tuple[Any, ...],
) -> None:
    """Bind the job buttons: show a message on the page, then follow the job in the panel.

    When it has ended, the times that the form states are those that it has measured, and messages
    that it has started are gone. opened: events of a page that finds a job at work.
    """
    follow, outputs = following
    bind = partial(on, host=actions.host)
    messages = [named[message] for _, _, message, _ in _jobs(actions)]
    for name, names, message, function in _jobs(actions):
        started = bind(
            named[name].click, _with_names(names, function), parts.list_of(names), [named[message]]
        )
        _at_end(actions, parts, named, bind(started.then, follow, (), outputs), messages)
    for event in opened:
        # The job's own times are known when it has ended, whoever started it
        _at_end(actions, parts, named, bind(event, follow, (), outputs), messages)


def _jobs(actions: Actions) -> tuple[tuple[str, Sequence[str], str, Any], ...]:
    """Return each button that starts a job: its name, its fields, its message, its action."""
    return (
        ("harden", pages.HARDEN, "harden_message", actions.harden),
        ("check", pages.HARDEN, "check_message", actions.check),
        ("resume", pages.RESUME, "resume_message", actions.resume),
        ("probe", pages.PROBE, "probe_message", actions.probe),
        ("try_lora", pages.LORA, "lora_message", actions.try_lora),
        ("export", pages.EXPORT, "export_message", actions.export),
        ("save_lora", pages.EXPORT, "save_lora_message", actions.save_lora),
        ("audit", report_forms.AUDIT, "audit_message", actions.audit),
        ("labels", report_forms.AUDIT_LABELS, "labels_message", actions.labels),
        ("pack", report_forms.PACK, "pack_message", actions.pack),
    )


def _at_end(
    actions: Actions, parts: Parts, named: dict[str, Any], ended: Any, messages: list[Any]
) -> None:
    """Bind what follows the end of a job: new times, the report that it may have made for an
    export, and no message that it has started."""
    choosing.bind_times(actions, parts, named, ended.then)
    choosing.bind_report(actions, parts, named, ended.then)
    on(ended.then, lambda *texts: actions.after_end(texts), messages, messages, host=actions.host)


def _fitting(actions: Actions) -> Callable[[], list[Any]]:
    """Return an event that fills in what the last check found to fit; other fields stay."""

    def fit() -> list[Any]:
        said, fields = actions.fitting()
        updates = [gr.update(value=fields[n]) if n in fields else gr.update() for n in FITTING]
        return [*updates, said]

    return fit


def _message_or_view(function: Callable[[Any], str]) -> Callable[[Any], list[str]]:
    """Return an event of two outputs: a refusal goes beside the button, anything else below."""

    def call(value: Any) -> list[str]:
        shown = function(value)
        return [shown, ""] if "ra-note" in shown else ["", shown]

    return call


def _with_names(names: Sequence[str], function: Callable[[dict[str, Any]], str]) -> Any:
    def call(*values: Any) -> str:
        return function(dict(zip(names, values, strict=True)))

    return call


def _following(actions: Actions, names: list[str]) -> Callable[[], Iterator[list[Any]]]:
    """Return an event that follows the job: line, panel, buttons, lists.

    A choice that the page shows stays as it is; only what Resume continues follows the job.
    """

    def follow() -> Iterator[list[Any]]:
        for shown, over in actions.follow():
            now = actions.now()
            if over:
                yield [now, shown, *_ended(actions), *_lists(actions, names)]
            else:
                running = [*[gr.update(interactive=True)] * 2, *[gr.update(visible=False)] * 2,
                           *[gr.update(interactive=False)] * len(_STARTS)]  # fmt: skip
                hidden = [gr.update(visible=False) if n == "unfinished" else gr.update()
                          for n in names]  # fmt: skip
                yield [now, shown, *running, *hidden]

    return follow


def _ended(actions: Actions) -> list[Any]:
    """Return updates of the buttons when no job runs: `_BUTTONS`."""
    step = actions.next_step()
    return [
        *[gr.update(interactive=False)] * 2,
        gr.update(visible=actions.unfinished() is not None),
        gr.update(visible=step is not None, value=step.label if step else "Next"),
        *[gr.update(interactive=True)] * len(_STARTS),
    ]


def _lists(actions: Actions, names: list[str]) -> list[Any]:
    """Return updates of the lists' choices, and the value of what Resume continues."""
    choices = actions.choices()
    updates = dict(zip(names, choosing.renewed({n: choices[n] for n in names}), strict=True))
    resumed, entries = actions.unfinished(), choices["unfinished"]
    updates["unfinished"] = gr.update(
        choices=listed(entries), value=entry(entries, resumed), visible=resumed is not None
    )
    return list(updates.values())


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
