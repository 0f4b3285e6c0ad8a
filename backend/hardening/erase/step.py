"""The one step of method `erase`: measure the layers' inputs, then take the directions out.

`erase.how` chooses among the directions and what else weights may lose, in `others.py`. All layers
are measured in the network as the stage finds it, group by group within the plan's memory; only
then are their weights replaced.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...numerics.byte_sizes import GIB
from ...numerics.seeds import generator
from ...plan.durable import EraseConfig
from ...run.records import ErasedLayer, StepRecord
from ..setup import Setup
from ..training import require_finite
from .layers import erasable
from .moments import in_groups, matrix_bytes, measure, takes_patches
from .others import OTHERS, rehearse_other
from .subspace import Directions, at_random, concept_directions, without

Passes = Sequence[tuple[float, Callable[[], object]]]


def erase_step(setup: Setup, step: int) -> StepRecord:
    """Erase, then measure harm and retention with the changed weights."""
    started = time.perf_counter()
    harm, retain = setup.feed.harm(step), setup.feed.retain(step)
    how = setup.plan.erase.how
    weights, layers = OTHERS[how](setup, step) if how in OTHERS else erased(setup, step)
    with setup.changing():
        setup.dense.set(weights)
        setup.agree()
    if layers and not any(layer.removed for layer in layers):
        setup.warn(
            "nothing was erased: no direction is more than "
            f"{setup.plan.erase.ratio:g} times stronger on the concepts; lower erase.ratio"
        )
    with torch.no_grad():
        values = {"harm": harm.loss(), "retain": retain()}
    require_finite(setup, step, values)
    return StepRecord(
        step=step, harm=float(values["harm"]), retain=float(values["retain"]),
        resilience_weight=0.0, retain_weight=0.0, learning_rate=0.0, gradient_norm=0.0,
        seconds=time.perf_counter() - started, simulations=(), erased=layers,
    )  # fmt: skip


def erased(setup: Setup, step: int) -> tuple[dict[str, Tensor], tuple[ErasedLayer, ...]]:
    """Return the new weights by name, on the CPU, and what was taken out of each layer."""
    config, layers = setup.plan.erase, erasable(setup)
    patches = by_patches(config, layers)
    narrow = [name for name in layers if takes_patches(layers[name]) and name not in patches]
    if narrow and config.convolutions == "patches":
        setup.warn(
            f"{len(narrow)} convolutions are erased by channels, because their patches need more "
            f"than erase.memory = {config.memory:g} GiB or are wider than erase.patch_width = "
            f"{config.patch_width}, the first of them {narrow[0]}"
        )
    groups = list(in_groups(layers, 2, config.memory * GIB, patches))
    kept, concept = setup.feed.kept_passes(), setup.feed.concept_passes()
    total, done = len(groups) * (len(kept) + len(concept)) + len(layers), 0
    weights: dict[str, Tensor] = {}
    records: dict[str, ErasedLayer] = {}

    def report(what: str, more: int = 1) -> None:
        nonlocal done
        done += more
        setup.users.on_inner_step(step, done, total, what)

    def reported(work: Callable[[], object]) -> None:
        report("measuring layers")
        work()

    def watched(passes: Passes) -> Passes:
        return [(weight, partial(reported, work)) for weight, work in passes]

    for group in groups:
        stays = measure(group, watched(kept), patches)
        goes = measure(group, watched(concept), patches)
        for owner, names in stays.sharing(group).items():
            report("finding directions", len(names))  # minutes in a wide layer on a CPU
            found = _directions(setup, owner, stays.take(owner), goes.take(owner))
            for name in names:
                records[name] = _record(name, found)
                if found.removed:
                    weight = group[name].weight.detach().to(found.root.device)
                    weights[name + ".weight"] = without(weight, found).cpu()
            del found  # before the next layer's matrices
    return weights, tuple(records[name] for name in layers)


def _directions(setup: Setup, owner: str, stays: Tensor, goes: Tensor) -> Directions:
    """Find what to take out of the layers that share the input of `owner`."""
    config = setup.plan.erase
    found = concept_directions(stays, goes, ratio=config.ratio, floor=config.floor)
    if config.how != "random":
        return found
    return at_random(found, generator(setup.plan.seed, "erase", "random", owner))


def by_patches(config: EraseConfig, layers: Mapping[str, Any]) -> frozenset[str]:
    """Return the convolutions to erase from by patches: those whose two matrices fit the memory
    and are not too wide to decompose."""
    if config.convolutions == "channels":
        return frozenset()
    return frozenset(
        name
        for name, layer in layers.items()
        if takes_patches(layer)
        and layer.weight[0].numel() <= config.patch_width
        and 2 * matrix_bytes(layer, patches=True) <= config.memory * GIB
    )


def rehearse_erasure(setup: Setup) -> None:
    """Measure the largest group of layers with one pass each, for the memory planner."""
    if setup.plan.erase.how in OTHERS:
        rehearse_other(setup)
        return
    layers = erasable(setup)
    patches = by_patches(setup.plan.erase, layers)

    def size(name: str) -> int:
        return matrix_bytes(layers[name], patches=name in patches)

    groups = in_groups(layers, 2, setup.plan.erase.memory * GIB, patches)
    largest = max(groups, key=lambda group: sum(map(size, group)))
    kept = measure(largest, setup.feed.kept_passes()[:1], patches)
    concept = measure(largest, setup.feed.concept_passes()[:1], patches)
    widest = max(largest, key=size)
    _directions(setup, widest, kept.take(widest), concept.take(widest))


def _record(name: str, found: Directions) -> ErasedLayer:
    strengths = found.strengths
    return ErasedLayer(
        name=name, width=len(strengths), removed=found.removed, strongest=float(strengths[-1]),
        weakest=float(strengths[-found.removed]) if found.removed else None,
    )  # fmt: skip
