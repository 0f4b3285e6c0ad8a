"""Stages, time left and verdict of a whole job, from the denoiser's passes that are left."""

from dataclasses import replace

import pytest
from PIL import Image

from resalign.backend.data.small_sets import with_small_sets
from resalign.backend.jobs import verdict
from resalign.backend.jobs.job_time import (
    BEFORE,
    DRAW,
    PREDICT,
    PREVIEW,
    RESIST,
    UNLEARN,
    JobTime,
    sets_of,
)
from resalign.backend.jobs.live_state import LiveState
from resalign.backend.jobs.live_words import line_of, title_of
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.durations import COMMON, ORDER, PASSES, Pace, Passes, words_of
from resalign.backend.plan.field import field_of
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.images import ImageSet
from resalign.backend.plan.presets import PLAN_PRESETS, plan_preset, preset_plan
from resalign.backend.plan.settings import FAST_PRESET, PRESETS, setting_changes
from resalign.backend.plan.stages import Stage
from resalign.backend.progress import Picture, Progress
from resalign.backend.run.rebuild import stage_name

SETS = [ImageSet(prompts=("a gun",), images=8, sampling_steps=10),
        ImageSet(prompts=("a cat",), images=8, sampling_steps=10)]  # fmt: skip


@pytest.fixture(scope="module")
def plan():
    return preset_plan("quick", [Concept("weapons", ("a gun",))])  # 8 of 20 steps alone


def drawing(step, micro=0, what="forget set of weapons"):
    return Progress(stage="synthesising", step=step, total=8, micro_step=micro,
                    micro_total=10 * bool(micro), message=what)  # fmt: skip


def step(done, micro=0, **values):
    return Progress(stage="harden", step=done, total=20, micro_step=micro,
                    micro_total=10 * bool(micro), values=values)  # fmt: skip


def play(job, *, drawing_s, warm_s, full_s, look=lambda: None):
    """Play a whole job; return (seconds left as told, seconds left in truth) at each report."""
    whole = 16 * drawing_s + 8 * warm_s + 12 * full_s
    told, now = [], 0.0

    def report(progress, seconds):
        nonlocal now
        now += seconds
        told.append((job(progress, now), whole - now))
        look()

    for what in ("forget set of weapons", "retain set"):
        for micro in range(1, 11):
            report(drawing(0, micro, what), 8 * drawing_s / 10)
        report(drawing(8, what=what), 0.0)
    for number in range(20):
        seconds = warm_s if number < 8 else full_s
        report(step(number, 5), seconds / 2)
        report(step(number + 1, harm=1.0), seconds / 2)
    return told


def test_the_bar_is_that_of_the_whole_job_and_never_goes_back(plan):
    """Also while a preview is drawn, which has steps of its own."""
    job = JobTime(plan, SETS, every=4)
    seen = []
    play(job, drawing_s=1, warm_s=1, full_s=9, look=lambda: seen.append(job.share()))
    assert seen == sorted(seen) and 0 < seen[0] < 0.02
    before = job.share()
    for micro in range(1, 12):
        job(Progress(stage="preview", step=0, total=0, micro_step=micro, micro_total=12), 500.0)
        assert before <= job.share() < 1
    again = JobTime(plan, SETS)
    again.recall([{"step": n, "seconds": 1.0} for n in range(1, 21)])
    assert again.share() == 1.0

    live = LiveState("harden", 20)
    live.plan(replace(plan, retain_set=SETS[1]))
    assert live.state["share"] is None
    live(drawing(4))
    assert 0 < live.state["share"] < 0.1


def test_what_comes_before_the_first_unit_is_not_taken_for_its_time(plan):
    """Loading took 8 s: the first preview promised half an hour of a job of two minutes."""
    job = JobTime(plan, SETS, every=4)
    job(Progress(stage="hash", step=12, total=12), 0.0)
    for micro in range(1, 6):
        now = 8.0 + 0.5 * micro
        left = job(
            Progress(stage="preview", step=0, total=0, micro_step=micro, micro_total=12), now
        )
    each = 0.5 * 12 / job.work[PREVIEW].passes
    assert left == pytest.approx(job.passes_left() * each, rel=0.01)


