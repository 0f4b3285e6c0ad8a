"""The denoiser whose own weights are θ: all of them are trained in place, and restored afterwards.

An adapter can be switched off, so that one network is both the hardened and the original model.
Weights that are trained themselves cannot: the original's predictions come from a frozen copy,
which is made when it is first asked for and may be of half precision.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..families.base.conditioning import Conditioning
from ..model.model import Model
from ..model.quantised import is_quantised
from ..plan.kernels import Precision
from .dense import AnyAdapter, DenseAdapter, nonzero
from .passes import loss_scale, mixed, recompute_activations, wide

TEACHER_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class DenseDenoiser:
    """A model's denoiser with all its weights as θ. Close it (or use `with`) to restore them.

    theta: every parameter of the network by its own name, float32 on the model's device.
    earlier: what stages before this one changed; θ starts with it added to the weights.
    teacher: type of the frozen copy's weights. waits: it is on the device only while it predicts.
    """

    def __init__(
        self,
        model: Model,
        *,
        precision: Precision = "fp32",
        teacher: Precision = "fp32",
        waits: bool = False,
        earlier: AnyAdapter | None = None,
    ) -> None:
        _check(model.denoiser)
        self.model = model
        self.loss_scale = loss_scale(precision)
        self._precision: Precision = precision
        self._teacher_type: Precision = teacher
        self._teacher: Any = None
        self._waits = waits
        self._frozen = False
        self.theta: dict[str, Tensor] = dict(model.denoiser.named_parameters())
        self._start = {name: _aside(tensor) for name, tensor in self.theta.items()}
        if earlier is not None:
            self.set({n: self.theta[n] + earlier.change(n).to(self.theta[n].device)
                      for n in earlier.parameters})  # fmt: skip
        for tensor in self.theta.values():
            tensor.requires_grad_(True)

    def __enter__(self) -> DenseDenoiser:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict in float32; shapes as in `Model.denoise`."""
        device = latents.device
        network = self.teacher if self._frozen else self.model.denoiser
        dtype = TEACHER_TYPES[self._teacher_type] if self._frozen else self.model.dtype
        with mixed("fp32" if self._frozen else self._precision, device):
            predicted = self.model.family.denoise(
                network, latents.to(dtype), timesteps, conditioning.to(device, dtype)
            )
        return wide(predicted)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Predict with the frozen copy of the original model, and record no graph."""
        self._frozen = True
        try:
            with torch.no_grad():
                yield
        finally:
            self._frozen = False
            if self._waits and self._teacher is not None:
                # A tensor without memory cannot be moved to main memory: it is made anew.
                meta = self.model.device.type == "meta"
                self._teacher = None if meta else self._teacher.to("cpu")

    @property
    def teacher(self) -> Any:
        """The frozen copy of the original network, made on first use."""
        if self._teacher is None:
            dtype = TEACHER_TYPES[self._teacher_type]
            # Parameters found in the memo are not copied: the copy never exists in full precision.
            memo: dict[int, Any] = {
                id(tensor): nn.Parameter(
                    self._start[name].to(tensor.device, dtype, copy=True), requires_grad=False
                )
                for name, tensor in self.theta.items()
            }
            self._teacher = copy.deepcopy(self.model.denoiser, memo)
            recompute_activations(self._teacher, False)
        elif self._waits:
            self._teacher.to(self.model.device)
        return self._teacher

    @property
    def original(self) -> Mapping[str, Tensor]:
        """The original weights by name, in main memory."""
        return self._start

    def forget_original(self) -> None:
        """Drop the frozen copy; a prediction that needs it makes it anew."""
        self._teacher = None

    def training(self, checkpointing: bool) -> None:
        """Set whether activations are recomputed in the backward pass: less memory, more time."""
        recompute_activations(self.model.denoiser, checkpointing)

    def adapter(self) -> DenseAdapter:
        """Return how θ differs from the original weights; what is equal is left out."""
        return nonzero(
            (name, tensor.detach().cpu().float() - self._start[name].float())
            for name, tensor in self.theta.items()
        )

    @torch.no_grad()
    def set(self, values: Mapping[str, Tensor]) -> None:
        """Write values of some of the parameters in place."""
        for name, value in values.items():
            self.theta[name].copy_(value)

    def close(self) -> None:
        """Restore the original weights bit for bit and drop the frozen copy."""
        self._teacher = None
        for name, tensor in self.theta.items():
            tensor.requires_grad_(False)
            tensor.grad = None
            if not tensor.is_meta:
                with torch.no_grad():
                    tensor.copy_(self._start[name])
        self.training(False)


def _check(denoiser: Any) -> None:
    if is_quantised(denoiser):
        raise ConfigError(
            "this method changes the denoiser's own weights, which are quantised: set the plan's "
            "quantization to 'none'"
        )
    if any(tensor.dtype != torch.float32 for tensor in denoiser.parameters()):
        raise ConfigError(
            "this method trains the denoiser's own weights, which must be in fp32 (its updates are "
            "smaller than half precision resolves): load the checkpoint with dtype=torch.float32; "
            "precision = 'bf16' still computes the passes in half precision"
        )


def _aside(tensor: Tensor) -> Tensor:
    """Copy a weight to main memory; a tensor without memory stands for itself."""
    return tensor.detach() if tensor.is_meta else tensor.detach().to("cpu", copy=True)
