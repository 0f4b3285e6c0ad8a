"""Figures of utility: every one has its label and its direction in every format."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from fakes_probe import fake_result

from resalign.backend.probe.results import ProbeResult
from resalign.backend.probe.utility_figures import FIGURES, utility_direction, utility_label
from resalign.backend.report.build import write_report


@pytest.fixture(scope="module")
def result():
    return fake_result()


def with_utility(result: ProbeResult, **utility: float) -> ProbeResult:
    evaluations = tuple(
        replace(each, utility={**each.utility, **utility}) for each in result.evaluations
    )
    return replace(result, evaluations=evaluations)


class Cells(HTMLParser):
    """The texts of all cells of a page's tables, row by row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.inside = True
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.key)
def test_every_utility_figure_has_its_label_and_direction_in_every_format(result, tmp_path, figure):
    """FID and KID once came without: a report has them under the keys that a probe writes."""
    key = figure.key_of("retain")
    files = write_report(with_utility(result, **{key: 0.0123}), tmp_path)
    label = figure.label + (", others" if figure.per_set else "")

    record = json.loads(files.json.read_text())
    assert {look["utility"][key] for look in record["looks"]} == {0.0123}

    rows = Cells(files.html.read_text(encoding="utf-8")).rows
    head = next(row for row in rows if row[:2] == ["model", "when"])
    place = head.index(label + figure.direction)
    assert rows[rows.index(head) + 1][place] == "0.0123"

    text = files.markdown.read_text(encoding="utf-8")
    assert f"{label} ({figure.direction})" in text
    text = text[text.index("### What else changed") :]
    head, _, first = text[text.index("| model |") :].splitlines()[:3]
    cells = dict(zip(head.split("|"), first.split("|"), strict=True))
    assert cells[f" {label} "] == " 0.0123 "


def test_a_figure_of_another_version_is_shown_by_its_key():
    assert (utility_label("some_new_thing"), utility_direction("some_new_thing")) == (
        "some new thing", "",
    )  # fmt: skip


def test_what_an_evaluator_writes_is_in_the_table_of_figures(package_folder):
    """A key that is written out elsewhere would lose its label again."""
    wrong = [
        f"{path.name}:{line}"
        for folder in ("probe", "report", "jobs", "worker")
        for path in sorted((package_folder / "backend" / folder).glob("*.py"))
        if path.name != "utility_figures.py"
        for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        for figure in FIGURES
        if re.search(rf'(utility\[|get\()["\']{figure.key}', text)
    ]
    assert wrong == []
