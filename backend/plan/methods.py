"""Facts about each hardening method that plans, checks, cards and reports need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .stages import HardeningMethod


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodFacts:
    """words: its name in cards and reports. simulates_users: it hardens against fine-tuning.
    single_step: it has one outer step. needs_weights: it computes with the denoiser's own weights,
    which a quantised base does not have.
    """

    words: str
    simulates_users: bool = False
    single_step: bool = False
    needs_weights: bool = False


FACTS: dict[HardeningMethod, MethodFacts] = {
    "resalign": MethodFacts(
        words="ResAlign (Li et al., arXiv:2507.16302)", simulates_users=True
    ),
    "redirect": MethodFacts(words="redirection (ESD-like)"),
    "project": MethodFacts(words="projected update (PGU-like)"),
    "closed_form": MethodFacts(
        words="closed-form edit (UCE-like)", single_step=True, needs_weights=True
    ),
}  # fmt: skip


def simulates_users(plan: Any) -> bool:
    """True where a HardeningPlan's own method fine-tunes simulated users."""
    return FACTS[plan.method].simulates_users and bool(plan.fine_tunes)


def method_in_words(plan: Any) -> str:
    """Name what a HardeningPlan's own method does: without simulated users ResAlign unlearns."""
    plain = FACTS[plan.method].simulates_users and not plan.fine_tunes
    return "plain unlearning" if plain else FACTS[plan.method].words
