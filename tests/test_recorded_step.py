"""The hypergradient on a recorded outer step, against dense float64 solutions.

`data/recorded_step.safetensors` holds a tiny trained U-Net, θ* of three simulated users and the
batches of one outer step of the published code, with (I + H)⁻¹ g solved in float64 to 1e-13.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from resalign.backend.adapter.apply import AdaptedDenoiser
from resalign.backend.bilevel.hessian import hessian_product
from resalign.backend.bilevel.hypergradient import LossAfter, hypergradient
from resalign.backend.bilevel.losses import denoising_loss
from resalign.backend.bilevel.vectors import flatten, gradient
from resalign.backend.families import find_family
from resalign.backend.families.base.conditioning import Conditioning
from resalign.backend.families.base.process import discrete_process, scaled_linear_alphas_cumprod
from resalign.backend.model.model import Model
from resalign.backend.plan.adapter import AdapterConfig
from resalign.backend.plan.solver import SolverConfig

FILE = Path(__file__).parent / "data" / "recorded_step.safetensors"
OUTER_LAMBDA = 0.8  # of the recorded run: its g is the gradient of −0.8 · error


@pytest.fixture(scope="module")
def record():
    with safe_open(str(FILE), "pt") as file:
        return {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118


class Step:
    """The recorded network with θ* of one configuration, and the two losses taken there."""

    def __init__(self, record, number: int, dtype: torch.dtype) -> None:
        from diffusers import UNet2DConditionModel

        tensors, metadata = record
        unet = UNet2DConditionModel(**json.loads(metadata["unet_config"]))
        weights = {k[5:]: v for k, v in tensors.items() if k.startswith("unet.")}
        unet.load_state_dict(weights, strict=True)
        schedule = discrete_process(scaled_linear_alphas_cumprod())
        model = Model(find_family("sd1"), unet.to(dtype).eval(), (), (), None, schedule, 64)  # type: ignore[arg-type]
        self.denoiser = AdaptedDenoiser(model, AdapterConfig(rank=4))
        names = json.loads(metadata["lora_names"])
        self.theta = {name: self.denoiser.theta[name] for name in names}
        sizes = [tensor.numel() for tensor in self.theta.values()]
        star = tensors[f"cfg{number}.theta_star"].to(dtype)
        with torch.no_grad():
            for tensor, part in zip(self.theta.values(), star.split(sizes), strict=True):
                tensor.copy_(part.view_as(tensor))
        self.inputs = {k: v for k, v in tensors.items() if k.startswith(f"cfg{number}.")}
        self.prefix, self.dtype = f"cfg{number}.", dtype

    def error(self, use: str) -> torch.Tensor:
        x, t, emb, noise = (
            self.inputs[f"{self.prefix}{use}.{k}"] for k in ("x", "t", "emb", "noise")
        )
        conditioning = Conditioning({"context": emb.to(self.dtype)})
        return denoising_loss(
            self.denoiser(x.to(self.dtype), t, conditioning), noise.to(self.dtype)
        )

    def harm(self) -> torch.Tensor:
        return -OUTER_LAMBDA * self.error("harm")

    def fine_tuning(self) -> torch.Tensor:
        return self.error("fine_tune")

    def reference(self, name: str) -> torch.Tensor:
        return self.inputs[self.prefix + name].double()


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_gradient_at_theta_star_is_the_recorded_one(record, number):
    """g at θ* in float32 agrees with the float64 reference to 5e-6."""
    step = Step(record, number, torch.float32)
    _, g = gradient(step.harm, step.theta)
    assert relative(flatten(g), step.reference("g_theta_star")) < 5e-6


@pytest.mark.parametrize(
    ("products", "dtype", "bound"),
    [
        ("exact", torch.float64, 1e-9),
        ("exact", torch.float32, 1e-5),
        ("finite_difference", torch.float32, 1e-3),
    ],
)
@pytest.mark.parametrize("method", ["richardson", "cg", "minres"])
def test_the_implicit_gradient_is_the_dense_solution(record, method, products, dtype, bound):
    """(I + H)⁻¹ g: exact products within 1e-5, finite differences within 1e-3, in float32."""
    step = Step(record, 1, dtype)
    solver = SolverConfig(method=method, products=products, iterations=8, tolerance=1e-10)
    found = hypergradient(LossAfter(step.harm), step.fine_tuning, step.theta, step.theta, solver)
    assert not found.skipped
    vector = flatten(list(found.tensors.values()))
    assert relative(vector, step.reference("exact_implicit")) < bound


@pytest.mark.parametrize(("products", "bound"), [("exact", 1e-5), ("finite_difference", 1e-3)])
def test_one_product_is_the_recorded_one(record, products, bound):
    """H on the unit vector of g in float32, with fused attention for the differences."""
    step = Step(record, 0, torch.float32)
    g = step.reference("g_theta_star").float()
    with hessian_product(step.fine_tuning, step.theta, products=products) as product:
        found = product(g / g.norm())
    assert relative(found, step.reference("H_times_unit_g")) < bound
