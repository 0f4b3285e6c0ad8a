"""Makes operations on tensors without memory allocate as they would on a GPU.

The meta device has neither fused attention nor autocast. Inside `as_on_gpu`, and for tensors of the
meta device alone,

- attention keeps q, k, v, the result and one float32 per query and head for its backward pass, as
  flash and memory-efficient kernels do, and never the matrix of weights; where only the math kernel
  is allowed (exact Hessian products) that one runs, with its matrices;
- with a half type, operands are cast by the rules of CUDA's autocast: those of linear layers and
  convolutions to the half type, those of norms to float32.

The functions that layers call are replaced rather than intercepted by a mode of PyTorch's: the
passes that gradient checkpointing computes again inside a backward pass run outside of modes.
Source: https://docs.pytorch.org/docs/stable/amp.html, "CUDA Op-Specific Behavior".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Function = Callable[..., Any]
_TO_HALF = ("linear", "conv2d")
_TO_FLOAT = ("group_norm", "layer_norm")


@contextmanager
def as_on_gpu(half: torch.dtype | None = None) -> Iterator[None]:
    """Around all of the work. half: the type that autocast casts to; None for no autocast."""
    attention = functional.scaled_dot_product_attention
    replaced: dict[str, Function] = {"scaled_dot_product_attention": _attention(attention, half)}
    if half is not None:
        for names, dtype in ((_TO_HALF, half), (_TO_FLOAT, torch.float32)):
            replaced |= {name: _casting(getattr(functional, name), dtype) for name in names}
    originals = {name: getattr(functional, name) for name in replaced}
    try:
        for name, function in replaced.items():
            setattr(functional, name, function)
        yield
    finally:
        for name, function in originals.items():
            setattr(functional, name, function)


class FusedAttention(torch.autograd.Function):
    """The memory of a fused kernel; q, k, v: [batch, heads, tokens, width]. No values."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def _attention(original: Function, half: torch.dtype | None) -> Function:
    def attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if query.device.type != "meta":
            return original(query, key, value, *args, **kwargs)
        if half is not None:
            query, key, value = (_cast(part, half) for part in (query, key, value))
        if torch.backends.cuda.flash_sdp_enabled():  # off inside sdpa_kernel(MATH)
            return FusedAttention.apply(query, key, value)  # type: ignore[return-value]
        return original(query, key, value, *args, **kwargs)

    return attention


def _casting(original: Function, dtype: torch.dtype) -> Function:
    def casting(*args: Any, **kwargs: Any) -> Any:
        cast_args = [_cast(value, dtype) for value in args]
        return original(*cast_args, **{name: _cast(v, dtype) for name, v in kwargs.items()})

    return casting


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor) and value.device.type == "meta" and value.is_floating_point():
        return value.to(dtype)
    return value
