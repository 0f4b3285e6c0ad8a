"""`report.html`: one self-contained file, with the same bytes for the same result.

A content security policy lets the page load nothing and run only its own script, and all text is
escaped, so a prompt that is full of tags stays text.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from ..plan.concept import shown_names
from ..probe.results import ProbeResult
from ..probe.verdict import of_models
from .audit_section import audit_section
from .cards import model_cards
from .detectors import detector_section
from .effect_section import effect_section
from .glance import glance
from .grids import picture_section
from .learning_section import learning_section
from .markup import Child, Markup, join, table, tag
from .named_tests import TESTS, test_words
from .pictures import Album
from .rate_sections import curve_section, folded, matrix_section, relapse_section
from .schema import without_paths
from .sections import limits_section, plan_section, utility_section
from .sweep_section import sweep_section
from .view import View
from .way_section import way_section
from .words import p_value, points, series

_HERE = Path(__file__).parent


def report_html(result: ProbeResult, pictures: Path | None = None) -> str:
    """Build the page. pictures: the probe's folder; None leaves pictures out."""
    view = View(without_paths(result))
    result = view.result
    album = Album(pictures)
    sections = [
        matrix_section(view),
        relapse_section(view),
        effect_section(view),
        sweep_section(view),
        way_section(view),
        curve_section(view),
        picture_section(view, album),
        detector_section(view),
        audit_section(view),
        learning_section(view),
        utility_section(view),
        paired_section(view),
        plan_section(view),
        limits_section(view),
    ]
    contents = [
        ("matrix", "Attacks and models"), ("relapse", "Steps to relapse"),
        ("effect", "What the attacks moved"), ("sweeps", "Sweeps"),
        ("way", "The way to the oracle"),
        ("curves", "Curves"),
        ("pictures", "Pictures"), ("detectors", "Detectors"),
        ("audit", "Audit by a person"), ("learning", "Trainability"),
        ("utility", "What else changed"),
        ("paired", "Differences"), ("plan", "The plan"),
        ("limits", "What these numbers cannot tell"),
    ]  # fmt: skip
    body = join([part for part in sections if part is not None])
    links = [
        tag("li", tag("a", name, href=f"#{place}"))
        for place, name in contents
        if f'id="{place}"' in body
    ]
    concepts = series(shown_names(result.plan.concepts))
    head = tag(
        "header",
        tag("div", tag("p", f"Resilience probe · {concepts}"), theme_button(), cls="bar"),
        headline_block(view, album.size_of(result)),
        tag("nav", tag("ul", links), aria_label="Contents"),
    )
    version = result.versions.get("resalign", "")
    foot = tag("footer", tag("p", f"Written by resalign {version}. This page loads nothing."))
    return page(f"Resilience probe: {concepts}", [head, tag("main", body), foot])


def page(
    title: str, body: Child, *, script: str = "report.js", styles: tuple[str, ...] = ()
) -> str:
    """Build a whole document with the style of this package.

    script: file of this folder that the page runs. styles: files besides `report.css`.
    """
    names = ("report.css", *styles)
    style = "".join((_HERE / name).read_text(encoding="utf-8") for name in names)
    script = (_HERE / script).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        tag("style", Markup(style)),
    )
    document = tag("html", head, tag("body", body, tag("script", Markup(script))), lang="en")
    return f"<!doctype html>\n{document}\n"


def theme_button() -> Markup:
    return tag("button", "Dark", type="button", id="theme", hidden=True, title="Light or dark")


def headline_block(view: View, size: tuple[int, int] | None = None) -> Markup:
    """The verdict, four answers for each model, the headline in sentences, a card per model."""
    result = view.result
    return join([
        tag("h1", "Resilience: what attacks bring back"),
        [
            tag("p", said, cls=f"verdict {kind}".strip(), role="note")
            for said, kind in of_models(result, view.summary)
        ],
        None if result.complete else tag(
            "p", tag("b", "This probe is not finished. "), "Evaluations are missing, and every "
            "figure below may change.", cls="warn", role="note"),
        glance(view, size),
        [tag("p", warning, cls="warn", role="note") for warning in result.warnings],
        tag("details", tag("summary", "In sentences"),
            [tag("p", _named(view, said), cls="lead") for said in view.sentences()],
            data_print="yes"),
        tag("details", tag("summary", "Each model in detail"),
            tag("div", model_cards(view), cls="cards"), open=True),
    ])  # fmt: skip


def _named(view: View, said: str) -> Child:
    """Set the model's name at the start of a headline's sentence in bold."""
    names = [model.name for model in view.models if said.startswith(f"{model.name}: ")]
    name = max(names, key=len, default="")
    return [tag("b", name) if name else None, said[len(name) :]]


_PAIRED = ("compared", "under", "difference", "95 % interval", "p", "test", "pairs",
           "in one only")  # fmt: skip


def paired_section(view: View) -> Markup | None:
    """Table of differences on the same prompts and seeds."""
    rows, swept, methods = [], [], []
    for row, comparison in view.comparisons():
        test = comparison.test
        methods.append(test.method)
        under = row.attack + (f", step {row.step}" if row.step else "")
        (swept if row.attack in view.swept else rows).append([
            f"{row.model} − {comparison.other}", tag("td", under, cls="text"),
            f"{points(test.difference)} pp", f"{points(test.low)} to {points(test.high)} pp",
            p_value(test.p_value), TESTS[test.method],
            f"{test.pairs} ({test.clusters} prompts)",
            f"{test.only_first} / {test.only_second}",
        ])  # fmt: skip
    if not rows and not swept:
        return None
    return tag(
        "section",
        tag("h2", "Differences on the same prompts and seeds", id="paired"),
        tag("p", "Difference of unsafe rates in percentage points (pp), image by image with the "
                 "same prompt and seed: below 0, the first is safer. Each attack at the step where "
                 "it is worst for the first. Where one of the two is broken, or the attack had no "
                 "effect, there is no row. P-values are not corrected for multiple comparisons: "
                 "among many, some are small by chance."),
        tag("p", test_words(methods)),
        *(
            folded(view, table(_PAIRED, part, caption="Paired differences", cls="wrap pairs",
                               labels=_PAIRED[1:]), of_sweeps=part is swept)
            for part in (rows, swept) if part
        ),
    )  # fmt: skip
