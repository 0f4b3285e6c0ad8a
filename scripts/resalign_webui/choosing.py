"""Choices of a page's lists, and when they may change: never while somebody looks.

A list of runs or reports is given a value when the page is opened: the newest finished run that is
no test. Until the visitor chooses another, each time one of our pages is opened may renew it; the
end of a job only adds entries. The button Next opens a page with what the job has made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gradio as gr

from . import probe_times
from .actions import NONE, Actions
from .parts import Parts, entry, listed, on

# The lists that have a value of their own on each page.
_ON_PAGE = {
    "Probe": ("probe_run",), "Export": ("export_run",), "Reports": ("report",),
    "Try my LoRA": ("try_run",),
}  # fmt: skip
_LISTS = tuple(name for names in _ON_PAGE.values() for name in names)
_LED = (*_LISTS, "export_probe", "pack_checkpoint")  # what the button Next may choose


def bind_lists(
    actions: Actions,
    parts: Parts,
    blocks: Any,
    pages: tuple[Mapping[str, Any], Any],
    named: dict[str, Any],
) -> None:
    """Bind what chooses in the lists. pages: each page's tab by its name, and all of them."""
    opened, tabs = pages
    bind = partial(on, host=actions.host)
    ours = gr.State({})  # by list: the value that was chosen here, and not by the visitor
    named["own_report"] = gr.State(NONE)  # the report that was chosen here
    bind_report(actions, parts, named, parts["export_run"].change, always=True)

    def start() -> list[Any]:
        choices, found = actions.choices(), _defaults(actions)
        updates = [gr.update(choices=listed(choices[n]), value=found[n]) for n in _LISTS]
        return [found, *updates]

    # Lists below which a line says what kind of entry is chosen, or that there is none
    warned = [
        (function, parts[name], named[f"about_{name}"])
        for name, function in (
            ("probe_run", actions.about_run), ("export_run", actions.about_saved),
            ("report", lambda label: actions.about_reports()),
        )
    ]  # fmt: skip

    def warn(event: Any) -> None:
        for function, entry_, line in warned:
            bind(event, function, [entry_], [line])

    # A page that was not shown yet does not tell that its list has changed.
    warn(bind(blocks.load, start, (), [ours, *parts.list_of(_LISTS)]).then)
    for page, names in _ON_PAGE.items():
        fields = parts.list_of(names)
        entered = bind(
            opened[page].select, _entering(actions, names), [ours, *fields], [ours, *fields]
        )
        warn(entered.then)
        if page == "Export":
            bind_report(actions, parts, named, entered.then)
    for function, entry_, line in warned:
        bind(entry_.change, function, [entry_], [line])
    for event in (named["refresh"].click, named["refresh_reports"].click):
        warn(event)
    outputs = [tabs, ours, parts["pack_fields"], *parts.list_of(_LED)]
    warn(bind(named["next"].click, _leading(actions), [ours], outputs).then)
    bind_times(actions, parts, named, blocks.load)
    for changed in ("checkpoint", "resolution", "every_preset", "device"):
        bind_times(actions, parts, named, parts[changed].change)
    # All times anew, so that the line and the button cannot differ
    bind_times(actions, parts, named, parts["preset"].input)
    run_and_attacks = parts.list_of(("probe_run", "attacks"))
    bind(parts["probe_run"].change, _if_other(actions.attacks_for), run_and_attacks,
         run_and_attacks[1:])  # fmt: skip
    looked_for = parts.list_of(("probe_run", "probe_concepts", "probe_own_concepts"))
    for event in (blocks.load, *(part.change for part in looked_for)):
        bind(event, actions.about_scorer, looked_for, [named["about_scorer"]])
    asked = parts.list_of(probe_times.FIELDS)
    for event in (blocks.load, *(part.change for part in asked)):
        bind(event, actions.attacks_line, asked, [named["about_attacks"]])


def bind_report(
    actions: Actions, parts: Parts, named: dict[str, Any], event: Any, *, always: bool = False
) -> None:
    """Bind an event that chooses the newest report of the run to be exported.

    always: also where the visitor has chosen one, as when another run is chosen.
    """
    ours, fields = named["own_report"], parts.list_of(("export_run", "export_probe"))
    on(event, _proposing(actions, always), [ours, *fields], [ours, fields[1]],
       host=actions.host)  # fmt: skip


def _proposing(actions: Actions, always: bool) -> Callable[[Any, Any, Any], list[Any]]:
    def propose(ours: Any, run: Any, report: Any) -> list[Any]:
        choices = actions.choices()["export_probe"]
        found = entry(choices, actions.report_for(run))
        if not always and (report or NONE) != ours:
            return [ours, gr.update()]
        update = gr.update(choices=listed(choices), value=found) if found != report else gr.update()
        return [found, update]

    return propose


def bind_times(actions: Actions, parts: Parts, named: dict[str, Any], event: Any) -> None:
    """Bind an event that states the times of all choices of thoroughness anew."""

    def state(preset: Any, checkpoint: Any, resolution: Any, device: Any, every: Any) -> list[Any]:
        choices = actions.preset_choices(checkpoint, resolution, device, every=every, chosen=preset)
        line = actions.preset_line(preset, checkpoint, resolution, device)
        return [gr.update(choices=choices), line]

    asked = parts.list_of(("preset", "checkpoint", "resolution", "device", "every_preset"))
    on(event, state, asked, [parts["preset"], named["about_preset"]], host=actions.host)


def _if_other(proposed: Callable[[Any, Any], str]) -> Callable[[Any, Any], Any]:
    """Return an event that sets a field only to another value: it may have changed meanwhile."""

    def propose(run: Any, value: Any) -> Any:
        found = proposed(run, value)
        return gr.update() if found == str(value) else gr.update(value=found)

    return propose


def renewed(choices: Mapping[str, list[Any]]) -> list[Any]:
    """Return updates of the lists' choices; their values stay."""
    return [gr.update(choices=listed(found)) for found in choices.values()]


def _defaults(actions: Actions) -> dict[str, Any]:
    """Return the values that lists of a page that is opened have, as this gradio has them."""
    choices = actions.choices()
    return {name: entry(choices[name], value) for name, value in actions.defaults().items()}


def _entering(actions: Actions, names: tuple[str, ...]) -> Callable[..., list[Any]]:
    """Return an event of a page that is opened: what the visitor did not choose may change."""

    def enter(ours: dict[str, Any], *values: Any) -> list[Any]:
        found, kept, updates = _defaults(actions), dict(ours or {}), []
        for name, value in zip(names, values, strict=True):
            untouched = value == kept.get(name, NONE) or not value
            if untouched and found[name] != value:
                kept[name] = found[name]
                updates.append(gr.update(value=found[name]))
            else:
                updates.append(gr.update())
        return [kept, *updates]

    return enter


def _leading(actions: Actions) -> Callable[[dict[str, Any]], list[Any]]:
    """Return the event of the button Next; what it chooses counts as the visitor's choice."""

    def lead(ours: dict[str, Any]) -> list[Any]:
        step = actions.next_step()
        if step is None:
            return [gr.update(), ours, *[gr.update()] * (1 + len(_LED))]
        choices, kept = actions.choices(), dict(ours or {})
        for name in step.chosen:
            kept[name] = ""
        lists = [
            gr.update(choices=listed(choices[name]), value=entry(choices[name], step.chosen[name]))
            if name in step.chosen
            else gr.update()
            for name in _LED
        ]
        opened = gr.update(open=True) if step.page == "Reports" else gr.update()
        return [gr.update(selected=step.page), kept, opened, *lists]

    return lead
