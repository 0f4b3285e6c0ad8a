"""The rounded base at work, against ordinary layers that hold the same rounded weights."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from fakes import encoded_data, random_conditioning, tiny_model, tiny_unet
from resalign.backend.adapter.apply import AdaptedDenoiser
from resalign.backend.bilevel.hessian import hessian_product
from resalign.backend.data.cache import fingerprint
from resalign.backend.errors import ConfigError
from resalign.backend.families import find_family
from resalign.backend.hardening.run import harden
from resalign.backend.memory.trace import measure_step, random_data, trace_step
from resalign.backend.memory.tracker import LiveMemory
from resalign.backend.model.model import Model
from resalign.backend.model.process import discrete_process, scaled_linear_alphas_cumprod
from resalign.backend.model.quantised import QuantisedLinear, quantised
from resalign.backend.plan.adapter import AdapterConfig
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.fine_tune import FineTuneConfig
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.harm import HarmConfig
from resalign.backend.plan.quantization import QUANTIZATIONS
from resalign.backend.plan.regulator import RegulatorConfig
from resalign.backend.plan.solver import SolverConfig
from resalign.backend.progress import Progress

pytest.importorskip("bitsandbytes", reason="the rounded base needs bitsandbytes, which is optional")

KINDS = QUANTIZATIONS[1:]
ROUNDS_BY = {"int8": 0.01, "nf4": 0.12}  # of a weight's norm, at most
both = pytest.mark.parametrize("kind", KINDS)
USER = FineTuneConfig(name="u", learning_rate=5e-2, steps=2, batch=2, concept_share=0.5)


def plan(**changes) -> HardeningPlan:
    settings = {
        "concepts": (Concept("bad", prompts=("bad",)),), "fine_tunes": (USER,),
        "adapter": AdapterConfig(rank=2), "outer_steps": 3, "warm_up_steps": 1,
        "learning_rate": 1e-2, "harm": HarmConfig(cap=4.0), "save_every": 2,
        "regulator": RegulatorConfig(enabled=False),
    }  # fmt: skip
    return HardeningPlan(**(settings | changes))


def inputs():
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    return latents, torch.tensor([10, 900]), random_conditioning(2)


def fill(theta: dict[str, torch.Tensor]) -> None:
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in theta.values():
            tensor.copy_(0.2 * torch.randn(tensor.shape, generator=random))


def linear(model: Model) -> dict[str, nn.Linear]:
    return {n: part for n, part in model.denoiser.named_modules() if isinstance(part, nn.Linear)}


def rounded(kind: str) -> Model:
    """Ordinary layers with the weights that the quantised ones stand for."""
    model, other = tiny_model(), tiny_model()
    with quantised(model, kind), torch.no_grad():
        for name, layer in linear(model).items():
            other.denoiser.get_parameter(name + ".weight").copy_(layer.true_weight())
    return other


@contextmanager
def adapted(kind: str, checkpointing: bool = False):
    """(quantised denoiser, reference denoiser), the same θ on both."""
    model = tiny_model()
    with (
        quantised(model, kind),
        AdaptedDenoiser(model, AdapterConfig(rank=2, targets=("attention", "feed_forward"))) as one,
        AdaptedDenoiser(rounded(kind), one.config) as other,
    ):
        for denoiser in (one, other):
            denoiser.training(checkpointing)
            fill(denoiser.theta)
        yield one, other


def loss(denoiser):
    return denoiser(*inputs()).square().mean()


@both
def test_the_base_is_rounded_and_no_more_than_it_says(kind):
    """All linear layers and nothing else; the prediction moves by about as much as they do."""
    model = tiny_model()
    true = {name: layer.weight.clone() for name, layer in linear(model).items()}
    expected = model.denoise(*inputs())
    others = {n for n, _ in model.denoiser.named_parameters() if n.rpartition(".")[0] not in true}
    kept = {name: model.denoiser.get_parameter(name) for name in others}
    with quantised(model, kind):
        assert all(isinstance(layer, QuantisedLinear) for layer in linear(model).values())
        for name, layer in linear(model).items():
            moved = (layer.true_weight() - true[name]).norm() / true[name].norm()
            assert 0 < moved < ROUNDS_BY[kind]
        assert all(model.denoiser.get_parameter(name) is kept[name] for name in others)
        found = model.denoise(*inputs())
    assert 0 < (found - expected).norm() < ROUNDS_BY[kind] * expected.norm()


@both
def test_the_true_network_comes_back_to_the_bit_whatever_happens(kind):
    """The very layers, also where a host's network came in float16, and after an error."""
    model = tiny_model(dtype=torch.float16)
    layers, before = list(model.denoiser.modules()), fingerprint(model.denoiser)
    for used in (False, True):
        with pytest.raises(KeyboardInterrupt):
            _interrupted(model, kind, before, used)
        assert all(a is b for a, b in zip(layers, model.denoiser.modules(), strict=True))
        assert fingerprint(model.denoiser) == before


