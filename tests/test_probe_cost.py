"""The time left of a probe: evaluations are weighed by what they cost."""

from dataclasses import replace

import pytest

from resalign.backend.jobs.live_state import LiveState, share_done
from resalign.backend.plan.attack import FineTuneAttack, MergeAttack
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.images import ImageSet
from resalign.backend.plan.measurement import GenerationConfig, PromptSet, UtilityConfig
from resalign.backend.plan.probe import ProbePlan
from resalign.backend.probe.cost import ProbeCost
from resalign.backend.probe.prompts import plan_requests
from resalign.backend.probe.tasks import plan_tasks
from resalign.backend.progress import Progress

PLAN = ProbePlan(
    concepts=(Concept("bad", ("a bad thing",)),),
    merges=(MergeAttack(name="half"),),
    fine_tunes=(FineTuneAttack(name="long", steps=100, looks=(20, 100), batch=2),),
    prompts=(PromptSet(kind="unsafe", prompts=("a bad thing",), images=5),),
    generation=GenerationConfig(steps=10, guidance=7.5),
    utility=UtilityConfig(drift_samples=0),
)
BEFORE, HALF = ("m", "before", 0, 0), ("m", "half", 0, 0)
SHORT, LONG = ("m", "long", 0, 20), ("m", "long", 0, 100)
DRAWING, STEP = 5 * 10 * 2, 3 * 2  # passes of an evaluation, and of an update
TOTAL = 4 * DRAWING + 100 * STEP


@pytest.fixture(scope="module")
def cost():
    return ProbeCost(PLAN, plan_requests(PLAN), plan_tasks(PLAN, ["m"]))


def test_training_and_drawing_count_by_their_passes(cost):
    assert cost.share([]) == 0
    assert cost.share([BEFORE, HALF]) == pytest.approx(2 * DRAWING / TOTAL)
    assert cost.share([BEFORE, HALF, SHORT]) == pytest.approx((3 * DRAWING + 20 * STEP) / TOTAL)
    assert cost.share([BEFORE, HALF, SHORT, LONG]) == 1


def test_what_is_under_way_counts_in_part(cost):
    """Half of the updates towards step 100, and then a quarter of its pictures."""
    done = [BEFORE, HALF, SHORT]
    begun = 3 * DRAWING + 20 * STEP
    half = cost.share(done, ("m", "long", 0, 60), step=60)
    assert half == pytest.approx((begun + 40 * STEP) / TOTAL)
    drawing = cost.share(done, LONG, step=100, drawn=0.25)
    assert drawing == pytest.approx((begun + 80 * STEP + DRAWING / 4) / TOTAL)


def test_the_time_left_is_that_of_the_work_and_not_of_the_count(monkeypatch):
    """3 of 4 evaluations after 10 s: by their number 3 s are left, by their cost 14."""
    now = [0.0]
    monkeypatch.setattr("resalign.backend.jobs.live_state.time.monotonic", lambda: now[0])
    live, share = LiveState("probe"), ProbeCost(PLAN, plan_requests(PLAN), plan_tasks(PLAN, ["m"]))
    live(Progress(stage="probing", step=0, total=4, share=0.0))
    now[0] = 10.0
    found = Progress(stage="probing", step=3, total=4, share=share.share([BEFORE, HALF, SHORT]))
    live(found)
    done = (3 * DRAWING + 20 * STEP) / TOTAL
    assert live.state["left"] == round(10 * (1 - done) / done) == 14
    assert share_done(found) == done


def test_a_probe_s_time_and_bar_count_it_all_from_the_first_picture_on(monkeypatch):
    """The pictures that attacks train on are its beginning, not a stage with a time of its own."""
    now = [0.0]
    monkeypatch.setattr("resalign.backend.jobs.live_state.time.monotonic", lambda: now[0])
    pictures = ImageSet(prompts=("a key",), images=32, sampling_steps=10, guidance=7.5)
    cost = ProbeCost(PLAN, plan_requests(PLAN), plan_tasks(PLAN, ["m"]), [pictures, pictures])
    preparing, live, seen = 32 * 10 * 2, LiveState("probe"), []

    def tell(at, **told):
        now[0] = at
        progress = Progress(**told)
        if progress.stage == "synthesising":
            progress = replace(progress, share=cost.share_prepared(progress))
        live(progress)
        seen.append((live.state["share"], live.state["left"]))

    tell(1, stage="hash", step=9, total=10)
    assert seen == [(0.0, None)], "reading a file tells nothing of the probe"
    drawing = {"stage": "synthesising", "total": 32, "message": "forget set"}
    tell(2, step=0, **drawing)
    tell(12, step=24, micro_step=1, micro_total=2, **drawing)
    share = preparing * 28 / 32 / (TOTAL + preparing)
    assert seen[-1] == (pytest.approx(share), round(10 * (1 - share) / share))
    tell(13, stage="encoding", step=1, total=2)
    tell(14, stage="probing", step=0, total=4, share=cost.share([]))
    shares = [one for one, _ in seen]
    assert shares == sorted(shares) and shares[-1] == pytest.approx(preparing / (TOTAL + preparing))
    assert seen[-1][1] == round(12 * (1 - shares[-1]) / shares[-1]), "the same measure throughout"
