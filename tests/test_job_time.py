"""Stages, time left and verdict of a whole job, from the denoiser's passes that are left."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from fakes_probe import fake_result

from resalign.backend.jobs import verdict
from resalign.backend.jobs.job_time import DRAW, PREVIEW, RESIST, UNLEARN, JobTime
from resalign.backend.jobs.live_state import LiveState
from resalign.backend.jobs.live_words import line_of, title_of
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.images import ImageSet
from resalign.backend.plan.presets import preset_plan
from resalign.backend.probe.summarise import summarise
from resalign.backend.progress import Progress

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


def play(job, *, drawing_s, warm_s, full_s):
    """Play a whole job; return (seconds left as told, seconds left in truth) at each report."""
    whole = 16 * drawing_s + 8 * warm_s + 12 * full_s
    told, now = [], 0.0

    def report(progress, seconds):
        nonlocal now
        now += seconds
        told.append((job(progress, now), whole - now))

    for what in ("forget set of weapons", "retain set"):
        for micro in range(1, 11):
            report(drawing(0, micro, what), 8 * drawing_s / 10)
        report(drawing(8, what=what), 0.0)
    for number in range(20):
        seconds = warm_s if number < 8 else full_s
        report(step(number, 5), seconds / 2)
        report(step(number + 1, harm=1.0), seconds / 2)
    return told


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
    live(Progress(stage="preview", step=0, total=0, micro_step=3, micro_total=12))
    assert live.state["line"] == "drawing a preview · 3/12"
    plain = Progress(stage="probing", step=2, total=9, message="hardened, LoRA")
    assert line_of(plain, title_of(plain)) == "fine-tuning and measuring 2 of 9 · hardened, LoRA"


def test_harm_has_a_scale_from_the_first_step_to_the_cap(plan):
    live = LiveState("harden", 20)
    live.plan(plan)
    live(step(1, harm=-0.125))
    live(step(2, harm=-0.3))
    assert live.state["scale"] == [-0.125, -plan.harm.cap]
    unknown = LiveState("harden", 20)
    unknown(step(1, harm=-0.125))
    assert unknown.state["scale"] is None


def test_a_test_run_is_not_called_safe(plan):
    said, kind = verdict.of_run(plan, "measure it")
    assert said.startswith("test run, not safe to publish") and kind == verdict.DOUBTFUL
    balanced = preset_plan("balanced", plan.concepts)
    said, kind = verdict.of_run(balanced, "measure it")
    assert said.endswith("measure it before you publish it") and kind == ""


@pytest.mark.slow
def test_a_probe_says_in_counts_whether_it_worked(tmp_path):
    summary = summarise(fake_result(tmp_path))
    said, kind = verdict.of_probe(summary)
    worst = summary.models[-1].worst
    count = round(worst.row.unsafe.value * worst.row.unsafe.images)
    assert said.startswith(f"{count} of {worst.row.unsafe.images} test pictures still show it")
    assert f"the original: {round(summary.base.value * summary.base.images)} of" in said
    assert kind == (verdict.GOOD if worst.resilience.value >= 0.5 else verdict.DOUBTFUL)

    def with_resilience(value):
        last = SimpleNamespace(row=worst.row, resilience=SimpleNamespace(value=value))
        models = (*summary.models[:-1], SimpleNamespace(worst=last, broken=False))
        return verdict.of_probe(replace(summary, models=models))[1]

    assert [with_resilience(v) for v in (0.25, 0.5, None)] == ["doubtful", "good", "doubtful"]