def test_there_is_one_estimate_for_the_whole_job_and_it_falls(plan):
    """A pass takes 0.1 s everywhere: what is predicted from passes is then what it takes."""
    job = JobTime(plan, SETS)
    passes = {kind: work.passes for kind, work in job.work.items()}
    assert passes[RESIST] > 3 * passes[UNLEARN], "the slower half is weighed as such"
    told = play(job, drawing_s=0.1 * passes[DRAW], warm_s=0.1 * passes[UNLEARN],
                full_s=0.1 * passes[RESIST])  # fmt: skip
    known = [(left, truth) for left, truth in told if left is not None]
    assert len(known) > 35 and told[0][0] is None, "none until it can be given"
    assert all(left == pytest.approx(truth, rel=0.02, abs=0.2) for left, truth in known)


def test_what_was_measured_corrects_the_prediction(plan):
    job = JobTime(plan, SETS)
    told = play(job, drawing_s=1.0, warm_s=5.0, full_s=40.0)  # nothing like the passes
    left, truth = told[-6]
    assert left == pytest.approx(truth, rel=0.2)
    assert told[-1][0] == pytest.approx(0, abs=1e-6)


def test_after_a_resume_it_is_known_at_once(plan):
    job = JobTime(plan, SETS, every=10)
    assert job.left() is None
    job.recall([{"step": n, "seconds": 2.0 if n <= 8 else 10.0} for n in range(1, 15)])
    assert job.work[DRAW].left == 0, "its pictures are stored with the run"
    assert job.work[PREVIEW].left == 1
    a_pass = 76 / (8 * job.work[UNLEARN].passes + 6 * job.work[RESIST].passes)
    assert job.left() == pytest.approx(6 * 10 + job.work[PREVIEW].passes * a_pass, rel=0.1)


def test_pictures_of_an_earlier_session_do_not_count_as_fast(plan):
    job = JobTime(plan, SETS)
    job(drawing(0, what=""), 0.0)
    assert job(drawing(8), 0.5) is None
    assert job.work[DRAW].done == 8 and job.work[DRAW].measured == 0


def test_steps_of_a_stage_and_predictions_of_an_earlier_session_do_not_count_as_fast():
    """Resumed after 300 of 600 steps of a stage, and after 200 of 300 batches of predictions."""
    concept = Concept("weapons", prompts=("a gun",), anchor="a toy")
    erase, distil = Stage(method="erase"), Stage(method="distil", steps=600)
    plan = replace(
        preset_plan("balanced", [concept]), retain_set=SETS[1], before=(erase, distil),
        varied=plan_preset("durable").fields["varied"],
    )  # fmt: skip
    job, stage = JobTime(plan, SETS), "stage 2-distil"
    job(drawing(8), 0.0)
    a_step = job._stages[stage] / 600
    for done, now in ((300, 20.0), (301, 30.0), (302, 40.0)):
        left = job(Progress(stage=stage, step=done, total=600, values={"retain": 1.0}), now)
    assert job.work[BEFORE].measured == pytest.approx(2 * a_step)
    assert left == pytest.approx(sum(w.left * w.passes for w in job.work.values()) * 10 / a_step)

    durable = replace(preset_plan("durable", [concept]), retain_set=SETS[1])
    job = JobTime(replace(durable, distil=replace(durable.distil, stored_draws=4800)), SETS)
    job(drawing(8), 0.0)
    for done, now in ((200, 0.5), (201, 5.5), (202, 10.5)):
        job(Progress(stage="predicting", step=done, total=300), now)
    assert job.work[PREDICT].measured == pytest.approx(2 * 16)


def test_the_line_says_what_is_done_how_far_and_in_which_stage(plan):
    live = LiveState("harden", 20)
    live.plan(plan)
    live(Progress(stage="synthesising", step=16, total=32, message="retain set"))
    assert live.state["line"] == (
        "drawing example pictures of what must stay 16 of 32 (stage 1 of 3)"
    )
    live(step(3, harm=-0.1))
    assert live.state["line"] == "unlearning 3 of 20 (stage 2 of 3)"
    live(replace(step(12, 4), message="retain/lora/adamw/0.0001x4"))
    assert live.state["line"] == (
        "unlearning against simulated fine-tuning 12 of 20 (stage 3 of 3) · 4/10"
    )
    live(Progress(stage="preview", step=0, total=0, micro_step=3, micro_total=13))
    assert live.state["line"] == "drawing a preview · 3/13"
    earlier = Progress(stage=f"stage {stage_name(2, 'distil')}", step=3, total=600)
    assert line_of(earlier, title_of(earlier)) == "training back to the original 3 of 600"
    users = Progress(stage=f"stage {stage_name(1, 'resalign')}", step=3, total=9, micro_step=4,
                     micro_total=10, message="retain/lora/adamw/0.0001x4")  # fmt: skip
    assert line_of(users, title_of(users)) == (
        "unlearning against simulated fine-tuning 3 of 9 · 4/10"
    )
    read = Progress(stage="encoding", step=3, total=9, message="forget set of hate symbols")
    assert line_of(read, title_of(read)) == "reading pictures 3 of 9 · hate symbols"
    plain = Progress(stage="probing", step=2, total=9, message="hardened, LoRA")
    assert line_of(plain, title_of(plain)) == "fine-tuning and measuring 2 of 9 · hardened, LoRA"


