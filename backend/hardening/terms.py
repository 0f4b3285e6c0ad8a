"""The pieces that an outer step is made of: tasks to compute, and the terms that they result in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from ..bilevel.hypergradient import Hypergradient, LossAfter
from ..bilevel.inner_loop import InnerRun
from ..bilevel.simulate import SimulatedUser
from ..bilevel.solvers import Solution
from ..plan.fine_tune import FineTuneConfig


@dataclass(frozen=True, slots=True)
class Term:
    """A loss of the objective F: it adds weight · gradient to ∇F.

    gradient: in the order of θ. user: whose θ* the loss is taken at; None at θ itself.
    """

    name: str
    weight: float
    value: Tensor
    gradient: tuple[Tensor, ...]
    user: SimulatedUser | None = None


# The dataclasses in a term: another process must know them to receive one.
TERM_CLASSES = (Term, SimulatedUser, FineTuneConfig, InnerRun, Hypergradient, Solution)


def term_after(user: SimulatedUser, weight: float) -> Term:
    """Build the term at a user's θ*. The gradient moves into it, so that it is sent only once."""
    result = user.result
    return Term(
        f"harm after {user.fine_tune.name}", weight, result.harm_after,
        tuple(result.tensors.values()), replace(user, result=replace(result, tensors={})),
    )  # fmt: skip


class Task(NamedTuple):
    """Independent work of an outer step; its cost is relative to the other tasks of the step."""

    cost: float
    work: Callable[[], list[Term]]


class Group(NamedTuple):
    """Users of a step who are simulated together."""

    cost: float
    simulate: Callable[[LossAfter], list[SimulatedUser]]


Compute = Callable[[Sequence[Task]], Iterable[list[Term]]]  # results in the order of the tasks


def in_order(tasks: Sequence[Task]) -> Iterable[list[Term]]:
    """Compute the tasks one after the other."""
    return (task.work() for task in tasks)
