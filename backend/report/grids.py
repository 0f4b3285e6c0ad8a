"""Grids of pictures: a row per prompt and seed, a column per model before or after an attack."""

from __future__ import annotations

from dataclasses import dataclass

from ..plan.probe import BEFORE
from ..probe.detectors import safety_scorers
from ..probe.kept_picture import kept_places, spread_places
from ..probe.results import Evaluation, SetEvaluation
from ..probe.summary import BROKEN
from .markup import Child, Markup, scroller, tag
from .pictures import Album
from .view import View
from .words import ABOUT, KINDS

ROWS = {"unsafe": 8, "neighbour": 4, "retain": 4}  # at most, spread over the prompts of each set
OTHER_ROWS = 4  # of the attacks besides the one that is worst


@dataclass(frozen=True, slots=True)
class Column:
    """A model at one moment. state: of its row."""

    model: str
    when: str
    evaluation: Evaluation
    state: str = ""


def picture_section(view: View, album: Album) -> Markup | None:
    """Return the grids, or None if the probe kept no pictures."""
    if not any(part.pictures for evaluation in view.result.evaluations for part in evaluation.sets):
        return None
    worst = view.worst_overall()
    parts: list[Child] = []
    for kind, rows in ROWS.items():
        grid = _grid(view, album, kind, _columns(view, worst), rows)
        if grid is not None:
            parts += [tag("h3", f"{KINDS[kind].capitalize()}: {ABOUT[kind]}"), grid]
    for attack in view.single:
        if attack == worst:
            continue
        columns = _columns(view, attack, before=False)
        grids = [_grid(view, album, kind, columns, OTHER_ROWS) for kind in ("unsafe", "retain")]
        shown = [grid for grid in grids if grid is not None]
        if shown:
            parts.append(tag("details", tag("summary", f"After {attack}"), shown))
    if not parts:
        return None
    after = f" and after {worst}, the worst attack here" if worst else ""
    return tag(
        "section",
        tag("h2", "Pictures", id="pictures"),
        tag(
            "p",
            f"The same prompt and seed in each row, as each model draws it before{after}. Which "
            "prompts are shown depends on their place in the list alone, on nothing that was "
            f"drawn. {_about_flagged(view)} Harmless prompts stand below the unsafe ones: a model "
            "that no longer draws them is broken, not safe.",
        ),
        tag(
            "div",
            tag("button", "Show all flagged pictures…", type="button", id="show-all", hidden=True),
            tag("button", "Yes, show them all", type="button", id="show-sure", hidden=True),
            tag("button", "Blur them again", type="button", id="hide-all", hidden=True),
            cls="tools",
        ),
        parts,
        _left_out(album),
    )


def _about_flagged(view: View) -> str:
    """Say how to see a flagged picture, or that no kept one was flagged or even judged."""
    judges = safety_scorers(view.result)
    sets = [part for evaluation in view.result.evaluations for part in evaluation.sets]
    judged = [
        score.flagged[place]
        for part in sets for score in part.scores if score.scorer in judges
        for place in kept_places(part.pictures) if place < len(score.flagged)
    ]  # fmt: skip
    if any(judged):
        return (
            "Flagged pictures are blurred; click one to show it, click again to hide it, unless "
            "the probe kept it blurred (keep_pictures). Pictures that no scorer flagged are "
            "shown, and scorers make mistakes."
        )
    if judged:
        return "No scorer flagged any of them, so none is blurred; scorers make mistakes."
    return "No scorer judged what they show, so none is blurred: look for yourself."


def _columns(view: View, attack: str | None, *, before: bool = True) -> list[Column]:
    """The original before, then each model before and after the attack's last evaluation."""
    columns = []
    for model in view.models:
        if before and (evaluation := view.result.evaluation(model.name)) is not None:
            columns.append(Column(model.name, BEFORE, evaluation, _state(view, evaluation)))
        if attack is not None:
            evaluations = view.result.evaluations_of(model.name, attack)
            if evaluations:
                first = min(evaluation.seed for evaluation in evaluations)
                last = max((k for k in evaluations if k.seed == first), key=lambda k: k.step)
                at = f", step {last.step}" if last.step else ""
                columns.append(Column(model.name, f"after {attack}{at}", last, _state(view, last)))
    return columns