def test_pictures_that_are_drawn_at_once_say_the_step_that_moves_and_the_bar_moves_with_it(plan):
    """*drawing example pictures of weapons 0 of 8 · 9/12* stood at 0, then jumped."""
    live = LiveState("harden", 20)
    live.plan(replace(plan, retain_set=SETS[1]))
    drawn = Progress(stage="synthesising", step=0, total=8, micro_step=3, micro_total=12,
                     message="forget set of weapons", at_once=8)  # fmt: skip
    shares = []
    for micro in range(1, 13):
        live(replace(drawn, micro_step=micro))
        shares.append(live.state["share"])
    assert shares == sorted(set(shares)), "each sampling step moves the bar"
    live(drawn)
    assert live.state["line"] == (
        "drawing 8 example pictures of weapons at once: sampling step 3 of 12 (stage 1 of 3)"
    )
    more = replace(drawn, step=16, total=20, at_once=4, message="retain set")
    assert line_of(more, title_of(more)) == (
        "drawing 4 example pictures of what must stay at once, 16 of 20 done: sampling step 3 of 12"
    )
    one = replace(drawn, at_once=1)
    assert line_of(one, title_of(one)) == "drawing example pictures of weapons 0 of 8 · 3/12"
    loose = Progress(stage="generating", step=0, total=2, micro_step=3, micro_total=12, at_once=2)
    assert line_of(loose, title_of(loose)) == "drawing 2 pictures at once: sampling step 3 of 12"


def test_two_estimates_of_the_time_never_stand_at_once(plan):
    live = LiveState("harden", 20)
    live.remark(["device      cpu", "expected    no memory; the time is known after the first step "
                 "(9 passes of the denoiser)"])  # fmt: skip
    live.plan(plan)
    assert "after the first step" in live.state["remarks"][1]
    live._job = Estimate(70.0)
    live._line = lambda progress: ""
    live(step(1))
    kept = ["device      cpu", "expected    no memory"]
    assert live.state["left"] == 70 and live.state["remarks"] == kept
    live.remark(["expected    about 11 min left, by the steps so far", "warning: it spilled"])
    assert live.state["remarks"] == [*kept, "warning: it spilled"]
    live._job = Estimate(None)
    live(step(2))
    live.remark(["expected    8 GiB; about 9 min left, by the steps before"])
    assert live.state["remarks"][-1] == "expected    8 GiB", "an old one does not come back"


def test_a_bar_is_not_full_while_the_job_still_saves(plan):
    live = LiveState("harden", 20)
    live.plan(plan)
    live._job = Estimate(0.0)
    live._job.share = lambda: 1.0
    live._line = lambda progress: ""
    live(step(20, harm=1.0))
    assert live.state["share"] == 0.99


def test_a_test_run_is_not_called_safe(plan):
    said, kind = verdict.of_run(plan, "measure it")
    assert said.startswith("Test run, not safe to publish") and kind == verdict.DOUBTFUL
    balanced = preset_plan("balanced", plan.concepts)
    said, kind = verdict.of_run(balanced, "measure it")
    assert said.endswith("measure it before you publish it") and kind == ""


def passes_of(choice):
    """Passes of the denoiser that a choice of the forms makes with nothing else set, by kind."""
    name, changes = setting_changes(choice, {})
    plan = preset_plan(name, [Concept("weapons", ("a gun",))], **changes)
    plan = with_small_sets(plan) if name == FAST_PRESET else plan
    work = JobTime(plan, sets_of(plan), every=10).work
    drawing = sum(work[kind].units * work[kind].passes for kind in (DRAW, PREVIEW))
    return drawing, sum(one.units * one.passes for one in work.values()) - drawing


