"""Words and tables for a prediction of memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from .prediction import MemoryPlan

GIB = 2**30
PARTS = {  # of `MemoryPlan.parts`, in this order
    "weights": "weights",
    "state": "adapter and its state",
    "activations": "activations",
    "encoding": "while encoding, in all",
    "margin": "margin",
    "total": "peak",
}
_COST = {
    "users_at_once": "slower, the same result to rounding",
    "micro_batch": "a little slower, the same result to rounding",
    "gradient_checkpointing": "about a third more time, the same result to rounding",
    "solver.products": "Hessian products by differences instead of exact ones",
    "precision": "rounds more; quicker on most GPUs",
    "quantization": "the adapter is found beside rounded weights; slower; needs bitsandbytes",
}


def sentence(found: MemoryPlan, pixels: int) -> str:
    return (
        f"about {gib(found.total)} at {pixels} px: weights {gib(found.weights)}, adapter and what "
        f"goes with it {gib(found.state)}, activations {gib(found.activations)}"
        + (f", or {gib(found.encoding)} while encoding" if found.encoding == found.peak else "")
        + f", margin {gib(found.margin)} (predicted, not measured on a GPU)"
    )


def traded(found: MemoryPlan) -> Iterator[str]:
    """Say whether it fits, and each change with its cost."""
    assert found.budget is not None
    room = gib(found.budget)
    if not found.fits:
        yield (
            f"nothing fits {room}: the smallest setting still needs {gib(found.total)}; lower "
            'resolution or adapter.rank, or use simulate = "shared"'
        )
    elif not found.changes:
        yield f"fits {room} as it is"
    else:
        yield f"fits {room} in {gib(found.total)} with these changes:"
    for name, value in found.changes.items():
        yield f"{name} = {json.dumps(value)}: {_COST[name]}"


def rows(asked: Mapping[str, int], found: Mapping[str, int]) -> list[tuple[str, ...]]:
    """(part, as asked, with the changes) of two `MemoryPlan.parts`; one column where they agree."""
    same = asked == found
    return [
        (label, gib(asked[name]), *(() if same else (gib(found[name]),)))
        for name, label in PARTS.items()
    ]


def table(found: MemoryPlan) -> list[str]:
    """Return the rows of a prediction as lines of text."""
    lines = rows(found.asked, found.parts)
    if found.asked != found.parts:
        lines.insert(0, ("", "as it is", "changed"))
    return [f"{label:22}" + "".join(f"{value:>9}" for value in rest) for label, *rest in lines]


def changes_of(changes: Mapping[str, Any]) -> str:
    """`micro_batch = 2, precision = "bf16"`; `as it is` where there are none."""
    said = ", ".join(f"{name} = {json.dumps(value)}" for name, value in changes.items())
    return said or "as it is"


def gib(count: float) -> str:
    return f"{count / GIB:.1f} GiB" if count >= 0.05 * GIB else f"{count / 2**20:.0f} MiB"
