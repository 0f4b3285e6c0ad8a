"""What is said of a run and of its export: only what its losses can tell."""

from dataclasses import replace

import pytest

from resalign.backend.jobs import verdict
from resalign.backend.jobs.live_state import LiveState
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.methods import share_removed
from resalign.backend.plan.presets import preset_plan
from resalign.backend.plan.stages import Stage
from resalign.backend.progress import Progress

PLAN = preset_plan("balanced", [Concept("weapons", ("a gun",))])
NOTHING, HALF = (-0.1, -0.1), (-0.1, -0.1 - 0.5 * (PLAN.harm.cap - 0.1))


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
    assert share_removed(towards, [0.4, 0.1]) == pytest.approx(0.75)
    assert share_removed(towards, [0.4]) is None, "the first step is the start itself"
    assert share_removed(replace(PLAN, before=(Stage(method="erase"),)), HALF) is None


def test_a_run_that_removed_nothing_says_so_first_and_so_does_its_export():
    said, kind = verdict.of_run(PLAN, "measure it", NOTHING)
    assert said.startswith("nothing was removed") and kind == verdict.DOUBTFUL
    said, kind = verdict.of_run(PLAN, "measure it", HALF)
    assert said.startswith(f"hardened in {PLAN.outer_steps} steps; measure it") and kind == ""

    short = replace(PLAN, outer_steps=20, warm_up_steps=8)
    said, kind = verdict.of_export(PLAN, NOTHING, measured=True)
    assert "Nothing was removed" in said and kind == verdict.DOUBTFUL
    said, kind = verdict.of_export(short, HALF, measured=True)
    assert "test run" in said and kind == verdict.DOUBTFUL
    said, kind = verdict.of_export(PLAN, HALF, measured=False)
    assert "measured" in said and kind == ""
    assert verdict.of_export(PLAN, HALF, measured=True) == ("", verdict.GOOD)
