"""Encodes a plan's data and draws batches from them.

Draws have no history: each asks for a generator by name (`generator(seed, "forget", step)`), so
a run resumed at any step sees the same samples, noise and timesteps as one never interrupted.
All randomness is drawn on the CPU, the same for each device.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..families.base.conditioning import Conditioning, onto
from ..families.base.process import NoiseProcess
from ..model.encode import encode_prompts, offload_encoders, on_device
from ..model.model import Model
from ..numerics.seeds import generator
from ..parallel.ranks import Ranks
from ..plan.auto import micro_batch_of
from ..plan.concept import shown_name
from ..plan.fine_tune import RETAIN
from ..plan.hardening import HardeningPlan
from ..plan.images import ImageSet
from ..plan.methods import changes_all_weights, methods_of
from ..progress import ProgressCallback, silent, with_message
from .drawn_sets import forget_images, shipped_retain_set
from .encoded_set import Bucket, EncodedSet, merge
from .latents import encode_image_set
from .varied import varied_prompts
from .words import CANDIDATES, encode_words, word_prompts

__all__ = [
    "Draw", "EncodedData", "EncodedSet", "draw", "draw_noise", "generator",
    "merge", "prepare_data", "shared_data",
]  # fmt: skip

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Draw:
    """A batch with its randomness: everything that a denoising loss needs besides the weights.

    latents, noise: [batch, channels, height, width]; timesteps: [batch].
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    conditioning: Conditioning

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def shape(self) -> object:
        """Return what draws must have in common to be predicted in one pass."""
        return self.latents.shape[1:], self.conditioning.shapes

    def split(self, size: int) -> list[Draw]:
        """Split into draws of at most `size` samples, in order; 0 leaves it whole."""
        if not 0 < size < len(self):
            return [self]
        return [
            Draw(self.latents[part], self.noise[part], self.timesteps[part],
                 self.conditioning[part])
            for part in (slice(start, start + size) for start in range(0, len(self), size))
        ]  # fmt: skip

    @staticmethod
    def cat(draws: Sequence[Draw]) -> Draw:
        """Concatenate draws of one shape."""
        return Draw(
            torch.cat([part.latents for part in draws]),
            torch.cat([part.noise for part in draws]),
            torch.cat([part.timesteps for part in draws]),
            Conditioning.cat([part.conditioning for part in draws]),
        )

    def onto(self, device: torch.device) -> Draw:
        """Move to the device without blocking the host."""
        latents, noise, timesteps = (
            onto(part, device) for part in (self.latents, self.noise, self.timesteps)
        )
        return Draw(latents, noise, timesteps, self.conditioning.onto(device))


