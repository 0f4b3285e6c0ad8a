"""Error of the implicit gradient against a float64 dense solve, per solver, K, γ and ε.

The network is the recorded one of the tests (a trained 1 M U-Net) with a rank-1 adapter, so that
its Hessian H (about 3,800 x 3,800) can be formed column by column in float64 and (I + γH) x = g
solved directly. θ is drawn at two sizes: `flat` (as after ordinary training, ‖H‖ small) and
`curved` (a stress case). Everything measured runs in float32.

    python benchmarks/hypergradient.py [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors import safe_open

from resalign.backend.adapter.apply import AdaptedDenoiser
from resalign.backend.bilevel.hessian import hessian_product
from resalign.backend.bilevel.losses import denoising_loss
from resalign.backend.bilevel.solvers import solve
from resalign.backend.bilevel.vectors import flatten, gradient
from resalign.backend.errors import DivergenceError
from resalign.backend.families import find_family
from resalign.backend.families.base.conditioning import Conditioning
from resalign.backend.families.base.process import discrete_process, scaled_linear_alphas_cumprod
from resalign.backend.model.model import Model
from resalign.backend.plan.adapter import AdapterConfig

RECORD = Path(__file__).parent.parent / "tests" / "data" / "recorded_step.safetensors"
SIZES = {"flat": 0.02, "curved": 0.5}  # standard deviation of θ's tensors


class Problem:
    """The recorded network and batches at a random θ, in one precision."""

    def __init__(self, size: float, dtype: torch.dtype) -> None:
        from diffusers import UNet2DConditionModel

        with safe_open(str(RECORD), "pt") as file:
            names = list(file.keys())
            self.tensors = {name: file.get_tensor(name) for name in names}
            config = json.loads(file.metadata()["unet_config"])
        unet = UNet2DConditionModel(**config)
        unet.load_state_dict({n[5:]: self.tensors[n] for n in names if n.startswith("unet.")})
        schedule = discrete_process(scaled_linear_alphas_cumprod())
        model = Model(find_family("sd1"), unet.to(dtype=dtype).eval(), (), (), None, schedule, 64)  # type: ignore[arg-type]
        self.denoiser = AdaptedDenoiser(model, AdapterConfig(rank=1))
        self.theta, self.dtype = self.denoiser.theta, dtype
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for tensor in self.theta.values():
                tensor.copy_(size * torch.randn(tensor.shape, generator=random))

    def loss(self, use: str) -> torch.Tensor:
        x, t, emb, noise = (self.tensors[f"cfg1.{use}.{k}"] for k in ("x", "t", "emb", "noise"))
        predicted = self.denoiser(
            x.to(self.dtype), t, Conditioning({"context": emb.to(self.dtype)})
        )
        return denoising_loss(predicted, noise.to(self.dtype))

    def fine_tuning(self) -> torch.Tensor:
        return self.loss("fine_tune")

    def g(self) -> torch.Tensor:
        return flatten(gradient(lambda: -self.loss("harm"), self.theta)[1])


def dense_hessian(problem: Problem) -> torch.Tensor:
    """Return the matrix by exact products in float64: [n, n]."""
    n = sum(tensor.numel() for tensor in problem.theta.values())
    columns = torch.zeros(n, n, dtype=torch.float64)
    with hessian_product(problem.fine_tuning, problem.theta, products="exact") as product:
        for index in range(n):
            unit = torch.zeros(n, dtype=torch.float64)
            unit[index] = 1
            columns[index] = product(unit)
    return (columns + columns.T) / 2


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def rows(name: str, size: float) -> list[dict]:
    exact, measured = Problem(size, torch.float64), Problem(size, torch.float32)
    hessian, g64 = dense_hessian(exact), exact.g()
    eigenvalues = torch.linalg.eigvalsh(hessian)
    g = measured.g()
    identity = torch.eye(len(g64), dtype=torch.float64)
    found = []
    print(
        f"\n{name}: n = {len(g)}, H from {eigenvalues[0]:.3g} to {eigenvalues[-1]:.3g}; error of g "
        f"itself in float32 {relative(g, g64):.1e}"
    )
    print(
        f"{'γ':>5} {'method':>12} {'K':>3} {'products':>18} {'ε':>7} {'error':>9} {'residual':>9}"
    )
    for gamma in (1.0, 10.0):
        truth = torch.linalg.solve(identity + gamma * hessian, g64)
        settings = [("first_order", 1, "exact", 0.0)]
        settings += [
            (m, k, "exact", 0.0) for m in ("richardson", "cg", "minres") for k in (1, 3, 5, 10)
        ]
        settings += [
            ("richardson", 5, "finite_difference", e) for e in (1e-4, 1e-3, 3e-3, 1e-2, 1e-1)
        ]
        settings += [("minres", 10, "finite_difference", e) for e in (1e-3, 3e-3, 1e-2)]
        for method, count, products, epsilon in settings:
            row = {"case": name, "gamma": gamma, "method": method, "K": count, "products": products,
                   "epsilon": epsilon}  # fmt: skip
            try:
                with hessian_product(
                    measured.fine_tuning, measured.theta, products=products,
                    epsilon=epsilon or 3e-3,
                ) as product:  # fmt: skip
                    solution = solve(
                        method,
                        lambda v, p=product, c=gamma: c * p(v),
                        g,
                        iterations=count,
                        tolerance=0,
                    )
                row |= {"error": relative(solution.x, truth), "residual": solution.residual}
                text = f"{row['error']:9.1e} {row['residual']:9.1e}"
            except DivergenceError:
                row |= {"error": None, "residual": None}
                text = "  refused"
            shown = f"{epsilon:g}" if epsilon else "-"
            print(
                f"{gamma:5g} {method:>12} {count:3d} {products:>18} {shown:>7} {text}", flush=True
            )
            found.append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="also write all rows here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = [row for name, size in SIZES.items() for row in rows(name, size)]
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