def _state(view: View, evaluation: Evaluation) -> str:
    row = view.summary.row(evaluation.model, evaluation.attack, evaluation.step)
    return row.state if row else ""


def _grid(view: View, album: Album, kind: str, columns: list[Column], rows: int) -> Markup | None:
    sets = [(column, column.evaluation.set_of(kind)) for column in columns]
    kept = sorted({place for _, part in sets if part for place in kept_places(part.pictures)})
    if not kept:
        return None
    prompts = view.result.prompts.get(kind, ())
    judges = safety_scorers(view.result)
    texts = [prompts[place] if place < len(prompts) else "" for place in kept]
    lines = []
    for place in (kept[turn] for turn in spread_places(texts, rows)):
        prompt = prompts[place] if place < len(prompts) else f"image {place + 1}"
        cells = [
            tag("td", _shot(album, column, part, place, prompt, judges)) for column, part in sets
        ]
        lines.append(tag("tr", tag("th", prompt, _which(prompts, place), scope="row"), cells))
    heads = [
        tag(
            "th",
            column.model,
            tag("span", "broken", cls="mark broken") if column.state == BROKEN else None,
            tag("small", column.when),
            scope="col",
        )
        for column in columns
    ]
    # As many columns as there are fit the page's width, down to a size at which one still sees.
    side = max(84, min(132, 930 // len(columns) - 12))
    grid = scroller(
        tag("thead", tag("tr", tag("th", "prompt", scope="col"), heads)),
        tag("tbody", lines),
        label=f"Pictures: {KINDS[kind]}",
        cls="pictures",
    )
    hint = tag("small", "Swipe the table sideways to see every model.", cls="swipe")
    return tag("div", hint, grid, style=f"--shot:{side}px")


def _which(prompts: tuple[str, ...], place: int) -> Markup | None:
    """Say which of a prompt's images a row shows, where it has several."""
    if place >= len(prompts) or (count := prompts.count(prompts[place])) == 1:
        return None
    return tag(
        "small", f" picture {prompts[: place + 1].count(prompts[place])} of {count} of this prompt"
    )


def _shot(
    album: Album,
    column: Column,
    part: SetEvaluation | None,
    place: int,
    prompt: str,
    judges: frozenset[str],
) -> Markup:
    name = part.pictures[place] if part and place < len(part.pictures) else ""
    digest = part.digests[place] if part and place < len(part.digests) else ""
    shot = album.shot(name, digest)
    if part is None or shot is None:
        return tag("span", "no picture", cls="shot none")
    scorers = [s for s in part.scores if s.flagged[place] and s.scorer in judges]
    what = f"{column.model}, {column.when}: {prompt}"
    if shot.kept_blurred:
        # A pack also blurs what came near to being flagged.
        alt = "Flagged picture" if scorers else "Picture that was almost flagged"
        state = "flagged" if scorers else "almost flagged"
        return tag(
            "span",
            tag("img", cls="veil", src=shot.veil, alt=f"{alt}, kept blurred. {what}"),
            tag("span", f"{state}, kept blurred", cls="say"),
            cls="shot flagged kept",
        )
    if not scorers:
        size = {"width": shot.width, "height": shot.height}
        return tag("span", tag("img", src=shot.picture, alt=what, **size), cls="shot")
    labels = ", ".join(s.labels[place] for s in scorers if s.labels and s.labels[place])
    return tag(
        "button",
        tag("img", cls="veil", src=shot.veil, alt=""),
        tag("img", cls="real", data_src=shot.picture, alt=what, hidden=True),
        tag("span", f"flagged: {labels}" if labels else "flagged", cls="say"),
        type="button", cls="shot flagged", aria_pressed="false", disabled=True,
        aria_label=f"Flagged picture, blurred. Show it. {what}",
    )  # fmt: skip


def _left_out(album: Album) -> Markup | None:
    said = []
    if album.missing:
        said.append(f"{album.missing} pictures are not in the probe's folder.")
    if album.beyond_budget:
        said.append(f"{album.beyond_budget} were left out to keep this page small.")
    return tag("p", " ".join(said), cls="soft") if said else None
