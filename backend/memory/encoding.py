"""Measures the peak before hardening, when text encoders and VAE take turns on the device.

Like the outer step it runs on tensors without memory: one picture through the VAE and one batch of
the synthesis, both by the code that does it. Activations of the text encoders, 77 tokens a prompt,
are left out as too small to matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from ..checkpoint.load import network_from
from ..data.drawn_sets import SYNTHESIS_BATCH
from ..families import Family
from ..model.encode import encode_images
from ..model.generate import generate_latents
from ..model.model import Model
from ..model.quantised import quantised
from ..plan.auto import micro_batch_of
from ..plan.hardening import HardeningPlan
from ..plan.methods import changes_all_weights
from .as_on_gpu import as_on_gpu
from .meta import MetaMemory
from .trace import BLOCK, Trace, meta_model, random_data


def trace_encoding(
    configs: Mapping[str, Mapping[str, Any]],
    plan: HardeningPlan,
    *,
    family: Family,
    side: int,
    dtype: torch.dtype,
    encoders: torch.dtype,
) -> Trace:
    """Predict the peak of loading and `prepare_data`; `state` is the encoder at work then.

    Args:
        configs: by component, as diffusers has them.
        side: of the latents.
        dtype: of the denoiser's weights. encoders: of the others'.
    """
    model = meta_model(configs[family.denoiser], family, side, dtype)
    names = [name for name in family.text_encoders if name in configs]
    texts = 0
    for name in names:
        network = network_from("the checkpoint", family, name, configs[name])
        texts += _bytes(torch.nn.Module.to(network, encoders))  # diffusers' own `to` would warn
    vae: Any = network_from("the checkpoint", family, family.vae, configs[family.vae])
    kept = family.networks.dtype(family.vae, encoders)
    torch.nn.Module.to(vae, kept).eval().requires_grad_(False)
    model.latent_space = family.latents.space(configs[family.vae])
    model.vae = vae
    with quantised(model, plan.quantization):
        return _peak(model, plan, texts, side)


def _peak(model: Model, plan: HardeningPlan, texts: int, side: int) -> Trace:
    """Return the largest moment of encoding, by what is on the device beside the denoiser."""
    pixels = model.latent_space.stride * side
    moments = [(texts + _bytes(model.vae), 0), (texts, 0)]  # just loaded; reading the prompts
    if _reads_pictures(plan):
        work = partial(encode_images, model, torch.zeros(1, 3, pixels, pixels))
        moments.append((_bytes(model.vae), _activations(work, model.vae)))
    if _synthesises(plan):
        empty = random_data(model, side).empty
        batch = micro_batch_of(plan) or SYNTHESIS_BATCH
        work = partial(
            generate_latents, model, empty, negative=empty, seeds=range(batch), steps=2,
            height=pixels, width=pixels, batch=batch,
        )  # fmt: skip
        moments.append((0, _activations(work, model.denoiser)))
    return Trace(_bytes(model.denoiser), *max(moments, key=sum))


def _bytes(network: torch.nn.Module) -> int:
    return MetaMemory(block=BLOCK).count([*network.parameters(), *network.buffers()])


def _activations(work: Callable[[], object], network: torch.nn.Module) -> int:
    """Return the most bytes that the work adds to its network, including copies of its weights."""
    memory = MetaMemory(block=BLOCK)
    with as_on_gpu(), memory, torch.no_grad():
        weights = memory.count([*network.parameters(), *network.buffers()])
        work()
    return memory.peak - weights


def _synthesises(plan: HardeningPlan) -> bool:
    sets = [concept.images or plan.forget_set for concept in plan.concepts] + [plan.retain_set]
    drawn = bool(plan.varied.images) and changes_all_weights(plan)
    return drawn or any(found is None or found.prompts for found in sets)


def _reads_pictures(plan: HardeningPlan) -> bool:
    sets = [concept.images or plan.forget_set for concept in plan.concepts] + [plan.retain_set]
    folders = any(found is not None and found.folder for found in sets)
    return folders or any(user.data != "retain" for user in plan.fine_tunes)
