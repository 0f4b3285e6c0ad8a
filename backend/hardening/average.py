"""An exponential moving average of all weights, a ← d a + (1 − d) w, in float32.

It begins as the weights after the first step, as `torch.optim.swa_utils.AveragedModel` does.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Average:
    """The average of some weights by name, on their device. decay: d."""

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.values = {name: tensor.detach().clone() for name, tensor in weights.items()}

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor], step: int) -> None:
        """Take the weights after step `step`, from 1."""
        values, now = list(self.values.values()), [weights[name].detach() for name in self.values]
        torch._foreach_lerp_(values, now, 1.0 if step == 1 else 1 - self.decay)

    @torch.no_grad()
    def restore(self, values: Mapping[str, Tensor]) -> None:
        for name, tensor in self.values.items():
            tensor.copy_(values[name])
