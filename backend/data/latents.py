"""Turns images and prompts into encoded sets; each piece of content is encoded once.

Every latent is encoded by itself and every caption by itself, so that neither depends on what
else is in the set: the tensors are the same from the cache, from a set that grew, and after an
interruption. Synthesised sets are latents from the start and are never decoded.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..errors import DataError
from ..model.encode import encode_images, on_device
from ..model.generate import generate_latents
from ..model.model import Model
from ..numerics.seeds import generator
from ..plan.images import ImageSet
from ..progress import Progress, ProgressCallback, as_part, silent
from .assembly import Sample, assemble, require_finite
from .cache import EncodingCache, content_key, fingerprint
from .drawn_sets import SYNTHESIS_BATCH
from .encoded_file import is_encoded, load_encoded
from .encoded_set import EncodedSet
from .image_set import CaptionedImage, read_image_folder, reason
from .pixels import BROKEN, frame, open_image

log = logging.getLogger(__name__)


def encode_image_set(
    model: Model,
    image_set: ImageSet,
    *,
    resolution: int = 0,
    cache: Path | str | None = None,
    skip_broken: bool = False,
    seed: int = 0,
    mirrored: bool = False,
    on_progress: ProgressCallback = silent,
    synthesis_batch: int = 0,
) -> EncodedSet:
    """Encode a folder, or synthesise from the set's prompts; on the denoiser's device.

    Args:
        resolution: side of a square bucket in pixels; 0 is the model's native one.
        cache: folder to keep the tensors in; None keeps nothing.
        skip_broken: leave out images that cannot be decoded, with a warning that lists them;
            otherwise they are an error that does, before anything is encoded.
        seed: of the synthesis; a folder needs none.
        mirrored: left and right exchanged. A folder's pictures are mirrored before the VAE sees
            them; a synthesised set has no pictures, so its latents are (see `mirror_latents`).
        synthesis_batch: images sampled at a time; 0 means 8. Results agree to rounding.

    A folder of latents that were encoded elsewhere (`encoded_file.py`) keeps their sizes.
    """
    if image_set.prompts:
        made = synthesise(
            model, image_set.prompts, image_set.images, steps=image_set.sampling_steps,
            guidance=image_set.guidance, resolution=resolution, seed=seed, cache=cache,
            on_progress=on_progress, batch=synthesis_batch,
        )  # fmt: skip
        return mirror_latents(made) if mirrored else made
    if is_encoded(image_set.folder):
        given = load_encoded(model, image_set.folder)
        return mirror_latents(given) if mirrored else given
    folder = read_image_folder(image_set)
    images = folder.images
    if note := folder.note(image_set.folder):
        log.warning("%s", note)
    resolution = resolution or model.resolution
    model.latent_space.check_size(resolution, resolution)
    store = EncodingCache(cache)
    usable = _usable(
        model, images, image_set.folder, resolution, store, skip_broken, on_progress,
        kind="mirrored image" if mirrored else "image",
    )  # fmt: skip
    samples = []
    with on_device(model, model.vae):
        for number, (image, key) in enumerate(usable, start=1):
            samples.append(_encoded(model, image, key, resolution, store, mirrored))
            on_progress(Progress(stage="encoding", step=number, total=len(usable)))
    _warn_of_enlarging(samples, image_set.folder)
    return assemble(model, samples, store)


def synthesise(
    model: Model,
    prompts: Sequence[str],
    images: int,
    *,
    steps: int = 25,
    guidance: float = 7.5,
    resolution: int = 0,
    seed: int = 0,
    cache: Path | str | None = None,
    on_progress: ProgressCallback = silent,
    batch: int = 0,
) -> EncodedSet:
    """Synthesise a set with the checkpoint itself: `images` latents that cycle through the prompts.

    The caption of each is its prompt. Image i depends only on its prompt, seed and i, so a
    larger set begins with the smaller one (to rounding where a batch was cut short).
    """
    if not prompts:
        raise DataError("synthesis: give at least one prompt")
    resolution = resolution or model.resolution
    store = EncodingCache(cache)
    weights = _sampler_fingerprint(model) if store else ""
    samples = []
    for start in range(0, images, SYNTHESIS_BATCH):
        indices = range(start, min(start + SYNTHESIS_BATCH, images))
        texts = [prompts[index % len(prompts)] for index in indices]
        seeds = [generator(seed, "synthesis", index).initial_seed() for index in indices]
        key = content_key("synthetic", *texts, *seeds, steps, guidance, resolution, weights)
        stored = store.load(key)
        if stored is None:
            latents = generate_latents(
                model, texts, seeds=seeds, steps=steps, guidance=guidance, height=resolution,
                width=resolution, batch=batch or SYNTHESIS_BATCH,
                on_progress=as_part(on_progress, "synthesising", start, images),
            ).cpu()  # fmt: skip
            require_finite(latents, f"synthesis of {texts[0]!r} and the prompts after it")
            stored = {"latents": latents}
            store.save(key, stored)
        size = resolution, resolution
        samples += [
            Sample(latents, text, size, (0, 0), size)
            for latents, text in zip(stored["latents"], texts, strict=True)
        ]
        on_progress(Progress(stage="synthesising", step=len(samples), total=images))
    return assemble(model, samples, store)


def mirror_latents(encoded: EncodedSet) -> EncodedSet:
    """Return the set with left and right of its latents exchanged.

    Close to the encoding of mirrored pictures, but not equal: the VAE is not symmetric.
    """
    return replace(
        encoded,
        buckets=tuple(
            replace(bucket, latents=bucket.latents.flip(-1)) for bucket in encoded.buckets
        ),
    )


def _bytes(image: CaptionedImage) -> bytes:
    try:
        return image.path.read_bytes()
    except OSError as error:
        raise DataError(f"{image.path}: cannot be read ({error.strerror})") from error


def _usable(
    model: Model,
    images: Sequence[CaptionedImage],
    folder: str,
    resolution: int,
    store: EncodingCache,
    skip_broken: bool,
    on_progress: ProgressCallback,
    kind: str = "image",
) -> list[tuple[CaptionedImage, str]]:
    """Return the images that decode (cached ones did once), each with its cache key."""
    weights = fingerprint(model.vae) if store else ""
    usable, broken = [], []
    for number, image in enumerate(images, start=1):
        data = _bytes(image)
        key = content_key(kind, data, resolution, weights) if store else ""
        try:
            if not store.holds(key):
                open_image(data)
        except BROKEN as error:
            broken.append(f"{image.name} ({reason(error)})")
        else:
            usable.append((image, key))
        on_progress(Progress(stage="checking images", step=number, total=len(images)))
    if broken and not skip_broken:
        raise DataError(
            f"image set {folder}: {len(broken)} of {len(images)} images are broken: "
            f"{', '.join(broken)}; fix or remove them, or allow skipping (skip_broken_images)"
        )
    if broken:
        log.warning("image set %s: %d images skipped: %s", folder, len(broken), ", ".join(broken))
    if not usable:
        raise DataError(f"image set {folder}: none of its {len(images)} images can be read")
    return usable


def _encoded(
    model: Model,
    image: CaptionedImage,
    key: str,
    resolution: int,
    store: EncodingCache,
    mirrored: bool = False,
) -> Sample:
    stored = store.load(key)
    if stored is None:
        framed = frame(open_image(image.path), resolution, model.latent_space.step)
        pixels = framed.pixels.flip(-1) if mirrored else framed.pixels
        latents = encode_images(model, pixels[None])[0].cpu()
        require_finite(latents, f"image {image.path}")
        stored = {"latents": latents, "frame": torch.tensor([*framed.original, *framed.crop])}
        store.save(key, stored)
    height, width, top, left = stored["frame"].tolist()
    latents = stored["latents"]
    size = model.latent_space.pixels(latents)
    return Sample(latents, image.caption, (height, width), (top, left), size)


def _warn_of_enlarging(samples: Sequence[Sample], folder: str) -> None:
    small = [sample for sample in samples if sample.enlarged]
    if small:
        log.warning(
            "image set %s: %d of %d images are smaller than the size they are trained at, and "
            "were enlarged to it", folder, len(small), len(samples),
        )  # fmt: skip


def _sampler_fingerprint(model: Model) -> str:
    """Return the digest of everything that turns a prompt and a seed into latents."""
    weights = fingerprint(model.denoiser, *model.text_encoders)
    return content_key("sampler", weights, model.family.name, *model.process.fingerprint())
