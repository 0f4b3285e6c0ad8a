"""The adapter on a denoiser: on, off, trained by users, taken off again."""

from __future__ import annotations

import pytest
import torch

from fakes import random_conditioning, tiny_model
from resalign.backend.adapter.apply import AdaptedDenoiser
from resalign.backend.adapter.targets import target_modules
from resalign.backend.errors import ConfigError
from resalign.backend.families import find_family
from resalign.backend.plan.adapter import AdapterConfig


def inputs(batch: int = 2):
    random = torch.Generator().manual_seed(3)
    latents = torch.randn(batch, 4, 8, 8, generator=random)
    return latents, torch.tensor([10, 900][:batch]), random_conditioning(batch)


def fill(theta: dict[str, torch.Tensor], size: float = 0.2) -> None:
    """Give B values, so that the adapter changes something."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in theta.values():
            tensor.copy_(size * torch.randn(tensor.shape, generator=random))


def state(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.denoiser.state_dict().items()}


def test_a_new_adapter_changes_nothing():
    """A fresh adapter leaves every prediction unchanged, bit for bit."""
    model = tiny_model()
    expected = model.denoise(*inputs())
    with AdaptedDenoiser(model, AdapterConfig()) as denoiser:
        assert torch.equal(denoiser(*inputs()), expected)


@pytest.mark.parametrize(
    "targets", [("attention",), ("feed_forward", "cross_attention_kv"), ("convolution",)]
)
def test_the_exported_deltas_are_what_the_adapter_does(targets):
    """W + ΔW written into a bare network predicts what the adapted network predicts."""
    model = tiny_model()
    with AdaptedDenoiser(model, AdapterConfig(rank=3, alpha=6, targets=targets)) as denoiser:
        fill(denoiser.theta)
        adapted = denoiser(*inputs()).detach()
        adapter = denoiser.adapter()
    assert (adapted - model.denoise(*inputs())).abs().max() > 1e-3
    for module in adapter.modules:
        weight = model.denoiser.get_submodule(module).weight
        weight.data += adapter.delta(module)
    torch.testing.assert_close(model.denoise(*inputs()), adapted, rtol=1e-4, atol=1e-5)


def test_frozen_is_the_original_model():
    """With the adapter off the network predicts as before, without a graph, and comes back on."""
    model = tiny_model()
    expected = model.denoise(*inputs())
    with AdaptedDenoiser(model, AdapterConfig()) as denoiser:
        fill(denoiser.theta)
        adapted = denoiser(*inputs()).detach()
        with denoiser.frozen():
            off = denoiser(*inputs())
        assert torch.equal(off, expected)
        assert not off.requires_grad
        assert torch.equal(denoiser(*inputs()), adapted)
        assert all(tensor.requires_grad for tensor in denoiser.theta.values())


def test_closing_gives_the_bare_network_back():
    """Names, weights and classes of the layers are those of before."""
    model = tiny_model()
    before, classes = state(model), [type(m) for m in model.denoiser.modules()]
    with AdaptedDenoiser(model, AdapterConfig(targets=("attention", "convolution"))) as denoiser:
        fill(denoiser.theta)
        with denoiser.fresh_lora(2, seed=0) as phi:
            fill(phi)
    after = state(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [type(m) for m in model.denoiser.modules()] == classes
    with AdaptedDenoiser(model, AdapterConfig()):  # and it can be adapted again
        pass


def test_a_users_lora_adds_to_the_adapter_and_leaves_with_its_user():
    """Fresh LoRA: starts as the identity on θ, adds when trained, is gone afterwards."""
    model = tiny_model()
    with AdaptedDenoiser(model, AdapterConfig()) as denoiser:
        fill(denoiser.theta)
        hardened = denoiser(*inputs()).detach()
        with denoiser.fresh_lora(2, seed=5) as phi:
            first = {name: tensor.detach().clone() for name, tensor in phi.items()}
            assert torch.equal(denoiser(*inputs()), hardened)
            gradients = torch.autograd.grad(
                denoiser(*inputs()).square().mean(), [*phi.values(), *denoiser.theta.values()]
            )
            assert sum(float(g.abs().sum()) for g in gradients) > 0
            fill(phi)
            assert (denoiser(*inputs()) - hardened).abs().max() > 1e-3
        assert torch.equal(denoiser(*inputs()), hardened)
        with denoiser.fresh_lora(2, seed=5) as phi:
            assert all(torch.equal(first[name], phi[name]) for name in phi)
        with denoiser.fresh_lora(2, seed=6) as phi:
            assert any(not torch.equal(first[name], phi[name]) for name in phi)


def test_full_simulation_puts_every_weight_back_to_the_bit():
    """All base weights are trainable inside and untouched outside, even after an error."""
    model = tiny_model()
    with AdaptedDenoiser(model, AdapterConfig()) as denoiser:
        before = state(model)
        with pytest.raises(RuntimeError, match="stop"):
            _train_and_fail(denoiser)
        after = state(model)
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert not any(
            p.requires_grad for n, p in model.denoiser.named_parameters() if "lora" not in n
        )


def _train_and_fail(denoiser: AdaptedDenoiser) -> None:
    with denoiser.base_weights() as phi:
        assert len(phi) == len(tiny_model().denoiser.state_dict())
        with torch.no_grad():
            for tensor in phi.values():
                tensor.add_(0.1)
        raise RuntimeError("stop")


def test_full_simulation_in_half_precision_is_refused():
    """Updates smaller than the type resolves would vanish silently."""
    model = tiny_model(dtype=torch.bfloat16)
    denoiser = AdaptedDenoiser(model, AdapterConfig(), precision="bf16")
    with denoiser, pytest.raises(ConfigError, match="fp32"), denoiser.base_weights():
        pass


def test_the_adapter_is_float32_on_a_half_precision_model():
    """Mixed precision: base weights in bf16, θ and its gradient in fp32."""
    model = tiny_model(dtype=torch.bfloat16)
    with AdaptedDenoiser(model, AdapterConfig(), precision="bf16") as denoiser:
        prediction = denoiser(*inputs())
        assert prediction.dtype == torch.float32
        gradients = torch.autograd.grad(prediction.square().mean(), list(denoiser.theta.values()))
        assert {t.dtype for t in denoiser.theta.values()} == {torch.float32}
        assert {g.dtype for g in gradients} == {torch.float32}
        assert any(bool(g.any()) for g in gradients)


def test_gradient_checkpointing_gives_the_same_gradient():
    """Recomputing activations changes memory, not numbers."""
    model = tiny_model()
    found = []
    with AdaptedDenoiser(model, AdapterConfig()) as denoiser:
        fill(denoiser.theta)
        for checkpointing in (False, True):
            denoiser.training(checkpointing)
            loss = denoiser(*inputs()).square().mean()
            found.append(torch.autograd.grad(loss, list(denoiser.theta.values())))
    for plain, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=1e-5, atol=1e-7)


def test_the_same_seed_makes_the_same_adapter():
    """A's values depend on the seed alone."""
    tensors = []
    for seed in (0, 0, 1):
        with AdaptedDenoiser(tiny_model(), AdapterConfig(), seed=seed) as denoiser:
            tensors.append(denoiser.adapter().tensors)
    assert all(torch.equal(tensors[0][n], tensors[1][n]) for n in tensors[0])
    assert any(not torch.equal(tensors[0][n], tensors[2][n]) for n in tensors[0])


def test_targets_select_the_layers_they_name():
    """Attention is q, k, v and out of both kinds; K and V of cross-attention are a part of it."""
    unet = tiny_model().denoiser
    groups = find_family("sd1").targets
    attention = target_modules(unet, groups, ("attention",))
    assert len(attention) % 8 == 0
    kv = target_modules(unet, groups, ("cross_attention_kv",))
    assert set(kv) < set(attention)
    assert len(kv) * 4 == len(attention)
    assert all(
        "resnets" in n or "sampler" in n for n in target_modules(unet, groups, ("convolution",))
    )
