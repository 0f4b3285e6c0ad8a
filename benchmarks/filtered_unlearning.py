"""Gradient ascent whose updates are special to the concept: the first stage of a row of on_top.py.

For each linear layer, and each convolution by its patches, let a be an input and g the gradient of
the loss by the output. On what must stay the means and leading principal components of both are
measured once; on the concept they are taken out of a and g before the update Σ g aᵀ is formed. So
directions that everything uses do not change. After CIR (arXiv:2509.11816).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from resilience_bench import Bench
from torch import Tensor, nn

from resalign.backend.adapter.dense import AnyAdapter
from resalign.backend.adapter.dense_denoiser import DenseDenoiser
from resalign.backend.data.batches import prepare_data
from resalign.backend.hardening.erase.layers import erasable
from resalign.backend.hardening.erase.moments import patches_of, rows_of
from resalign.backend.hardening.setup import Setup, set_up
from resalign.backend.plan.hardening import HardeningPlan

INPUTS, OUTPUTS = 24, 36  # components taken out, as published for language models
BATCH = 16
NORM = 0.02  # of an update, in norms of all erasable weights
LIMIT = 40  # updates at most
HARM = 4.0  # stop when the loss on the concept is this many times what it was


@dataclass(frozen=True)
class Common:
    """Mean and leading directions, [n] and [k, n], of vectors on what must stay."""

    mean: Tensor
    directions: Tensor

    def taken_out(self, rows: Tensor) -> Tensor:
        rows = rows - self.mean
        return rows - rows @ self.directions.T @ self.directions


def common(rows: Tensor, count: int) -> Common:
    """Return the mean and at most `count` principal components, half of the width at most."""
    mean = rows.mean(0)
    centred = (rows - mean).double()
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    chosen = min(count, rows.shape[1] // 2)
    return Common(mean, vectors[:, -chosen:].T.to(rows.dtype) if chosen else vectors[:0].float())


def filtered_ascent(bench: Bench, plan: HardeningPlan) -> AnyAdapter:
    """Return what ascent on the concept changes, until the loss on it is `HARM` times as large."""
    data = prepare_data(bench.model, plan, cache=bench.folder / "cache")
    with DenseDenoiser(bench.model) as denoiser:
        setup = set_up(denoiser, plan, data)
        layers = erasable(setup)
        a, g, _ = watched(setup, layers, "kept", 0)
        filters = {name: (common(a[name], INPUTS), common(g[name], OUTPUTS)) for name in layers}
        whole = sum(layer.weight.detach().square().sum() for layer in layers.values()) ** 0.5
        first = 0.0
        for number in range(LIMIT):
            a, g, loss = watched(setup, layers, "concept", number)
            first = first or loss
            if loss > HARM * first:
                break
            updates = {
                name: filters[name][1].taken_out(g[name]).T @ filters[name][0].taken_out(a[name])
                for name in layers
            }
            length = sum(update.square().sum() for update in updates.values()) ** 0.5
            with torch.no_grad():
                for name, layer in layers.items():
                    layer.weight += NORM * whole / length * updates[name].view_as(layer.weight)
        print(f"filtered ascent: {number} updates, loss {first:.3f} -> {loss:.3f}", flush=True)
        return denoiser.adapter()


def watched(
    setup: Setup, layers: dict[str, Any], of: str, number: int
) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
    """Return each layer's inputs and output gradients as rows, on one batch, and the loss."""
    feed = setup.feed
    concept = feed.data.forget[setup.plan.concepts[0].name]
    sets = [concept] if of == "concept" else [feed.data.retain, feed.data.varied]
    draws = [
        feed._draw(encoded, BATCH * (1 if of == "concept" else 4), 0.0, "filter", of, number, place)
        for place, encoded in enumerate(sets) if encoded is not None
    ]  # fmt: skip
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    hooks = [layer.register_forward_hook(_keep(name, inputs, outputs))
             for name, layer in layers.items()]  # fmt: skip
    loss: Callable[[], Tensor] = feed.objective.fine_tuning(draws, [1.0] * len(draws))
    value = loss()
    value.backward()
    for hook in hooks:
        hook.remove()
    for tensor in setup.theta.values():
        tensor.grad = None
    return inputs, outputs, float(value.detach())


def _keep(name: str, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> Callable[..., None]:
    def hook(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        convolves = isinstance(layer, nn.Conv2d)
        given = args[0].detach()
        rows = patches_of(layer, given) if convolves else rows_of(layer, given)
        inputs[name] = torch.cat([inputs[name], rows]) if name in inputs else rows

        def seen(gradient: Tensor) -> None:
            moved = gradient.movedim(1, -1) if convolves else gradient
            rows = moved.reshape(-1, moved.shape[-1])
            # Backward meets the draws in the reverse order
            outputs[name] = torch.cat([rows, outputs[name]]) if name in outputs else rows

        output.register_hook(seen)

    return hook
