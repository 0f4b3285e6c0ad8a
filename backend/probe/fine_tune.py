"""Fine-tunes a published checkpoint as a user would, with a fresh LoRA or in full.

Unlike the simulated users of hardening, this trains the model as it is on disk (adapter merged),
for all of the configuration's steps. The weights are restored bit for bit afterwards, so that one
loaded model serves any number of attacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor

from ..adapter.apply import AdaptedDenoiser
from ..bilevel.inner_loop import inner_loop
from ..bilevel.losses import denoising_loss
from ..data.batches import draw
from ..data.encoded_set import EncodedSet
from ..model.model import Model
from ..numerics.seeds import generator
from ..plan.adapter import AdapterConfig
from ..plan.fine_tune import FineTuneConfig


@contextmanager
def fine_tuned(
    model: Model,
    config: FineTuneConfig,
    data: EncodedSet,
    *,
    concept: EncodedSet | None = None,
    seed: int = 0,
    marks: Sequence[int] = (),
    on_mark: Callable[[int], None] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Iterator[Model]:
    """Train `model` in place by `config`; inside the context it is the fine-tuned one.

    Args:
        data: what the user trains on. concept: the forget set, of which `concept_share` of the
            batches consists.
        seed: of batches, noise and LoRA.
        marks, on_mark: steps after which `on_mark` is called, to evaluate the model meanwhile.
        on_step: called after each update; raise from it to stop.
    """
    process = model.process.to(model.device)

    def loss(step: int) -> Tensor:
        random = generator(seed, "fine-tune", step)
        harmful = 0
        if concept is not None:
            chance = float(torch.rand((), generator=random))
            harmful = min(config.batch, int(config.batch * config.concept_share + chance))
        total = torch.zeros((), device=model.device)
        for encoded, count in ((data, config.batch - harmful), (concept, harmful)):
            if encoded is None or count == 0:
                continue
            batch = draw(encoded, random, count, process, config.caption_dropout)
            noised = process.add_noise(batch.latents, batch.noise, batch.timesteps)
            target = process.target(batch.latents, batch.noise, batch.timesteps)
            prediction = model.denoise(noised, batch.timesteps, batch.conditioning)
            total = total + denoising_loss(prediction, target) * (count / config.batch)
        return total

    def after(step: int) -> None:
        if on_step:
            on_step(step)
        if on_mark and step in marks:
            on_mark(step)

    with ExitStack() as stack:
        denoiser = stack.enter_context(
            AdaptedDenoiser(model, AdapterConfig(rank=config.rank), seed=seed)
        )
        weights = denoiser.theta
        if config.method == "full":
            denoiser.close()
            weights = stack.enter_context(denoiser.base_weights())
        inner_loop(weights, lambda step: partial(loss, step), config, config.steps, on_step=after)
        yield model