def _interrupted(model: Model, kind: str, before: str, used: bool) -> None:
    latents, timesteps, conditioning = inputs()
    with quantised(model, kind):
        assert fingerprint(model.denoiser) != before
        if used:
            model.denoise(latents.half(), timesteps, conditioning.to("cpu", torch.half))
        raise KeyboardInterrupt


@both
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_adapters_gradient_is_that_of_the_rounded_network(kind, checkpointing):
    """Exactly that: rounding is in the weights, not in the pass; and close to the true one's."""
    with adapted(kind, checkpointing) as (one, other):
        found = torch.autograd.grad(loss(one), list(one.theta.values()))
        expected = torch.autograd.grad(loss(other), list(other.theta.values()))
    for part, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(part, reference, rtol=1e-4, atol=1e-7)
    with AdaptedDenoiser(tiny_model(), one.config) as denoiser:
        fill(denoiser.theta)
        true = torch.autograd.grad(loss(denoiser), list(denoiser.theta.values()))
    flat, true_flat = (torch.cat([p.reshape(-1) for p in parts]) for parts in (found, true))
    assert 0 < (flat - true_flat).norm() < 2 * ROUNDS_BY[kind] * true_flat.norm()


@both
@pytest.mark.parametrize("products", ["exact", "finite_difference"])
def test_hessian_products_see_through_the_rounding(kind, products):
    """Second derivatives and differences: of the rounded network, as smooth as any."""
    with adapted(kind) as (one, other):
        vector = torch.randn(
            sum(t.numel() for t in one.theta.values()), generator=torch.Generator().manual_seed(2)
        )
        results = []
        for denoiser, how in ((one, products), (other, "exact")):
            with hessian_product(
                lambda denoiser=denoiser: loss(denoiser), denoiser.theta, products=how, epsilon=1e-2
            ) as product:
                results.append(product(vector))
    found, expected = results
    assert (found - expected).norm() < (1e-4 if products == "exact" else 1e-2) * expected.norm()


@both
def test_with_the_adapter_off_it_is_the_rounded_frozen_model(kind):
    with adapted(kind) as (one, other):
        adapted_now = one(*inputs()).detach()
        with one.frozen():
            off = one(*inputs())
        bare = other.model
        other.close()
        torch.testing.assert_close(off, bare.denoise(*inputs()), rtol=1e-4, atol=1e-5)
        assert torch.equal(one(*inputs()), adapted_now) and not torch.equal(off, adapted_now)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("int8", {}),
        ("nf4", {"simulate": "adapter", "micro_batch": 1, "precision": "bf16"}),
        ("int8", {"method": "project", "outer_steps": 2}),
        pytest.param(
            "nf4",
            {"solver": SolverConfig(method="minres", gamma=0.1), "gradient_checkpointing": True},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["shared", "adapter,bf16", "project", "minres,checkpointing"],
)
def test_a_hardening_run_ends_beside_the_rounded_base(kind, changes):
    """θ moves, the first losses are nearly those beside the true weights, the model is intact."""
    model = tiny_model()
    before = fingerprint(model.denoiser)
    found = harden(model, plan(quantization=kind, **changes), data=encoded_data())
    assert fingerprint(model.denoiser) == before
    usual = harden(model, plan(**changes | {"outer_steps": 1}), data=encoded_data())
    first, expected = found.records[0].harm, usual.records[0].harm
    assert first == pytest.approx(expected, rel=0.05) and first != expected
    assert len(found.records) == changes.get("outer_steps", 3)
    tensors = found.adapter.tensors
    assert tensors.keys() == usual.adapter.tensors.keys()
    assert all(tensor.isfinite().all() and tensor.any() for tensor in tensors.values())