def draw_noise(
    shape: tuple[int, ...] | torch.Size,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return ε of unit variance: drawn on the CPU in float32, then moved."""
    return torch.randn(shape, generator=generator).to(device, dtype)


def draw(
    encoded_set: EncodedSet,
    generator: torch.Generator,
    batch: int,
    process: NoiseProcess,
    caption_dropout: float = 0.0,
    middle: float = 0.0,
) -> Draw:
    """Draw samples of one size, noise and timesteps, on the set's device and in its type.

    middle: chance of each sample to get a time from the middle of the process instead.
    """
    latents, conditioning = encoded_set.draw(generator, batch, caption_dropout=caption_dropout)
    noise = draw_noise(latents.shape, generator, latents.device, latents.dtype)
    timesteps = process.sample_times(batch, generator)
    if middle:
        chosen = torch.rand(batch, generator=generator) < middle
        timesteps = timesteps.where(~chosen, process.middle_times(batch, generator))
    timesteps = timesteps.to(latents.device)
    return Draw(latents, noise, timesteps, conditioning)


@dataclass(frozen=True, slots=True)
class EncodedData:
    """Encoded sets of a plan.

    forget, anchors: by name of the concept; an anchor is [1], without what samples have of their
    own (SDXL: size and crop). empty: the empty prompt, [1].
    fine_tunes: by `FineTuneConfig.data` and `prior_data`; "retain" is the retain set itself.
    varied: more of what must stay, for methods that change all weights; None without.
    words: prompts of random words, without what samples have of their own; None without.
    """

    forget: dict[str, EncodedSet]
    retain: EncodedSet
    anchors: dict[str, Conditioning]
    empty: Conditioning
    fine_tunes: dict[str, EncodedSet]
    varied: EncodedSet | None = None
    words: Conditioning | None = None

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> EncodedData:
        """Move latents and embeddings to a device and type; a set used twice is moved once."""
        moved: dict[int, EncodedSet] = {}

        def move(encoded: EncodedSet) -> EncodedSet:
            return moved.setdefault(id(encoded), encoded.to(device, dtype))

        return EncodedData(
            forget={name: move(part) for name, part in self.forget.items()},
            retain=move(self.retain),
            anchors={name: part.to(device, dtype) for name, part in self.anchors.items()},
            empty=self.empty.to(device, dtype),
            fine_tunes={name: move(part) for name, part in self.fine_tunes.items()},
            varied=move(self.varied) if self.varied else None,
            words=self.words.to(device, dtype) if self.words else None,
        )


def prepare_data(
    model: Model,
    plan: HardeningPlan,
    *,
    cache: Path | str | None = None,
    on_progress: ProgressCallback = silent,
) -> EncodedData:
    """Encode everything a plan names. Text encoders and VAE leave the device, and each comes back
    only while it is at work.

    A concept's forget set is its own images, else the plan's forget set, else synthesised from
    its prompts. Without a retain set, one is synthesised from the shipped retain prompts and the
    near neighbours of those concepts that are presets. Each folder is encoded once. Synthesis
    does not depend on `plan.seed`: runs that differ in their seed share the data.
    """
    resolution = plan.resolution or model.resolution
    done: dict[ImageSet, EncodedSet] = {}

    def encoded(image_set: ImageSet, what: str) -> EncodedSet:
        if image_set not in done:
            done[image_set] = encode_image_set(
                model, image_set, resolution=resolution, cache=cache,
                skip_broken=plan.skip_broken_images, on_progress=with_message(on_progress, what),
                synthesis_batch=micro_batch_of(plan),
            )  # fmt: skip
        return done[image_set]

    offload_encoders(model)
    forget = {
        concept.name: encoded(
            forget_images(concept, plan.forget_set, model.family),
            f"forget set of {shown_name(concept.name)}",
        )
        for concept in plan.concepts
    }
    shipped = plan.retain_set or shipped_retain_set(plan.concepts, model.family)
    retain = encoded(shipped, "retain set")
    fine_tunes = {
        name: retain if name == RETAIN else encoded(ImageSet(folder=name), f"data {name}")
        for name in _data_names(plan)
    }
    wanted = varied_images(plan)
    varied = encoded(wanted, "varied set") if wanted else None
    size = resolution, resolution
    anchors = [concept.anchor for concept in plan.concepts]
    with on_device(model, *model.text_encoders):
        texts = encode_prompts(model, ["", *anchors], batch=1, size=size)
    buckets = [bucket for part in (*forget.values(), retain) for bucket in part.buckets]
    captions = texts.without(*(name for bucket in buckets for name in bucket.own.parts))
    words, prompts = None, words_wanted(plan)
    if prompts:
        words = encode_words(
            model, prompts, [part.conditioning for part in forget.values()],
            with_message(on_progress, "prompts of random words"),
        )  # fmt: skip
    return EncodedData(
        forget=forget,
        retain=retain,
        anchors={
            concept.name: captions[index : index + 1]
            for index, concept in enumerate(plan.concepts, start=1)
        },
        empty=texts[:1],
        fine_tunes=fine_tunes,
        varied=varied,
        words=words,
    )


def shared_data(
    ranks: Ranks,
    model: Model,
    plan: HardeningPlan,
    *,
    cache: Path | str | None = None,
    on_progress: ProgressCallback = silent,
) -> EncodedData:
    """Run `prepare_data` on the first rank and send the tensors to the others, so that they need
    neither a shared disk nor the images, and all draw from the same bits."""
    data = None
    if ranks.first:
        data = prepare_data(model, plan, cache=cache, on_progress=on_progress)
    else:
        offload_encoders(model)
    data = ranks.share(data, (EncodedData, EncodedSet, Bucket, Conditioning))
    assert data is not None
    if model.spare_encoders:
        model.text_encoders, model.vae = (), None  # type: ignore[assignment]
    return data


def varied_images(plan: HardeningPlan) -> ImageSet | None:
    """Return the varied set to be drawn, none of whose prompts names a concept; None without."""
    settings = plan.varied
    if not settings.images or not changes_all_weights(plan):
        return None
    prompts = varied_prompts(
        settings.images, lists=settings.lists, wide=settings.wide,
        without=[*(concept.name for concept in plan.concepts), *settings.without],
    )  # fmt: skip
    return ImageSet(
        prompts=prompts, images=settings.images, sampling_steps=settings.sampling_steps,
        guidance=settings.guidance,
    )  # fmt: skip


def words_wanted(plan: HardeningPlan) -> tuple[str, ...]:
    """Return the candidates for prompts of random words; () without."""
    if "distil" not in methods_of(plan) or not plan.distil.words_share:
        return ()
    return word_prompts(
        CANDIDATES, lists=plan.varied.lists,
        without=[*(concept.name for concept in plan.concepts), *plan.varied.without],
        unlike=[prompt for concept in plan.concepts for prompt in concept.prompts],
    )  # fmt: skip


def _data_names(plan: HardeningPlan) -> list[str]:
    """List each data name of the simulated users once; prior data if DreamBooth uses them."""
    names = [fine_tune.data for fine_tune in plan.fine_tunes]
    names += [part.prior_data for part in plan.fine_tunes if part.method == "dreambooth"]
    return list(dict.fromkeys(names))
