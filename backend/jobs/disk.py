"""Estimates the bytes that a hardening job writes to the disk."""

from __future__ import annotations

import math

from ..adapter.targets import target_pattern
from ..checkpoint.header import TensorEntry
from ..checkpoint.info import CheckpointInfo
from ..families.base.sources import part_shape
from ..hardening.stages import stage_plans
from ..hardening.stored import stored_batches
from ..plan.hardening import HardeningPlan
from ..plan.methods import FACTS, changes_all_weights


def disk_estimate(info: CheckpointInfo, plan: HardeningPlan) -> int:
    """Return the bytes of export, LoRA, adapter, stored predictions, and the state with the one it
    replaces."""
    numbers = 0
    if not FACTS[plan.method].dense:
        numbers = adapter_parameters(info, plan) * (1 + 1 + 2 * 3)
    if changes_all_weights(plan):
        stages = sum(FACTS[stage.method].dense for stage in plan.before)
        own = 1.0  # in numbers of four bytes: the adapter, and the state twice
        if FACTS[plan.method].dense:
            own += 2
        if FACTS[plan.method].distils:
            moments = 0.5 if plan.distil.optimiser == "adamw8bit" else 2
            own += 2 * (moments + (1 if plan.distil.ema else 0))
        numbers += round(denoiser_parameters(info) * (2 * stages + own))
    return round(info.export_bytes + 4 * numbers) + stored_predictions(info, plan)[1]


def stored_predictions(info: CheckpointInfo, plan: HardeningPlan) -> tuple[int, int]:
    """Return the draws on which the original predicts before training, and the predictions' bytes.

    Of images of the plan's resolution; a folder of encoded latents may hold others.
    """
    draws = 0
    for own in (*(stage for _, stage in stage_plans(plan)), plan):
        if FACTS[own.method].distils:
            draws += min(stored_batches(own), own.outer_steps) * own.distil.batch
    if not draws:
        return 0, 0
    space = info.family.latents.space(info.configs.get(info.family.vae, {}))
    side = (plan.resolution or info.resolution) // space.stride
    return draws, 4 * draws * space.channels * side**2


def denoiser_parameters(info: CheckpointInfo) -> int:
    """Count the numbers in a checkpoint's denoiser."""
    sources = info.sources(info.family.denoiser)
    tensors = _denoiser_tensors(info)
    return sum(
        math.prod(part_shape(tensors[source.name].shape, source))
        for source in sources.values()
        if source.name in tensors
    )


def _denoiser_tensors(info: CheckpointInfo) -> dict[str, TensorEntry]:
    files = info.files[info.family.denoiser]
    return {name: entry for path in files for name, entry in info.headers[path].tensors.items()}


def adapter_parameters(info: CheckpointInfo, plan: HardeningPlan) -> int:
    """Count the numbers in the adapter that a plan would train on this checkpoint."""
    pattern = target_pattern(info.family.targets, plan.adapter.targets)
    denoiser, tensors = info.family.denoiser, _denoiser_tensors(info)
    count = 0
    for name, source in info.sources(denoiser).items():
        module, _, leaf = name.rpartition(".")
        if leaf == "weight" and source.name in tensors and pattern.search("." + module):
            shape = part_shape(tensors[source.name].shape, source)
            taps = math.prod(shape[2:])
            count += plan.adapter.rank * (shape[0] + shape[1] * taps)
    return count
