"""One run on several processes: the interface of a rank, and the single process.

Rank 0 is the first; only it holds the run folder, prints and shows progress. Work is split into
tasks whose results all ranks receive in the order of the tasks, so that sums come out as in one
process. `ProcessGroup` (process_group.py) is a rank among several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..progress import ProgressCallback

T = TypeVar("T")
Classes = Sequence[type]  # the dataclasses that occur in a value that is sent


class Ranks(Protocol):
    """A process of a run, and its connection to the others. Leave its context to end it."""

    rank: int
    count: int

    @property
    def first(self) -> bool: ...

    def place(self, device: str) -> str:
        """Return the device of this rank for a plan's `device`."""
        ...

    def share(self, value: T, classes: Classes = ()) -> T:
        """Return the first rank's `value` on all ranks; tensors arrive on the CPU."""
        ...

    def spread(
        self,
        tasks: Sequence[tuple[float, Callable[[], Any]]],
        classes: Classes = (),
        device: torch.device | str = "cpu",
    ) -> Iterator[Any]:
        """Return the results of all tasks in their order; one rank does each task.

        tasks: (cost, function) each; costs relative to one another, the same on all ranks.
        device: where this rank wants the results' tensors.
        """
        ...

    def claims(self, items: Sequence[T]) -> Iterator[T]:
        """Yield the items that this rank is to do; it claims the next when one is done."""
        ...

    def send(self, value: Any) -> None:
        """Send a value to the first rank, which finds it in `received`."""
        ...

    def received(self, classes: Classes = ()) -> list[Any]:
        """Return, on the first rank, what was sent to it since the last call."""
        ...

    def wait_until(self, done: Callable[[], bool]) -> None:
        """Ask `done` again and again until it is true, while other ranks send."""
        ...

    def adopt(self, tensors: Iterable[Tensor]) -> None:
        """Write the first rank's values into `tensors`, in place."""
        ...

    def require_same(self, text: str, what: str) -> None:
        """Raise a ConfigError that names `what` unless all ranks bring the same text."""
        ...

    def check(self) -> None:
        """Raise what another rank ended with, or that it died."""
        ...

    def watching(self, on_progress: ProgressCallback) -> ProgressCallback:
        """Wrap a progress callback: only the first rank reports, and every rank checks others."""
        ...

    def died(self) -> str:
        """Return a sentence on ranks that died; empty where all live or ended properly."""
        ...

    def __enter__(self) -> Ranks: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class SingleProcess:
    """Single-process implementation of `Ranks`: every operation is local, nothing waits."""

    rank = 0
    count = 1
    first = True

    def place(self, device: str) -> str:
        return device

    def share(self, value: T, classes: Classes = ()) -> T:
        return value

    def spread(
        self,
        tasks: Sequence[tuple[float, Callable[[], Any]]],
        classes: Classes = (),
        device: torch.device | str = "cpu",
    ) -> Iterator[Any]:
        return (work() for _, work in tasks)

    def claims(self, items: Sequence[T]) -> Iterator[T]:
        return iter(items)

    def send(self, value: Any) -> None:
        raise NotImplementedError("a single process has no other rank to send to")

    def received(self, classes: Classes = ()) -> list[Any]:
        return []

    def wait_until(self, done: Callable[[], bool]) -> None:
        pass

    def adopt(self, tensors: Iterable[Tensor]) -> None:
        pass

    def require_same(self, text: str, what: str) -> None:
        pass

    def check(self) -> None:
        pass

    def watching(self, on_progress: ProgressCallback) -> ProgressCallback:
        return on_progress

    def died(self) -> str:
        return ""

    def __enter__(self) -> SingleProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


ALONE: Ranks = SingleProcess()


def assign(costs: Sequence[float], ranks: int) -> list[int]:
    """Return the rank of each task: the dearest first, each to the rank with least to do."""
    load = [0.0] * ranks
    found = [0] * len(costs)
    for task in sorted(range(len(costs)), key=lambda task: (-costs[task], task)):
        found[task] = min(range(ranks), key=lambda rank: (load[rank], rank))
        load[found[task]] += costs[task]
    return found
