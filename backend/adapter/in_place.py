"""Changes weights of a loaded network in place, and restores them bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# put(weight, value): give a weight this value (cast to its type) until the block is left
Put = Callable[[Tensor, Tensor], None]


@contextmanager
def put_back() -> Iterator[Put]:
    """Yield `put`, which changes weights; on leaving, also by an exception, restore all of them.

    Replaced weights are kept in main memory, each once: the device holds one model.
    """
    before: dict[int, tuple[Tensor, Tensor]] = {}

    def put(weight: Tensor, value: Tensor) -> None:
        if id(weight) not in before:
            before[id(weight)] = weight, weight.detach().to("cpu", copy=True)
        with torch.no_grad():
            weight.copy_(value)

    try:
        yield put
    finally:
        with torch.no_grad():
            for weight, old in before.values():
                weight.copy_(old)
