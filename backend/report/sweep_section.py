"""Sweeps of a report: for each model a table of learning rates and shares of the concept."""

from __future__ import annotations

from collections.abc import Iterator

from ..plan.sweep import Sweep
from ..probe.headline import relapse_text
from ..probe.results import ModelInfo
from ..probe.summary import BROKEN
from .markdown_text import escape
from .markdown_text import table as markdown_table
from .markup import Child, Markup, table, tag
from .view import View
from .words import percent

INTRODUCTION = (
    "Each cell is one kind of fine-tuning, run once for each seed: the steps until half of the "
    "original's unsafe rate is back "
    "(95 % interval), and the highest unsafe rate while the model works. Rows are learning rates, "
    "columns shares of the concept in the training data; 0 % is benign training. An attacker picks "
    "the worst cell."
)
_OPTIMISERS = {"adamw": "AdamW", "sgd": "SGD", "adamw8bit": "8-bit AdamW", "prodigy": "Prodigy"}


def sweep_section(view: View) -> Markup | None:
    if not view.sweeps:
        return None
    parts: list[Child] = []
    for sweep in view.sweeps:
        parts.append(tag("h3", sweep.name, tag("small", f" {sweep_words(sweep)}", cls="soft")))
        for model in _shown(view):
            rows = [
                [head, *(_td(cell) for cell in cells)]
                for head, cells in _rows(view, sweep, model.name)
            ]
            parts.append(
                table(
                    _heads(sweep),
                    rows,
                    caption=f"{sweep.name}: {model.name}",
                    cls="wrap",
                    labels=_heads(sweep)[1:],
                )
            )
    return tag(
        "section",
        tag("h2", "Sweeps", id="sweeps"),
        tag("p", INTRODUCTION),
        [tag("p", said, cls="lead") for said in worst_words(view)],
        parts,
    )


def sweep_markdown(view: View) -> list[str]:
    """Write the section as Markdown lines."""
    if not view.sweeps:
        return []
    parts = ["### Sweeps", INTRODUCTION, *map(escape, worst_words(view))]
    for sweep in view.sweeps:
        for model in _shown(view):
            rows = [
                [head, *("; ".join(map(escape, cell)) for cell in cells)]
                for head, cells in _rows(view, sweep, model.name)
            ]
            parts.append(f"{escape(sweep.name)} ({sweep_words(sweep)}): {escape(model.name)}")
            parts.append(markdown_table(_heads(sweep), rows))
    return parts


def sweep_words(sweep: Sweep) -> str:
    """Describe what a sweep trains."""
    what = "all weights" if sweep.method == "full" else f"{sweep.method}, rank {sweep.rank}"
    return f"{what}, {_OPTIMISERS[sweep.optimiser]}, {sweep.steps} steps of batch {sweep.batch}"


def worst_words(view: View) -> list[str]:
    """Say for each model which fine-tuning of all brought it back first."""
    said = []
    for model in view.models[1:]:
        found = view.of(model.name).relapse
        if found is None:
            continue
        tried = sum(view.counts(model.name, attack) for attack in view.curved)
        back = f"{model.name}: of {tried} fine-tunings that count, "
        if found.steps == 0:
            said.append(f"{model.name}: half of the original's rate is there from the start, "
                        "before any fine-tuning.")  # fmt: skip
        elif found.attack:
            said.append(f"{back}the quickest brings half of the original's rate back after "
                        f"{relapse_text(found)}: {found.attack}.")  # fmt: skip
        else:
            said.append(f"{back}none brings half of the original's rate back: "
                        f"{relapse_text(found)}.")  # fmt: skip
    return said


def _shown(view: View) -> tuple[ModelInfo, ...]:
    return view.models[1:] or view.models


def _heads(sweep: Sweep) -> list[str]:
    return ["learning rate", *(f"{100 * share:g} % concept" for share in sweep.concept_shares)]


def _rows(view: View, sweep: Sweep, model: str) -> Iterator[tuple[str, list[list[str]]]]:
    for rate in sweep.learning_rates:
        names = [sweep.attack_name(rate, share) for share in sweep.concept_shares]
        yield f"{rate:g}", [_cell(view, model, name) for name in names]


def _cell(view: View, model: str, attack: str) -> list[str]:
    """Return a cell's lines: steps to relapse, highest rate, and what does not count."""
    row = view.peak(model, attack)
    if row is None or row.unsafe is None:
        return ["not measured"]
    relapse = view.relapse(model, attack)
    effect = view.summary.effect(attack)
    lines = [relapse_text(relapse)] if relapse else []
    lines.append(f"{percent(row.unsafe.value)} at step {row.step}")
    if effect is not None and effect.had_effect is False:
        lines.append("had no effect")
    if row.state == BROKEN:
        lines.append("broken")
    elif (broken := view.broken(model, attack)) is not None:
        lines.append(f"broken at step {broken.step}")
    return lines


def _td(lines: list[str]) -> Markup:
    first, *others = lines
    weak = "weak" if "had no effect" in others else "broken" if "broken" in others else None
    return tag("td", first, [tag("small", text) for text in others], cls=weak)
