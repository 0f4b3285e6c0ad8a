"""Says if a job did what it was for, in one sentence: `good`, `doubtful`, or not known yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..plan.methods import FACTS, TEST_RUN, is_test_run
from ..plan.removal import share_removed
from ..probe.verdict import DOUBTFUL, GOOD

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ..plan.hardening import HardeningPlan


def of_run(plan: HardeningPlan, next_step: str, harms: Sequence[float] = ()) -> tuple[str, str]:
    """Return what is said of a finished run, and its verdict: no run shows its own worth.

    next_step: how to measure it, for this front end. harms: harm loss of each outer step.
    """
    steps = f"{plan.outer_steps} step{'s' * (plan.outer_steps > 1)}"
    if is_test_run(plan):
        done = "nothing was removed" if removed_nothing(plan, harms) else "hardened"
        said = (
            "Test run, not safe to publish. It was to show that everything works; "
            f"{done} in {steps}."
        )
        return said, DOUBTFUL
    if removed_nothing(plan, harms):
        return f"nothing was removed in {steps}: take more steps, or another choice", DOUBTFUL
    if FACTS[plan.method].single_step:
        return (
            f"edited in {steps}, which does not show how much was removed; {next_step} before you "
            "publish it",
            "",
        )
    return f"hardened in {steps}; {next_step} before you publish it", ""


def harms_of(records: Iterable[Mapping[str, Any]]) -> list[float]:
    """Return the harm losses of a run's records, without those that were not finite."""
    return [record["harm"] for record in records if isinstance(record.get("harm"), int | float)]


def removed_nothing(plan: HardeningPlan, harms: Sequence[float]) -> bool:
    """Return whether a run's harm losses say that the model knows the concepts as before.

    What may be chance counts as nothing (`plan/removal.py`).
    """
    return share_removed(plan, harms) == 0.0


def of_export(
    plan: HardeningPlan, harms: Sequence[float], *, report: tuple[str, str] | None
) -> tuple[str, str]:
    """Return what is said of a checkpoint that was written from a run, and its verdict.

    report: the verdict of the probe that went into it, and its kind.
    """
    if is_test_run(plan):
        return f"This checkpoint comes from {TEST_RUN}.", DOUBTFUL
    if removed_nothing(plan, harms):
        return (
            "Nothing was removed in its run: by its losses it is the original in effect.",
            DOUBTFUL,
        )
    if report is not None:
        said, kind = report
        return ("", GOOD) if kind == GOOD else (f"Its report: {said}", DOUBTFUL)
    return "Nobody has measured yet whether the concepts return: page Probe.", ""
