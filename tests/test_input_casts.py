"""An adapter takes its input as it is under autocast, and casts it where pictures are drawn."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fakes import random_conditioning, tiny_model
from resalign.backend.adapter.apply import AdaptedDenoiser, _cast_input
from resalign.backend.numerics.torch_compat import autocasts
from resalign.backend.plan.adapter import AdapterConfig


class Casts(TorchDispatchMode):
    """Counts casts from a half to float32."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].dtype == torch.bfloat16:
            self.found[kwargs.get("dtype")] += 1
        return func(*args, **kwargs)


def predicted(denoiser):
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with Casts() as casts, torch.no_grad():
        found = denoiser(latents, torch.tensor([3, 700]), random_conditioning(2))
    return found, casts.found[torch.float32]


def test_inputs_are_not_cast_to_float32_and_back():
    with AdaptedDenoiser(
        tiny_model(dtype=torch.bfloat16), AdapterConfig(), precision="bf16"
    ) as denoiser:
        with torch.no_grad():
            for tensor in denoiser.theta.values():
                tensor.normal_(generator=torch.Generator().manual_seed(tensor.numel()))
        found, casts = predicted(denoiser)
        for layer in denoiser.modules.values():
            del layer._cast_input_dtype  # PEFT's own
        expected, more = predicted(denoiser)
    assert torch.equal(found, expected)
    assert more - casts >= len(denoiser.modules)


def test_pictures_are_drawn_in_half_precision_while_the_adapter_is_on():
    """As previews are, whose sampler knows the model alone."""
    model = tiny_model(dtype=torch.bfloat16)
    latents = torch.randn(2, 4, 8, 8, dtype=torch.bfloat16)
    conditioning = random_conditioning(2).to(model.device, torch.bfloat16)
    with AdaptedDenoiser(model, AdapterConfig(), precision="bf16"), torch.no_grad():
        found = model.denoise(latents, torch.tensor([3, 700]), conditioning)
    with torch.no_grad():
        expected = model.denoise(latents, torch.tensor([3, 700]), conditioning)
    assert torch.equal(found, expected), "it starts as the identity"


@pytest.mark.parametrize("old", [False, True])
def test_autocast_is_seen_by_every_pytorch(monkeypatch, old):
    """Before 2.4 the question takes no type of device, and asks about CUDA."""
    now = torch.is_autocast_enabled
    with torch.autocast("cpu", torch.bfloat16), monkeypatch.context() as patch:
        if old:
            patch.setattr(torch, "is_autocast_enabled", lambda: now("cuda"))
            patch.setattr(torch, "is_autocast_cpu_enabled", lambda: now("cpu"))
        assert autocasts("cpu") and not autocasts("cuda")
    assert not autocasts("cpu") and not autocasts("meta")


def test_a_prediction_of_memory_counts_no_cast_either():
    """Its tensors are on `meta`, of which autocast knows nothing."""
    weights = torch.empty(1, dtype=torch.bfloat16, device="meta")
    assert _cast_input(weights, torch.float32) is weights
    assert _cast_input(None, torch.float32) is None
