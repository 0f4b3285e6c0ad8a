"""Shared by the training loops: an update of the weights, and the state of an interrupted run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from world import Average


def update(loss: Tensor, optimizer: torch.optim.Optimizer, average: Average | None = None) -> None:
    """Take one step down the loss, gradients clipped to norm 1, and follow with the average."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()
    if average is not None:
        average.update()


class Resumable:
    """State of a run in a file. key: the name under which the network's weights stand in it."""

    def __init__(
        self,
        path: Path,
        key: str,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: Average,
    ) -> None:
        self.path, self.key = path, key
        self.network, self.optimizer, self.average = network, optimizer, average

    def load(self) -> tuple[int, float]:
        """Restore the state; returns the steps and seconds so far, zero without a file."""
        if not self.path.exists():
            return 0, 0.0
        state = torch.load(self.path)
        self.network.load_state_dict(state[self.key])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.values, self.average.steps = state["average"], state["step"]
        return state["step"], state["elapsed"]

    def save(self, step: int, elapsed: float) -> None:
        state = {self.key: self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"average": self.average.values, "step": step, "elapsed": elapsed}
        torch.save(state, self.path)
