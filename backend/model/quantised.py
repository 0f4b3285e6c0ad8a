"""A frozen denoiser whose linear layers are rounded to 8 or 4 bits while adapters are trained.

`int8`: W ≈ s·Q / 127 with Q in int8 and s the largest |w| of each row (Dettmers et al.,
arXiv:2208.07339, without its rounding of activations). `nf4`: 16 levels for blocks of 64 weights,
each with its largest |w| (Dettmers et al., QLoRA, arXiv:2305.14314). Packing and unpacking are
bitsandbytes'; a layer unpacks its weight for each product, and again in the backward pass.

bitsandbytes' own layers are not used. Its 8-bit product rounds the inputs to int8 as well (its
gradient is then not a smooth function of θ, which finite differences need), and keeps the inputs of
frozen layers for the backward pass; for both kinds the kernel depends on training mode and device.
Here forward, backward and second derivatives all see one and the same linear map.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import ConfigError
from ..plan.quantization import Quantization
from .model import Model

BLOCK = 64  # weights that share a scale in nf4
INSTALL = 'pip install "bitsandbytes>=0.46"'


class QuantisedLinear(nn.Linear):
    """y = x Wᵀ + b with W packed. Passes for a linear layer everywhere, also in PEFT.

    weight: int8 [out, in], or two weights a byte in uint8 [⌈out · in / 2⌉, 1]. scales: float32,
    one a row or one a block. Both are parameters, so that whoever counts or fingerprints a
    network's parameters sees them; they never require a gradient.
    """

    def __init__(self, layer: nn.Linear, kind: Quantization, device: torch.device) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.kind: Quantization = kind
        self.unpacked_type = layer.weight.dtype
        true = layer.weight.detach().to(device)
        packed, scales, self._state = (
            _meta_packed(true, kind) if true.is_meta else _packed(true, kind)
        )
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)
        bias = layer.bias
        # A copy: layers may cast their bias in place, and the true one is to stay as it is.
        self.bias = (
            None if bias is None else nn.Parameter(bias.detach().to(device, copy=True), False)
        )
        self.eval()

    def true_weight(self) -> Tensor:
        """Return the quantised W, [out, in], in its original type."""
        if self.weight.is_meta:
            shape = self.out_features, self.in_features
            return self.scales.new_empty(shape, dtype=self.unpacked_type)
        functions = import_module("bitsandbytes.functional")
        if self.kind == "int8":
            unpacked = functions.int8_vectorwise_dequant(self.weight, self.scales)
            return unpacked.to(self.unpacked_type)
        return functions.dequantize_4bit(self.weight.detach(), self._state)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (its name in nn.Linear)
        return _Product.apply(input, self)  # type: ignore[return-value]


class _Product(torch.autograd.Function):
    """Compute x Wᵀ + b; only the packed layer itself is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantisedLinear) -> Tensor:
        ctx.layer, ctx.type = layer, x.dtype
        return functional.linear(x, layer.true_weight(), layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients  # under autocast of another type than W
        return (gradient @ ctx.layer.true_weight().to(gradient.dtype)).to(ctx.type), None


@contextmanager
def quantised(model: Model, kind: Quantization) -> Iterator[None]:
    """Quantise the denoiser's linear layers; on leaving, restore the true ones bit for bit.

    The true weights wait in main memory. Convolutions and norms stay as they are. Inside another
    such block this one does nothing.

    Raises:
        ConfigError: bitsandbytes is not installed, or does not support the model's device.
    """
    if kind == "none" or is_quantised(model.denoiser):
        yield
        return
    device, unet = model.device, model.denoiser
    if device.type != "meta":
        check_bitsandbytes(kind, device)
    true = {name: part for name, part in unet.named_modules() if isinstance(part, nn.Linear)}
    homes = {name: layer.weight.device for name, layer in true.items()}
    try:
        for name, layer in true.items():
            _put(unet, name, QuantisedLinear(layer, kind, device))
            if homes[name].type != "meta":
                layer.to("cpu")
        yield
    finally:
        for name, layer in true.items():
            _put(unet, name, layer.to(homes[name]))


def is_quantised(network: nn.Module) -> bool:
    return any(isinstance(part, QuantisedLinear) for part in network.modules())


def check_bitsandbytes(kind: Quantization, device: torch.device | str) -> None:
    """Raise unless bitsandbytes is installed and packs and unpacks on this device."""
    if kind == "none":
        return
    who = f"plan: quantization is {kind!r}"
    try:
        version = import_module("bitsandbytes").__version__
    except ImportError as error:
        raise ConfigError(
            f"{who}, which needs bitsandbytes ({error}): {INSTALL}, or set quantization to 'none'"
        ) from error
    try:
        layer = nn.Linear(BLOCK, 2, bias=False, device=device)
        with torch.no_grad():
            QuantisedLinear(layer, kind, layer.weight.device).true_weight()
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        raise ConfigError(
            f"{who}, which bitsandbytes {version} cannot do on {device} ({error}): {INSTALL}, or "
            "set quantization to 'none'"
        ) from error


def _packed(weight: Tensor, kind: Quantization) -> tuple[Tensor, Tensor, Any]:
    """Return Q, scales, and the state that bitsandbytes needs for unpacking."""
    functions = import_module("bitsandbytes.functional")
    if kind == "int8":
        # Its kernels read fp16; no network has weights beyond that range.
        packed, scales, _ = functions.int8_vectorwise_quant(weight.half())
        return packed, scales, None
    packed, state = functions.quantize_4bit(
        weight.contiguous(), blocksize=BLOCK, compress_statistics=False, quant_type="nf4"
    )
    return packed, state.absmax, state


def _meta_packed(weight: Tensor, kind: Quantization) -> tuple[Tensor, Tensor, None]:
    """Build a packed layer of the right shapes on the meta device, without bitsandbytes."""
    count = weight.numel()
    if kind == "int8":
        scales = weight.new_empty(len(weight), dtype=torch.float32)
        return torch.empty_like(weight, dtype=torch.int8), scales, None
    packed = weight.new_empty((count + 1) // 2, 1, dtype=torch.uint8)
    return packed, weight.new_empty(-(-count // BLOCK), dtype=torch.float32), None


def _put(network: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, layer)
