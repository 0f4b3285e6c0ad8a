"""How far each attack moved the original and the models, for page and Markdown.

An attack is judged by the original (`probe/effect.py`): its pictures, predictions and weights. Each
model's own weights stand beside: a model that an attack hardly trains may only look resilient.
"""

from __future__ import annotations

from ..probe.effect import LEAST_SHARE, hardly_moved
from ..probe.summary import AttackRow
from .markdown_text import escape
from .markdown_text import table as markdown_table
from .markup import Child, Markup, table, tag
from .rate_sections import folded
from .view import View
from .words import NARROW, percent

_TITLE = "What the attacks moved"
_OF_ORIGINAL = ("pictures", "predictions")
HARDLY = "hardly trained"


def effect_section(view: View) -> Markup | None:
    if not _measured(view):
        return None
    labels = _heads(view)
    parts = []
    for of_sweeps in (False, True):
        attacks = [a for a in view.attacks if (a in view.swept) is of_sweeps]
        rows: list[list[Child]] = [
            [name, *(_cell(words, weak) for words, weak in cells)]
            for name, cells in (_row(view, attack) for attack in attacks)
        ]
        if rows:
            whole = table(["attack", *labels], rows, caption=_TITLE, cls="pairs", labels=labels)
            parts.append(folded(view, whole, of_sweeps=of_sweeps))
    return tag(
        "section", tag("h2", _TITLE, id="effect"), tag("p", _introduction(view)), *parts
    )  # fmt: skip


def effect_markdown(view: View) -> list[str]:
    """Write the section as Markdown lines."""
    if not _measured(view):
        return []
    rows = [
        [escape(name), *(f"{words} (**{HARDLY}**)" if weak else words for words, weak in cells)]
        for name, cells in (_row(view, attack) for attack in view.attacks)
    ]
    heads = ["attack", *map(escape, _heads(view))]
    return [f"### {_TITLE}", escape(_introduction(view)), markdown_table(heads, rows)]


def _measured(view: View) -> bool:
    """Return True if the weights of at least one attack were measured; older probes did not."""
    return any(row.weight_change is not None for row in view.summary.rows)


def _heads(view: View) -> list[str]:
    name = view.original.name
    return [
        *(f"{what}, {name}" for what in _OF_ORIGINAL),
        *(f"weights, {model.name}" for model in view.models),
    ]


def _introduction(view: View) -> str:
    return (
        f"An attack is judged by what it does to {view.original.name}: how far its harmless "
        "pictures (1 − MS-SSIM) and its predictions (root of the drift) move at the step where "
        "they move most. Weights: ‖W' − W‖ / ‖W‖ of the network that moved most, against the same "
        "model before the attack, at the attack's last step. A model whose weights moved by less "
        f"than {percent(LEAST_SHARE)} of what {view.original.name}'s did was {HARDLY}: its low "
        "rate may end with another learning rate or optimiser."
    )


def _row(view: View, attack: str) -> tuple[str, list[tuple[str, bool]]]:
    """Return an attack's name and cells: words, and whether the model was hardly trained."""
    effect = view.summary.effect(attack)
    cells = [(_figure(getattr(effect, what) if effect else None), False) for what in _OF_ORIGINAL]
    for model in view.models:
        row = _last(view, model.name, attack)
        there = view.summary.row(view.original.name, attack, row.step) if row else None
        weak = row is not None and hardly_moved(effect, there, row)
        cells.append((_figure(row.weight_change if row else None), weak))
    return attack, cells


def _last(view: View, model: str, attack: str) -> AttackRow | None:
    rows = [r for r in view.summary.rows if (r.model, r.attack) == (model, attack)]
    return max(rows, key=lambda row: row.step, default=None)


def _cell(words: str, weak: bool) -> Child:
    return tag("td", words, " ", tag("span", HARDLY, cls="mark weak")) if weak else words


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2g}{NARROW}%"
