"""A stand-in for bitsandbytes' 8-bit AdamW, with its states and none of its speed."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import torch

BLOCK = 256


class AdamW8bit(torch.optim.Optimizer):
    """Moments in a byte a number with a scale a block, both for tensors of 4,096 numbers and more.

    Names and shapes of the states, and `init_state`, are those of bitsandbytes 0.46 to 0.50.
    """

    def __init__(self, params: Any, lr: float = 1e-3, betas: Any = (0.9, 0.999),
                 weight_decay: float = 0.0) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def init_state(self, group: Any, p: torch.Tensor, gindex: int, pindex: int) -> None:
        state = self.state[p]
        state["step"] = 0
        large = p.numel() >= 4096
        for part in "12":
            state[f"state{part}"] = torch.zeros_like(p, dtype=torch.uint8 if large else p.dtype)
            if large:
                state[f"absmax{part}"] = torch.zeros(-(-p.numel() // BLOCK))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for index, p in enumerate(group["params"]):
                if p.grad is not None:
                    if not self.state[p]:
                        self.init_state(group, p, 0, index)
                    self._update(group, p)

    def _update(self, group: Any, p: torch.Tensor) -> None:
        state, moments = self.state[p], []
        state["step"] += 1
        given = (p.grad, p.grad.square())
        for part, beta, value in zip("12", group["betas"], given, strict=True):
            moment = _wide(state, part).lerp(value, 1 - beta)
            moments.append(moment / (1 - beta ** state["step"]))
            _keep(state, part, moment)
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.sub_(group["lr"] * moments[0] / (moments[1].sqrt() + 1e-8))


def _blocks(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.reshape(-1)
    return torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)


def _wide(state: dict[str, Any], part: str) -> torch.Tensor:
    kept = state[f"state{part}"]
    if f"absmax{part}" not in state:
        return kept
    levels = _blocks(kept).float()
    levels = (levels / 255) ** 4 if part == "2" else (levels - 128) / 127
    wide = levels * state[f"absmax{part}"][:, None]
    return wide.reshape(-1)[: kept.numel()].view_as(kept)


def _keep(state: dict[str, Any], part: str, moment: torch.Tensor) -> None:
    if f"absmax{part}" not in state:
        state[f"state{part}"] = moment
        return
    blocks = _blocks(moment)
    scale = blocks.abs().amax(1)
    state[f"absmax{part}"] = scale
    shares = blocks / scale.clamp(min=1e-30)[:, None]
    levels = shares**0.25 * 255 if part == "2" else shares * 127 + 128
    state[f"state{part}"] = (
        levels.round().to(torch.uint8).reshape(-1)[: moment.numel()].view_as(moment)
    )


def install(monkeypatch: Any) -> None:
    """Let `import bitsandbytes` find this stand-in."""
    fake = SimpleNamespace(optim=SimpleNamespace(AdamW8bit=AdamW8bit), __version__="fake")
    monkeypatch.setitem(sys.modules, "bitsandbytes", fake)
