"""Words and tables for a prediction of memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ..numerics.byte_sizes import format_bytes
from ..plan.methods import changes_all_weights
from .prediction import MemoryPlan

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
    "distil.teacher": "the frozen original's predictions round a little",
    "distil.teacher_waits": "a little slower, the same result",
    "distil.optimiser": "moments that wait are exact",
    "distil.optimiser_waits": "slower, the same result; 20 bytes of main memory for each weight",
    "precision": "rounds more; quicker on most GPUs",
    "quantization": "the adapter is found beside rounded weights; slower; needs bitsandbytes",
}


def sentence(found: MemoryPlan, pixels: int) -> str:
    at_encoding = found.encoding == found.peak
    encoding = f", or {format_bytes(found.encoding)} while encoding" if at_encoding else ""
    return (
        f"about {format_bytes(found.total)} at {pixels} px: weights {format_bytes(found.weights)}, "
        f"adapter and its training state {format_bytes(found.state)}, "
        f"activations {format_bytes(found.activations)}{encoding}"
        f", margin {format_bytes(found.margin)} (predicted, not measured on a GPU)"
    )


def traded(found: MemoryPlan) -> Iterator[str]:
    """Say whether it fits, and each change with its cost."""
    assert found.budget is not None
    room = format_bytes(found.budget)
    if not found.fits:
        hint = (
            "lower resolution, or take a preset that trains an adapter, such as balanced"
            if changes_all_weights(found.plan)
            else 'lower resolution or adapter.rank, or use simulate = "shared"'
        )
        yield (
            f"nothing fits {room}: the smallest setting still needs {format_bytes(found.total)}; "
            + hint
        )
    elif not found.changes:
        yield f"fits {room} as it is"
    else:
        yield f"fits {room} in {format_bytes(found.total)} with these changes:"
    for name, value in found.changes.items():
        yield f"{name} = {json.dumps(value)}: {_COST[name]}"


def rows(asked: Mapping[str, int], found: Mapping[str, int]) -> list[tuple[str, ...]]:
    """(part, as asked, with the changes) of two `MemoryPlan.parts`; one column where they agree."""
    same = asked == found
    return [
        (label, format_bytes(asked[name]), *(() if same else (format_bytes(found[name]),)))
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
