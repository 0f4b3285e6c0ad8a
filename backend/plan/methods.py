"""Facts about each hardening method that plans, checks, cards and reports need."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .stages import HardeningMethod

DISTILLATION = "distillation"


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodFacts:
    """words: its name in cards and reports. simulates_users: it hardens against fine-tuning.
    single_step: it has one outer step. needs_weights: it computes with the denoiser's own weights,
    which a quantised base does not have. dense: it changes the denoiser's own weights, not a
    low-rank adapter. erases: it takes directions out of layers. distils: it trains towards the
    original. edits_cross_attention: it changes
    keys and values of a cross-attention to the text, and nothing else. loss: what cards call its
    loss on the concepts, if it is not the plan's `harm.loss`. doing: what a running stage says.
    """

    words: str
    doing: str
    simulates_users: bool = False
    single_step: bool = False
    needs_weights: bool = False
    dense: bool = False
    erases: bool = False
    distils: bool = False
    edits_cross_attention: bool = False
    loss: str = ""

    @property
    def lasts(self) -> bool:
        """True if its result is meant to outlast later fine-tuning."""
        return self.simulates_users or self.erases


_SHORTEST = 40  # outer steps; `quick` takes 20 to show that everything works, `paper` 160
FACTS: dict[HardeningMethod, MethodFacts] = {
    "resalign": MethodFacts(
        words="ResAlign (Li et al., arXiv:2507.16302)", simulates_users=True,
        doing="unlearning against simulated fine-tuning",
    ),
    "redirect": MethodFacts(
        words="redirection (ESD-like)", doing="training towards harmless pictures"
    ),
    "project": MethodFacts(
        words="projected update (PGU-like)", doing="unlearning beside what must stay"
    ),
    "closed_form": MethodFacts(
        words="closed-form edit (UCE-like)", single_step=True, needs_weights=True,
        edits_cross_attention=True, doing="editing the cross-attention",
    ),
    "erase": MethodFacts(
        words="erasure of the concepts' directions", single_step=True, needs_weights=True,
        dense=True, erases=True, doing="erasing the concepts from all weights",
    ),
    "distil": MethodFacts(
        words="distillation of all weights", needs_weights=True, dense=True, distils=True,
        loss=DISTILLATION, doing="training back to the original",
    ),
}  # fmt: skip


_OTHER_ERASURES = {
    "random": "erasure of random directions (a control)",
    "shrink": "shrinking and noise on all weights (UNDO-like)",
    "fisher": "resets of weights by Fisher ratio",
}


def simulates_users(plan: Any) -> bool:
    """True where a HardeningPlan's own method fine-tunes simulated users."""
    return FACTS[plan.method].simulates_users and bool(plan.fine_tunes)


def is_test_run(plan: Any) -> bool:
    """Return whether a run against simulated users is too short to move a full-size model."""
    return simulates_users(plan) and plan.outer_steps < _SHORTEST


TEST_RUN = "a test run, which shows that everything works: it is not safe to publish"
_IN_METHOD = re.compile(r": test run of \d+ steps?")
_NO_USERS = "none"  # `simulate` in the header of a file that was hardened without users


def of_test_run(steps: int) -> str:
    """Return what a report adds to the words of a method that a test run applied."""
    return f": test run of {steps} step{'s' * (steps != 1)}"


def without_test_run(method: str) -> str:
    """Return a method's words without those of `of_test_run`."""
    return _IN_METHOD.sub("", method)


def names_test_run(method: str) -> bool:
    """Return whether a method in a report has the words of `of_test_run`."""
    return _IN_METHOD.search(method) is not None


def steps_of_test_run(training: Any) -> int:
    """Return the outer steps of a file's hardening if it was a test run, else 0.

    training: of the file's header, as `Provenance` has it.
    """
    if not isinstance(training, Mapping):
        return 0
    steps = training.get("steps")
    simulated = training.get("simulate", _NO_USERS) != _NO_USERS
    return steps if simulated and isinstance(steps, int) and steps < _SHORTEST else 0


def methods_of(plan: Any) -> tuple[HardeningMethod, ...]:
    """Return the methods of a HardeningPlan's stages and its own, in order."""
    return (*(stage.method for stage in plan.before), plan.method)


def changes_all_weights(plan: Any) -> bool:
    """Return whether a HardeningPlan's method, or a stage before it, changes all weights."""
    return any(FACTS[method].dense for method in methods_of(plan))


def method_in_words(plan: Any) -> str:
    """Name what a HardeningPlan's own method does: without simulated users ResAlign unlearns."""
    if plan.method == "erase" and plan.erase.how in _OTHER_ERASURES:
        return _OTHER_ERASURES[plan.erase.how]
    plain = FACTS[plan.method].simulates_users and not plan.fine_tunes
    return "plain unlearning" if plain else FACTS[plan.method].words


def misfit(method: HardeningMethod, family: str, no_cross_attention: str) -> str:
    """Say why a method makes no sense for a family, by its title; empty where it does.

    no_cross_attention: why the family has no cross-attention to the text; empty where it has one.
    """
    if not (no_cross_attention and FACTS[method].edits_cross_attention):
        return ""
    return (
        f"method {method} does not fit {family}: it edits keys and values of a cross-attention to "
        f"the text, which this network does not have: {no_cross_attention}"
    )
