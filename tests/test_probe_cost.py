"""The time left of a probe: evaluations are weighed by what they cost."""

import json
from dataclasses import replace

import pytest

from resalign.backend.cli.console import Console
from resalign.backend.jobs.live_state import LiveState
from resalign.backend.jobs.live_words import line_of
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


def test_a_probe_s_bar_counts_it_all_from_the_first_picture_on():
    """The pictures that attacks train on are its beginning; the time is the probe's own figure."""
    pictures = ImageSet(prompts=("a key",), images=32, sampling_steps=10, guidance=7.5)
    cost = ProbeCost(PLAN, plan_requests(PLAN), plan_tasks(PLAN, ["m"]), [pictures, pictures])
    preparing, live, seen = 32 * 10 * 2, LiveState("probe"), []

    def tell(**told):
        progress = Progress(**told)
        if progress.stage == "synthesising":
            progress = replace(progress, share=cost.share_prepared(progress))
        live(progress)
        seen.append((live.state["share"], live.state["left"]))

    tell(stage="hash", step=9, total=10)
    assert seen == [(0.0, None)], "reading a file tells nothing of the probe"
    drawing = {"stage": "synthesising", "total": 32, "message": "forget set"}
    tell(step=0, **drawing)
    tell(step=24, micro_step=1, micro_total=2, **drawing)
    share = preparing * 28 / 32 / (TOTAL + preparing)
    assert seen[-1] == (pytest.approx(share), None)
    tell(stage="encoding", step=1, total=2)
    tell(stage="probing", step=0, total=4, share=cost.share([]), left=83.4)
    shares = [one for one, _ in seen]
    assert shares == sorted(shares) and shares[-1] == pytest.approx(preparing / (TOTAL + preparing))
    assert seen[-1][1] == 83


def test_a_resumed_probe_s_bar_begins_at_what_is_done():
    """Its pictures come from the cache while it counts them again."""
    pictures = ImageSet(prompts=("a key",), images=32, sampling_steps=10, guidance=7.5)
    cost = ProbeCost(PLAN, plan_requests(PLAN), plan_tasks(PLAN, ["m"]), [pictures])
    read = Progress(stage="synthesising", step=8, total=32, message="forget set")
    assert cost.share_prepared(read, [BEFORE, HALF]) == cost.share([BEFORE, HALF]) > 0.3
    assert cost.share_prepared(read) < 0.1


def test_the_terminal_tells_the_probe_s_own_time_left(capsys):
    """The bar's own rate is that of equal parts, and after a resume far too high."""
    console = Console()
    for share, left in ((0.5, None), (0.51, 754.0)):
        console.progress(Progress(stage="probing", step=5, total=9, share=share, left=left))
    console.close()
    shown = capsys.readouterr().err
    assert "about 13 min left" in shown and "<" not in shown
    programs = Console(json=True)
    programs.progress(Progress(stage="probing", step=5, total=9, share=0.51, left=754.0))
    programs.progress(Progress(stage="encoding", step=5, total=9))
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["share"], first["left"]) == (0.51, 754.0)
    assert "left" not in second and "share" not in second


def test_the_line_of_a_probe_counts_pictures_once():
    told = Progress(
        stage="probing", step=0, total=9, micro_step=2, micro_total=4,
        message="original, before, picture 2 of 4 (2 other prompts × 2)",
    )  # fmt: skip
    assert line_of(told, "measuring") == f"measuring 0 of 9 · {told.message}"
