"""Forward passes of a denoiser in a plan's precision, and what all trained denoisers offer."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ..families.base.conditioning import Conditioning
from ..plan.kernels import Precision

if TYPE_CHECKING:
    from ..model.model import Model
    from .dense import AnyAdapter

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Trained(Protocol):
    """A model's denoiser with the θ that a run changes: an adapter on it, or its own weights.

    theta: the parameters of θ by name, in float32 on the model's device.
    loss_scale: factor that keeps gradients of half precision from vanishing.
    """

    model: Model
    theta: dict[str, Tensor]
    loss_scale: float

    def __call__(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor: ...

    def frozen(self) -> AbstractContextManager[object]:
        """Predict as the original model does, without a graph."""
        ...

    def training(self, checkpointing: bool) -> None: ...

    def adapter(self) -> AnyAdapter:
        """Copy the change of the whole run so far to a value on the CPU."""
        ...

    def close(self) -> None:
        """Give the original network back."""
        ...

    def __enter__(self) -> Trained: ...

    def __exit__(self, *_: object) -> None: ...


def loss_scale(precision: Precision) -> float:
    return 1024.0 if precision == "fp16" else 1.0


def mixed(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Cast operations as the precision asks for, the weights staying as they are."""
    half = _AUTOCAST.get(precision)
    if half is None or device.type == "meta":  # which has no autocast
        return nullcontext()
    return torch.autocast(device.type, half)


def wide(predicted: Tensor) -> Tensor:
    """Return a prediction in float32 or wider."""
    return predicted.to(torch.promote_types(predicted.dtype, torch.float32))


def recompute_activations(denoiser: Any, checkpointing: bool) -> None:
    """Set whether activations are recomputed in the backward pass: less memory, more time."""
    if checkpointing:
        denoiser.enable_gradient_checkpointing()
        denoiser.train()  # diffusers checkpoints in training mode only
    else:
        denoiser.disable_gradient_checkpointing()
        denoiser.eval()
