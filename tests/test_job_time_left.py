"""Time left and bar of a hardening on a clock of our own, with stages of unequal cost."""

from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from resalign.backend.jobs.job_time import DRAW, PREVIEW, RESIST, UNLEARN, JobTime
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.images import ImageSet
from resalign.backend.plan.presets import preset_plan
from resalign.backend.progress import Progress

PLAN = preset_plan("quick", [Concept("weapons", ("a gun",))])  # 8 of 20 steps alone
SETS = [ImageSet(prompts=("a gun",), images=8, sampling_steps=10),
        ImageSet(prompts=("a cat",), images=16, sampling_steps=30)]  # fmt: skip
EVERY, WARM, STEPS = 5, 8, 20


@dataclass
class Played:
    """A whole job, report by report: kind, seconds left as told, seconds left in truth, share."""

    job: JobTime
    now: float = 0.0
    told: list = field(default_factory=list)

    def report(self, progress, seconds):
        self.now += seconds
        left = self.job(progress, self.now)
        self.told.append((self.job.kind_of(progress), left, self.now, self.job.share()))

    def preview(self, seconds):
        for part in range(1, 14):
            shown = Progress(stage="preview", step=0, total=0, micro_step=part, micro_total=13)
            self.report(shown, seconds / 13)

    def draw(self, what, one, seconds):
        """seconds: of a pass of a picture."""
        for start in range(0, one.images, 8):
            for micro in range(1, one.sampling_steps + 1):
                self.report(
                    Progress(
                        stage="synthesising", step=start, total=one.images, micro_step=micro,
                        micro_total=one.sampling_steps, message=what, at_once=8,
                    ),
                    8 * 2 * seconds,
                )  # fmt: skip
            done = Progress(stage="synthesising", step=start + 8, total=one.images, message=what)
            self.report(done, 0.0)

    def play(self, *, a_pass, preview, warm, full, setup=30.0):
        self.report(Progress(stage="hash", step=1, total=1), 2.0)
        self.preview(preview)
        self.report(Progress(stage="encoding", step=0, total=0), 1.0)
        for what, one in zip(("forget set of weapons", "retain set"), SETS, strict=True):
            self.draw(what, one, a_pass)
        self.now += setup
        for step in range(STEPS):
            seconds = warm if step < WARM else full
            for micro in range(1, 5):
                shown = Progress(stage="harden", step=step, total=STEPS, micro_step=micro,
                                 micro_total=4)  # fmt: skip
                self.report(shown, 0.9 * seconds / 4)
            done = Progress(stage="harden", step=step + 1, total=STEPS, values={"harm": 0.1})
            self.report(done, 0.1 * seconds)
            if (step + 1) % EVERY == 0:
                self.preview(preview)
        return self

    def known(self, since):
        """(seconds left as told, in truth) from the end of the first unit of the last kind on."""
        found = [(left, self.now - now) for _, left, now, _ in self.told]
        return found[since:]


def played(**costs):
    return Played(JobTime(PLAN, SETS, every=EVERY)).play(**costs)


COSTS = {
    "steps against users cost most": {"a_pass": 0.05, "preview": 20.0, "warm": 6.0, "full": 90.0},
    "previews cost most": {"a_pass": 0.02, "preview": 120.0, "warm": 4.0, "full": 15.0},
    "drawing costs most": {"a_pass": 1.0, "preview": 10.0, "warm": 2.0, "full": 4.0},
}


@pytest.mark.parametrize("costs", COSTS.values(), ids=COSTS)
def test_unequal_stages_are_told_within_15_percent_once_each_was_measured(costs):
    job = played(**costs)
    first = next(i for i, (kind, *_) in enumerate(job.told) if kind == RESIST)
    told = job.known(first + 4)  # that step is over
    assert len(told) > 50
    for left, truth in told:
        assert left == pytest.approx(truth, rel=0.15, abs=0.5)
    for (before, _), (after, _) in pairwise(told):
        assert after <= 1.1 * before + 1e-6


def test_at_the_pace_of_the_passes_the_time_left_never_rises_and_the_bar_is_the_clock():
    passes = {kind: work.passes for kind, work in JobTime(PLAN, SETS, every=EVERY).work.items()}
    job = played(
        a_pass=0.1, preview=0.1 * passes[PREVIEW], warm=0.1 * passes[UNLEARN],
        full=0.1 * passes[RESIST], setup=0.0,
    )  # fmt: skip
    told = [(left, job.now - now) for _, left, now, _ in job.told if left is not None]
    assert len(told) > 150
    for (before, _), (after, _) in pairwise(told):
        assert after <= 1.1 * before + 1e-6
    assert all(left == pytest.approx(truth, rel=0.15, abs=0.5) for left, truth in told[5:])
    for _, left, now, share in job.told[20:]:
        assert left is not None and share == pytest.approx(now / job.now, abs=0.05)


@pytest.mark.parametrize("costs", COSTS.values(), ids=COSTS)
def test_the_bar_never_goes_back_and_holds_the_last_step_and_the_last_preview(costs):
    job = played(**costs)
    shares = [share for *_, share in job.told]
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1.0, abs=1e-6)
    last = costs["preview"] / job.now
    at_19 = [share for _, _, now, share in job.told if now < job.now - costs["preview"] - 0.2]
    assert at_19[-1] < 1 - last / 4, "there is room for what is left"


def test_a_picture_counts_with_the_passes_of_its_set():
    job = Played(JobTime(PLAN, SETS, every=EVERY))
    job.draw("forget set of weapons", SETS[0], 0.1)
    passes = [2 * one.images * one.sampling_steps for one in SETS]
    assert job.job.work[DRAW].done == pytest.approx(24 * passes[0] / sum(passes))


def test_pictures_that_are_read_are_measured_while_they_last():
    job = JobTime(PLAN, SETS)
    for micro in range(1, 11):
        drawn = Progress(stage="synthesising", step=0, total=8, micro_step=micro, micro_total=10)
        alone = job(drawn, 10.0 * micro)
    assert job(Progress(stage="encoding", step=1, total=11), 101.0) == pytest.approx(alone)
    left = job(Progress(stage="encoding", step=6, total=11), 126.0)
    assert left == pytest.approx(alone + 25.0)
