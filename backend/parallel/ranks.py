"""One run on several processes: what the recipes ask of their rank, and the rank that is alone.

Rank 0 is the first: it alone holds the run folder, prints and draws progress. Work is split into
tasks whose results all ranks get in the order of the tasks, so that sums come out as in one
process. `Together` (together.py) is one of several ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..progress import ProgressCallback

T = TypeVar("T")
Classes = Sequence[type]  # the dataclasses in a value that is sent


class Ranks:
    """The only rank there is: everything is its own, and nobody is waited for."""

    rank = 0
    count = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def place(self, device: str) -> str:
        """The device of this rank, where a plan says `device`."""
        return device

    def share(self, value: T, classes: Classes = ()) -> T:
        """The first rank's `value`, on all ranks; tensors arrive on the CPU."""
        return value

    def spread(
        self,
        tasks: Sequence[tuple[float, Callable[[], Any]]],
        classes: Classes = (),
        device: torch.device | str = "cpu",
    ) -> Iterator[Any]:
        """The results of all tasks in their order; each is done by one rank.

        tasks: (cost, work) each; costs relative to one another, the same on all ranks.
        device: where this rank wants the results' tensors.
        """
        return (work() for _, work in tasks)

    def claims(self, items: Sequence[T]) -> Iterator[T]:
        """Those of `items` that this rank is to do; the next is claimed when one is done."""
        return iter(items)

    def send(self, value: Any) -> None:
        """Give a value to the first rank, which finds it in `received`."""
        raise NotImplementedError("a rank alone has nobody to send to")

    def received(self, classes: Classes = ()) -> list[Any]:
        """On the first rank: what was sent to it since it last asked."""
        return []

    def wait_until(self, done: Callable[[], bool]) -> None:
        """Until `done`, which is asked again and again: for what other ranks send."""

    def adopt(self, tensors: Iterable[Tensor]) -> None:
        """Write the first rank's values into `tensors`, in place."""

    def require_same(self, text: str, what: str) -> None:
        """A ConfigError that names `what` unless all ranks bring the same text."""

    def check(self) -> None:
        """Raises what another rank ended with, or that it died."""

    def watching(self, on_progress: ProgressCallback) -> ProgressCallback:
        """`on_progress` for the first rank, nobody's for others; either looks after the rest."""
        return on_progress

    def died(self) -> str:
        """A sentence on ranks that have died by now; empty where all live or ended properly."""
        return ""

    def __enter__(self) -> Ranks:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


ALONE = Ranks()


def assign(costs: Sequence[float], ranks: int) -> list[int]:
    """The rank of each task: the dearest first, each to the rank with least to do so far."""
    load = [0.0] * ranks
    found = [0] * len(costs)
    for task in sorted(range(len(costs)), key=lambda task: (-costs[task], task)):
        found[task] = min(range(ranks), key=lambda rank: (load[rank], rank))
        load[found[task]] += costs[task]
    return found
