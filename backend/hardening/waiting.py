"""AdamW whose moments wait in main memory, where gradients are added up too.

Training all weights takes four numbers for each weight: itself, its gradient and two moments. Here
the device holds the first alone. A gradient leaves it as soon as it is found, and each tensor's
gradient and moments come back for that tensor's update. The idea is that of Ren et al.,
ZeRO-Offload, arXiv:2101.06840, who also compute the update on the CPU.

On tensors without memory, with which the peak of the device is predicted, nothing is moved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")


class WaitingAdamW(torch.optim.Optimizer):
    """AdamW of `torch.optim` for each parameter by itself, which gives the same numbers.

    options: those of `torch.optim.AdamW`.
    """

    def __init__(self, parameters: Sequence[Tensor], options: dict[str, Any]) -> None:
        super().__init__(parameters, options)
        self._each = [torch.optim.AdamW([tensor], **options) for tensor in parameters]
        self._gradients: list[Tensor] = []

    @contextmanager
    def gathering(self) -> Iterator[list[Tensor]]:
        """Add up all gradients found inside, [parameters], in main memory; they start at zero.

        The same tensors are used again the next time.
        """
        parameters = self._parameters()
        if not self._gradients:
            self._gradients = [_aside(tensor) for tensor in parameters]
        for gradient in self._gradients:
            gradient.zero_()
        with ExitStack() as hooks:
            for tensor, gradient in zip(parameters, self._gradients, strict=True):
                handle = tensor.register_post_accumulate_grad_hook(_mover(gradient))
                hooks.callback(handle.remove)
            yield self._gradients

    @torch.no_grad()
    def update(self, gradients: Sequence[Tensor], learning_rate: float) -> None:
        """Take a step along gradients that wait in main memory."""
        for tensor, gradient, one in zip(self._parameters(), gradients, self._each, strict=True):
            one.param_groups[0]["lr"] = learning_rate
            if tensor.is_meta:
                tensor.grad = torch.zeros_like(tensor)
                one.step()
                one.state.clear()
            else:
                self._step(one, tensor, gradient)
            tensor.grad = None

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        raise TypeError("gradients wait in main memory: call update")

    def _step(self, one: torch.optim.Optimizer, tensor: Tensor, gradient: Tensor) -> None:
        waiting = self.state[tensor]
        begun = bool(waiting)
        if begun:
            one.state[tensor] = {name: part.to(tensor.device) for name, part in waiting.items()}
        tensor.grad = gradient.to(tensor.device)
        one.step()
        state = one.state.pop(tensor)
        for name in MOMENTS:
            if begun:
                waiting[name].copy_(state[name])
            else:
                waiting[name] = state[name].cpu()
        waiting["step"] = state["step"]

    def _parameters(self) -> list[Tensor]:
        return self.param_groups[0]["params"]


def _aside(tensor: Tensor) -> Tensor:
    """Make room in main memory for a gradient; a tensor without memory needs none."""
    return torch.zeros(()) if tensor.is_meta else torch.zeros_like(tensor, device="cpu")


def _mover(gradient: Tensor) -> Callable[[Tensor], None]:
    def move(tensor: Tensor) -> None:
        if tensor.grad is not None and not tensor.is_meta:
            gradient.add_(tensor.grad.to(gradient.device))
        tensor.grad = None

    return move
