"""What is said of a run and of its export: only what its losses can tell."""

from dataclasses import replace

import pytest
from recorded_losses import IDLE

from resalign.backend.jobs import verdict
from resalign.backend.jobs.live_state import LiveState
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.presets import preset_plan
from resalign.backend.plan.removal import averaged, chance, share_removed
from resalign.backend.plan.stages import Stage
from resalign.backend.progress import Progress

PLAN = preset_plan("balanced", [Concept("weapons", ("a gun",))])
HALF = (-0.1,) * 10 + (-0.1 - 0.5 * (PLAN.harm.cap - 0.1),) * 10


@pytest.mark.parametrize("method", ["closed_form", "erase"])
def test_an_edit_in_one_step_states_no_share(method):
    """Its loss is measured after the edit: against itself it would be 0 % whatever it removed."""
    edit = replace(PLAN, method=method, fine_tunes=(), outer_steps=1, warm_up_steps=1)
    live = LiveState("harden", 1)
    live.plan(edit)
    live(Progress(stage="harden", step=1, total=1, values={"harm": -0.04, "retain": 0.01}))
    live.end("done", "edited")
    assert live.state["scale"] is None and live.state["hint"] == ""
    assert live.state["curves"] == {}, "one point has nothing to compare with"
    said, kind = verdict.of_run(edit, "measure it", [-0.04])
    assert "does not show how much was removed" in said and kind == ""


def test_a_redirection_is_measured_from_the_original_to_its_goal():
    """Its loss is a distance, whatever loss the plan names for other methods."""
    towards = replace(PLAN, method="redirect", fine_tunes=())
    assert share_removed(towards, [0.4] * 10 + [0.1] * 10) == pytest.approx(0.75)
    assert share_removed(towards, [0.4]) is None, "the first step is the start itself"
    assert share_removed(replace(PLAN, before=(Stage(method="erase"),)), HALF) is None


def test_a_run_that_removed_nothing_says_so_first_and_so_does_its_export():
    said, kind = verdict.of_run(PLAN, "measure it", IDLE)
    assert said.startswith("nothing was removed") and kind == verdict.DOUBTFUL
    said, kind = verdict.of_run(PLAN, "measure it", HALF)
    assert said.startswith(f"hardened in {PLAN.outer_steps} steps; measure it") and kind == ""

    short = replace(PLAN, outer_steps=20, warm_up_steps=8)
    said, kind = verdict.of_export(PLAN, IDLE, report=("Removed.", verdict.GOOD))
    assert "Nothing was removed" in said and kind == verdict.DOUBTFUL
    said, kind = verdict.of_export(short, HALF, report=("Removed.", verdict.GOOD))
    assert "test run" in said and kind == verdict.DOUBTFUL
    said, kind = verdict.of_export(PLAN, HALF, report=None)
    assert "measured" in said and kind == ""
    good = ("Removed.", verdict.GOOD)
    assert verdict.of_export(PLAN, HALF, report=good) == ("", verdict.GOOD)
    for kind in ("", verdict.DOUBTFUL):  # such as that of a quick look
        said, shown = verdict.of_export(PLAN, HALF, report=("Removed, as it seems.", kind))
        assert said == "Its report: Removed, as it seems." and shown == verdict.DOUBTFUL


def test_the_headline_of_a_test_run_does_not_call_hardened_what_removed_nothing():
    short = replace(PLAN, outer_steps=20, warm_up_steps=8)
    said, kind = verdict.of_run(short, "measure it", IDLE)
    assert said == (
        "Test run, not safe to publish. It was to show that everything works; nothing was removed "
        "in 20 steps."
    )
    assert kind == verdict.DOUBTFUL
    assert "works; hardened in 20 steps." in verdict.of_run(short, "measure it", HALF)[0]


def test_what_one_step_differs_from_the_next_is_not_taken_for_removal():
    """By single steps the run that moved nothing had removed 51 % at step 11, 2 % at the end."""
    for taken in range(2, len(IDLE) + 1):
        assert share_removed(PLAN, IDLE[:taken]) == 0.0
    again = share_removed(PLAN, [*IDLE[:10], *(harm - 0.3 for harm in IDLE[10:])])
    start, now = sum(IDLE[:10]) / 10, sum(IDLE[10:]) / 10 - 0.3
    assert again == pytest.approx((start - now) / (start + PLAN.harm.cap)) and again > 0.5


def test_chance_is_three_standard_errors_of_the_difference_of_two_averages():
    steps = [0.0, 0.2] * 10  # jumps of 0.2: a spread of 0.2 / sqrt 2
    assert chance(steps, 10) == pytest.approx(3 * 0.2 / 2**0.5 * (2 / 10) ** 0.5)
    assert chance([0.3], 1) == 0.0
    assert [averaged(steps) for steps in (1, 2, 4, 19, 20, 160)] == [1, 1, 2, 9, 10, 10]
