"""The concept's losses of a run as its chart shows them: averages, and never their noise."""

from dataclasses import replace

import pytest
from recorded_losses import IDLE

from resalign.backend.jobs.live_curves import coinciding_losses
from resalign.backend.jobs.live_losses import Losses
from resalign.backend.jobs.live_state import LiveState
from resalign.backend.jobs.live_words import NO_SHARE
from resalign.backend.plan import removal
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.presets import preset_plan
from resalign.backend.plan.stages import Stage
from resalign.backend.progress import Progress

PLAN = preset_plan("quick", [Concept("weapons", ("a gun",))])  # 8 of 20 steps alone
CAP = PLAN.harm.cap


def live_of(plan=PLAN):
    live = LiveState("harden", plan.outer_steps)
    live.plan(plan)
    return live


def tell(live, step, **values):
    live(Progress(stage="harden", step=step, total=20, values=values))


def shares(state, name="harm"):
    (start, end), points = state["scale"], state["curves"].get(name, [])
    return [(x, round((start - y) / (start - end), 3)) for x, y in points]


def test_harm_has_a_scale_from_the_first_average_to_the_cap():
    live = live_of()
    for step in range(1, 11):
        assert live.state["scale"] is None and "harm" not in live.state["figures"]
        assert "shown from step 10, as an average of 10 steps" in live.state["hint"] or step == 1
        tell(live, step, harm=-0.01 * step, retain=0.0)
    assert live.state["scale"] == [-0.055, -CAP] and live.state["average"] == 10
    assert live.state["curves"]["harm"] == [[10, -0.055]]
    unknown = LiveState("harden", 20)
    for step in range(1, 13):
        tell(unknown, step, harm=-0.125)
    assert unknown.state["scale"] is None and unknown.state["hint"] == ""


def test_noise_is_never_shown_as_removal():
    """The recorded run: its single steps were 48 %, 0 %, 51 %, 0 %, 49 % apart."""
    live = live_of()
    for step, harm in enumerate(IDLE, start=1):
        tell(live, step, harm=harm, q=1.0, **({"harm_after": harm + 0.001} if step > 8 else {}))
        if step >= 10:
            assert live.state["hint"].startswith("Nothing is removed yet, so nothing can come back")
            assert "q" not in live.state["figures"], "no relapse of what was not removed"
    assert shares(live.state) == [(step, 0.0) for step in range(10, 21)]
    assert shares(live.state, "harm after") == shares(live.state)
    assert live.state["together"] == [["harm", "harm after"]]
    live.end("done", "over")
    assert live.state["hint"].startswith("Nothing was removed, so nothing can come back")


def test_what_is_removed_shows_once_it_is_more_than_noise():
    live, plan = live_of(replace(PLAN, outer_steps=40)), PLAN
    for step in range(1, 41):
        lower = min(0.25, 0.02 * max(0, step - 10))
        noise = 0.02 * (-1) ** step
        tell(live, step, harm=-0.1 - lower + noise, q=0.9, harm_after=-0.1 - lower / 2 + noise)
    seen = dict(shares(live.state))
    assert seen[40] == pytest.approx(0.25 / (plan.harm.cap - 0.1), abs=1e-3)
    assert all(seen[step] == 0 for step in range(10, 15)) and seen[20] > 0.2
    assert dict(shares(live.state, "harm after"))[40] == pytest.approx(seen[40] / 2, abs=1e-3)
    assert live.state["hint"] == "" and live.state["together"] == [["harm", "harm after"]]
    assert live.state["figures"]["q"] == pytest.approx(0.5, abs=0.01), "of what is drawn"
    live.end("done", "over")
    assert live.state["hint"].startswith("This share is of losses. A probe counts what still")


def test_the_loss_after_a_fine_tuning_is_compared_with_that_of_the_same_steps():
    """Beside an average of ten steps, the loss of the first user's batch alone would be noise."""
    losses = Losses(4)
    for step, harm in enumerate((-0.1, -0.3, -0.1, -0.3), start=1):
        losses.add(step, {"harm": harm, **({"harm_after": harm + 0.05} if step == 4 else {})})
    assert losses.curves() == {"harm": [[4, -0.2]], "harm after": [[4, -0.15]]}
    losses.add(4, {"harm": -0.5})  # measured again
    losses.add(5, {"harm": float("nan"), "harm_after": 1.0})
    assert losses.curves() == {"harm": [[4, -0.25]]}


@pytest.mark.parametrize("preset", ["durable", "durable-max"])
def test_losses_that_tell_no_share_say_so(preset):
    live = LiveState("harden", 20)
    live.plan(preset_plan(preset, PLAN.concepts))
    assert live.state["hint"] == ""
    for step in range(1, 13):
        tell(live, step, harm=0.5 - 0.01 * step, retain=0.0)
    assert live.state["hint"] == NO_SHARE
    live.end("done", "over")
    assert live.state["hint"] == NO_SHARE and live.state["scale"] is None


def test_losses_lie_on_each_other_by_the_size_of_their_axis():
    lines = {"harm": [[1, 0.010], [2, 0.020]], "harm after": [[1, 0.012], [2, 0.022]]}
    assert coinciding_losses(lines) == []
    assert coinciding_losses(lines, (0.5, 0.0)) == [["harm", "harm after"]]
    flat = {"harm": [[1, 0.3], [2, 0.3]], "harm after": [[1, 0.3], [2, 0.3]]}
    assert coinciding_losses(flat) == [["harm", "harm after"]]


def test_a_long_run_keeps_its_ends_and_few_points():
    live = live_of(replace(PLAN, outer_steps=900))
    live.recall(
        Progress(stage="harden", step=step, total=900, values={"harm": -0.1, "retain": 2e-8})
        for step in range(1, 901)
    )
    for name, first in (("harm", 10), ("retain", 1)):
        points = live.state["curves"][name]
        assert (points[0][0], points[-1][0]) == (first, 900) and len(points) <= 200
    assert live.state["figures"]["retain"] == 2e-8, "six digits that matter, however small"


def test_the_chart_of_a_stage_after_another_has_no_scale():
    """Its first step is no longer the original, which would be 0 %."""
    live = live_of(replace(PLAN, before=(Stage(method="erase"),)))
    for step in range(1, 13):
        tell(live, step, harm=-0.125)
    assert live.state["scale"] is None and live.state["hint"] == NO_SHARE
    assert live.state["curves"]["harm"][-1] == [12, -0.125]


def test_a_chart_without_a_gap_says_why():
    """Two lines that agree look like success; where nothing was unlearned they mean nothing."""
    live = live_of()
    for step in range(1, 11):
        tell(live, step, harm=-0.1)
    assert live.state["hint"] == "Nothing is removed yet."
    removed = -0.1 - 0.5 * (CAP - 0.1)
    for step in range(11, 21):
        tell(live, step, harm=removed)
    assert "No simulated user has fine-tuned yet" in live.state["hint"]
    tell(live, 21, harm=removed, harm_after=-0.2)
    assert live.state["hint"] == ""


def test_a_wavering_average_does_not_fall_to_nothing_once_something_is_removed():
    """It is as measured from then on; before, an equal fall counts as chance."""
    noise = [0.3, -0.3] * 5

    def harms(*levels):
        return [level + part for level in levels for part in noise]

    ends = [
        removal.shares(harms(*levels), 10, (1.0, 0.0))[-1]
        for levels in ((1, 0.3, 0.8), (1, 1, 0.8))
    ]
    assert ends == [pytest.approx(0.2), 0.0]