@pytest.mark.parametrize("choice", PRESETS)
def test_the_passes_that_a_duration_is_computed_from_are_those_of_the_job(choice):
    stated = PASSES[choice]
    assert (stated.drawing, stated.training) == pytest.approx(passes_of(choice), abs=1)


def test_the_choices_are_offered_from_the_shortest_to_the_longest():
    minutes = [words_of(PASSES[name].seconds(COMMON)) for name in ORDER if name != "custom"]
    assert minutes == [
        "about 2 minutes", "about 15 minutes", "about 25 minutes", "about 1 hour",
        "about 1.5 hours", "about 2 hours", "about 2 hours", "about 3.5 hours",
    ]  # fmt: skip
    assert words_of(20) == "less than a minute" and words_of(61) == "about 1 minute"
    assert words_of(58 * 60) == "about 1 hour" and words_of(26.4 * 3600) == "about 26 hours"


def test_the_pace_of_a_job_is_measured_for_drawing_and_training_apart(plan):
    job = JobTime(plan, SETS)
    assert job.pace() == {}
    play(job, drawing_s=2.0, warm_s=4.0, full_s=8.0)
    found = Pace(**job.pace())
    assert found.drawing == pytest.approx(2.0 / job.work[DRAW].passes, rel=0.1)
    trained = 8 * 4.0 + 12 * 8.0
    works = [job.work[UNLEARN], job.work[RESIST]]
    assert found.training == pytest.approx(
        trained / sum(work.units * work.passes for work in works), rel=0.1
    )
    assert Passes(100, 10).seconds(Pace(0.5, 2.0)) == 70
    assert set(job.pace()) == {"drawing", "training"}, "as `pace_from` reads it"


def test_every_method_that_can_come_first_has_words_for_its_line():
    for method in field_of(Stage, "method").choices:
        shown = title_of(Progress(stage=f"stage {stage_name(1, method)}", step=0, total=1))
        assert "stage" not in shown and method not in shown


def test_a_picture_of_a_probe_says_of_which_model_it_is(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    live = LiveState("probe")
    pictures = (Picture(file="a.png", caption="a cat", flagged=False),)
    for labels in ({"model": "hardened"}, {}):
        live.pictures_from(tmp_path)(
            Progress(stage="probing", step=1, total=2, labels=labels, pictures=pictures)
        )
    assert [one["caption"] for one in live.state["pictures"]] == ["hardened: a cat", "a cat"]


class Estimate:
    """Says the same of every report."""

    def __init__(self, left):
        self.left = left

    def __call__(self, progress, now):
        return self.left

    def share(self):
        return 0.9

    def pace(self):
        return {}


def test_a_job_that_still_works_never_has_0_seconds_left(plan):
    live = LiveState("harden", 20)
    live.plan(plan)
    for left in (0.0, 0.4, None):
        live._job = Estimate(left)
        live._line = lambda progress: ""
        live(step(20))
        assert live.state["left"] is None
    live._job = Estimate(0.6)
    live(step(20))
    assert live.state["left"] == 1


def test_the_default_preset_counts_varied_images_stages_and_the_batches_of_distillation():
    own = PLAN_PRESETS["durable"].fields
    concept = Concept("weapons", prompts=("a gun",), anchor="a toy")
    plan = HardeningPlan(concepts=(concept,), retain_set=SETS[1], **own)
    job = JobTime(plan, sets_of(plan))
    drawn = 1 + SETS[1].images + plan.varied.images
    assert job.work[DRAW].units == pytest.approx(drawn, abs=200) and drawn > 1000
    assert job.work[UNLEARN].passes == plan.distil.batch * (3 + 1)
    assert job.work[BEFORE].units == 2 * plan.erase.samples, "a pass of each of both kinds"

    half = Progress(stage="stage 1-erase", step=0, total=1, micro_step=5, micro_total=10)
    assert job.kind_of(half) == BEFORE
    job(half, 1.0)
    assert job.work[BEFORE].done == plan.erase.samples
    assert job.work[DRAW].left == 0

    stored = replace(plan, distil=replace(plan.distil, stored_draws=64))
    job = JobTime(stored, SETS)
    assert job.work[PREDICT].units == 64
    assert job.work[UNLEARN].passes == plan.distil.batch * 3
    job(Progress(stage="predicting", step=2, total=4), 1.0)
    assert job.work[PREDICT].done == 32
    job.recall([{"step": 1, "seconds": 1.0}])
    assert job.work[BEFORE].left == job.work[PREDICT].left == 0
