"""Live curves of a probe: those that lie on each other are named, and a resume brings all back."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from fakes_probe import fake_plan, fake_result

from resalign.backend.jobs.live_curves import coinciding, words
from resalign.backend.jobs.live_state import LiveState
from resalign.backend.probe.folder import ProbeFolder
from resalign.backend.probe.results_io import curve_labels, curve_points
from resalign.backend.progress import Progress

FULL = [[0, 1.0], [50, 1.0], [100, 1.0]]


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (FULL, True),
        ([[0, 0.2], [50, 1.0], [100, 1.0]], True),
        ([[0, 1.0], [50, 0.995], [100, 0.2]], True),
        ([[0, 1.0], [50, 0.9], [100, 1.0]], False),
        ([[0, 0.9], [100, 1.0]], False),
        ([[0, 1.0]], False),
        ([[0, 1.0], [100, 1.0]], True),
    ],
)
def test_curves_that_share_a_piece_are_found(other, same):
    found = coinciding(
        {"original: LoRA": FULL, "third": [[0, 0.5], [50, 0.5]], "hardened: LoRA": other}
    )
    assert found == ([["original: LoRA", "hardened: LoRA"]] if same else [])


def test_dots_at_one_place_are_found_and_groups_grow_together():
    dots = {"a": [[0, 1.0]], "b": [[0, 0.0]], "c": [[0, 1.0]], "d": [[0, 0.0]], "e": [[0, 0.995]]}
    assert coinciding(dots) == [["a", "c", "e"], ["b", "d"]]
    assert words(coinciding(dots), {**dots, "e": [[0, 1.0]]}) == (
        "“a”, “c” and “e” lie on each other at 100 %. “b” and “d” lie on each other at 0 %."
    )
    alike = {name: [[0, 1.0]] for name in "abcde"}
    assert words(coinciding(alike), alike) == "“a”, “b” and 3 others lie on each other at 100 %."


def live_with(evaluations, live=None):
    live = live or LiveState("probe")
    for each in evaluations:
        live(
            Progress(
                stage="probing", step=1, total=9, values=curve_points(each),
                labels=curve_labels(each.key), share=0.1,
            )
        )  # fmt: skip
    return live


@pytest.fixture
def kept(tmp_path):
    """A probe's folder with the evaluations of the original and a part of the next model's."""
    result = fake_result(plan=fake_plan())
    done = result.evaluations[: len(result.evaluations) // 2]
    with ProbeFolder.begin(tmp_path / "probe", result.plan, result.models, {}) as folder:
        for each in done:
            folder.add(each)
    return tmp_path / "probe", done, result


def test_a_resumed_probe_s_chart_has_the_points_from_before(kept):
    folder, done, result = kept
    live = LiveState("probe")
    live.recall_probe(folder)
    assert live.state["curves"] == live_with(done).state["curves"]
    assert "original: concept 10 %" in live.state["curves"]
    rest = result.evaluations[len(done) - 1 :]  # the last one is measured again
    assert live_with(rest, live).state["curves"] == live_with(result.evaluations).state["curves"]
    json.dumps(live.state)


def test_a_folder_without_a_probe_or_of_another_kind_adds_nothing(kept, tmp_path):
    live = LiveState("probe")
    live.recall_probe(tmp_path / "nothing")
    (kept[0] / "plan.json").write_text("{}", encoding="utf-8")
    live.recall_probe(kept[0])
    assert live.state["curves"] == {}


def test_a_probe_says_which_of_its_curves_lie_on_each_other():
    plan = fake_plan(seeds=(0,))
    one = fake_result(plan=plan, models=("original",)).evaluations
    both = [*one, *(replace(each, model="copy") for each in one)]
    live = live_with(both)
    assert ["original: benign LoRA", "copy: benign LoRA"] in live.state["together"]
    assert "“original: benign LoRA” and “copy: benign LoRA” lie on each other" in live.state["hint"]
    live.end("done", "done")
    assert "lie on each other" in live.state["hint"]