def test_a_killed_run_goes_on_to_the_same_bytes_beside_a_rounded_base(tmp_path):
    asked = plan(quantization="nf4")
    whole = harden(tiny_model(), asked, data=encoded_data())

    def stop(progress: Progress) -> None:
        if progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        harden(
            tiny_model(), asked, data=encoded_data(), run_folder=tmp_path / "r", on_progress=stop
        )
    again = harden(tiny_model(), asked, data=encoded_data(), run_folder=tmp_path / "r")
    assert all(torch.equal(t, again.adapter.tensors[n]) for n, t in whole.adapter.tensors.items())


def test_a_run_inside_a_rounded_model_rounds_no_second_time():
    """As the worker has it, which draws previews before: the same adapter, and the model stays."""
    asked = plan(quantization="nf4", outer_steps=1)
    model = tiny_model()
    with quantised(model, "nf4"):
        packed = fingerprint(model.denoiser)
        found = harden(model, asked, data=encoded_data()).adapter.tensors
        assert fingerprint(model.denoiser) == packed
    alone = harden(model, asked, data=encoded_data()).adapter.tensors
    assert all(torch.equal(tensor, alone[name]) for name, tensor in found.items())


def test_base_weights_cannot_be_trained_while_they_are_rounded():
    model = tiny_model()
    with (
        quantised(model, "int8"),
        AdaptedDenoiser(model, AdapterConfig(rank=2)) as denoiser,
        pytest.raises(ConfigError, match="quantization to 'none'"),
        denoiser.base_weights(),
    ):
        pass


@both
def test_half_precision_by_autocast_meets_weights_of_another_type(kind):
    """A network handed over in float32 under a bf16 plan, and one loaded in bf16."""
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_model(dtype=dtype)
        with (
            quantised(model, kind),
            AdaptedDenoiser(model, AdapterConfig(rank=2), precision="bf16") as denoiser,
        ):
            gradients = torch.autograd.grad(loss(denoiser), list(denoiser.theta.values()))
            assert sum(float(part.abs().sum()) for part in gradients) > 0


def test_the_cache_of_synthesised_sets_tells_scales_apart():
    """Twice the weights have the same packed bits; what they draw is not the same."""
    found = []
    for factor in (1.0, 2.0):
        model = tiny_model()
        for layer in linear(model).values():
            layer.weight.data *= factor
        with quantised(model, "nf4"):
            found.append(fingerprint(model.denoiser))
    assert found[0] != found[1]


def test_the_planner_is_within_a_tenth_of_a_real_step(monkeypatch):
    monkeypatch.setattr("resalign.backend.memory.trace.BLOCK", 1)
    unet = tiny_unet(sample_size=16, block_out_channels=(32, 32))
    asked = plan(quantization="nf4", gradient_checkpointing=True)
    schedule = discrete_process(scaled_linear_alphas_cumprod())
    model = Model(find_family("sd1"), unet, (), (), None, schedule, 128)  # type: ignore[arg-type]
    real = measure_step(model, asked, random_data(model, 16), LiveMemory("cpu"))
    told = trace_step(
        dict(unet.config), asked, family=find_family("sd1"), side=16, dtype=torch.float32
    )
    assert told.weights == real.weights
    assert told.activations == pytest.approx(real.activations, rel=0.1)
    assert told.state == pytest.approx(real.state, rel=0.1)
