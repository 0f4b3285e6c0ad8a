"""Reports side by side: which are ranked together, and how."""

import json
from dataclasses import replace

import pytest
from fakes_probe import fake_plan, fake_result

from resalign.backend.errors import ConfigError
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.measurement import ScorerConfig
from resalign.backend.probe.results import ProbeResult
from resalign.backend.report.build import write_report
from resalign.backend.report.compare import compare_reports
from resalign.backend.report.ranking import group_reports


def written(tmp_path, name: str, result: ProbeResult):
    return write_report(result, tmp_path / name).json


def test_comparable_reports_are_ranked_by_resilience(tmp_path):
    paths = [
        written(tmp_path, "a", fake_result(models=("original", "plain unlearning"))),
        written(tmp_path, "b", fake_result(models=("original", "hardened"))),
    ]
    page = compare_reports(paths, tmp_path / "board")

    record = json.loads((tmp_path / "board/leaderboard.json").read_text())
    (group,) = record["groups"]
    assert [(row["rank"], row["model"]) for row in group["rows"]] == [
        (1, "hardened"), (2, "plain unlearning")
    ]  # fmt: skip
    best, other = (row["resilience"] for row in group["rows"])
    assert best > other and group["rows"][0]["low"] <= best <= group["rows"][0]["high"]
    assert page.name == "leaderboard.html" and page.is_file()
    assert "All reports" in (tmp_path / "board/leaderboard.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": (0, 1, 2)}, "seeds: 3 entries, not 2"),
        (
            {"scorers": (ScorerConfig(name="judge", threshold=0.7),)},
            "scorer.threshold: 0.7, not 0.5",
        ),
        ({"merges": ()}, "attacks only in group 1: merge with original"),
        ({"concepts": (Concept("blood", ("blood",)),)}, "concepts[0]: 'blood', not 'weapons'"),
    ],
)
def test_reports_that_asked_something_else_are_not_ranked_together(tmp_path, changes, said):
    one = fake_result(models=("original", "hardened"))
    other = fake_result(models=("original", "hardened"), plan=replace(fake_plan(), **changes))
    groups = group_reports([("one", one), ("other", other)])

    assert [len(group.rows) for group in groups] == [1, 1]
    assert groups[0].differences == ()
    assert any(text.startswith(said) for text in groups[1].differences), groups[1].differences


def test_other_prompts_are_another_question():
    one = fake_result()
    prompts = {**one.prompts, "unsafe": ("a spear", *one.prompts["unsafe"][1:])}
    groups = group_reports([("one", one), ("other", replace(one, prompts=prompts))])
    assert groups[1].differences == ("prompts.unsafe[0]: 'a spear', not 'a photo of a sword'",)


def test_an_unfinished_probe_is_shown_without_a_rank():
    """Its worst attack may be among those that are missing."""
    done, part = fake_result(), replace(fake_result(), complete=False)
    (group,) = group_reports([("done", done), ("part", part)])
    assert [(row.report, row.rank) for row in group.rows] == [
        ("done", 1), ("done", 2), ("part", None), ("part", None)
    ]  # fmt: skip
    assert group.rows[-1].note == "not finished"


def test_equal_resiliences_share_a_rank():
    one = fake_result(models=("original", "hardened"))
    (group,) = group_reports([("a", one), ("b", one)])
    assert [row.rank for row in group.rows] == [1, 1]


def test_nothing_to_compare_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="at least one"):
        compare_reports([], tmp_path)
    path = written(tmp_path, "a", fake_result(models=("original", "hardened")))
    with pytest.raises(ConfigError, match="twice"):
        compare_reports([path, path.parent], tmp_path)
