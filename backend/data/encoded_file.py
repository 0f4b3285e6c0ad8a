"""Latents and conditioning that someone else encoded, as one file in a folder.

    encoded.safetensors
        latents.0, latents.1 ...    [n, 4, height / 8, width / 8] of each size, as the VAE gave
                                    them: not times its scaling factor
        captions.0, captions.1 ...  [n], index into the conditioning
        context                     [texts, 77, width]
        pooled                      [texts, width]; only where it was given

An image set whose folder has this file is read from it. The texts behind the conditioning are not
known, so a set keeps what it was given, whichever checkpoint reads it (`recaptioned`).
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import DataError
from ..model.denoiser import Conditioning
from ..model.encode import TOKENS, size_ids
from ..model.model import Model
from .assembly import encode_texts, require_finite
from .encoded_set import Bucket, EncodedSet

NAME = "encoded.safetensors"
GIVEN = "\0given conditioning "  # begins the name of a text of which only the conditioning is known
_FORMAT = {"format": "resalign encoded set", "version": "1"}

log = logging.getLogger(__name__)


def is_encoded(folder: Path | str) -> bool:
    """Whether a folder is such a set."""
    return (Path(folder).expanduser() / NAME).is_file()


def write_encoded(
    folder: Path,
    latents: Sequence[Tensor],
    contexts: Sequence[Tensor],
    pooled: Sequence[Tensor | None],
) -> None:
    """Write one sample per entry: wholly or not at all.

    Args:
        latents: [4, height / 8, width / 8] each, not times the VAE's scaling factor.
        contexts: [tokens, width] each; of longer ones the first 77 tokens are kept, which is
            what Stable Diffusion was trained on.
        pooled: [width] each, or None for all.
    """
    _check(latents, contexts, pooled)
    texts: dict[str, int] = {}
    kept: list[tuple[Tensor, Tensor | None]] = []
    captions: dict[tuple[int, ...], list[int]] = {}
    samples: dict[tuple[int, ...], list[Tensor]] = {}
    for sample, context, pool in zip(latents, contexts, pooled, strict=True):
        context = _plain(context[:TOKENS])
        pool = None if pool is None else _plain(pool)
        name = _digest([context] if pool is None else [context, pool])
        if name not in texts:
            texts[name] = len(kept)
            kept.append((context, pool))
        size = tuple(sample.shape)
        samples.setdefault(size, []).append(_plain(sample))
        captions.setdefault(size, []).append(texts[name])
    tensors = {"context": torch.stack([context for context, _ in kept])}
    if kept[0][1] is not None:
        tensors["pooled"] = torch.stack([pool for _, pool in kept if pool is not None])
    for number, size in enumerate(sorted(samples)):
        tensors[f"latents.{number}"] = torch.stack(samples[size])
        tensors[f"captions.{number}"] = torch.tensor(captions[size])
    blob = safetensors.torch.save(tensors, {**_FORMAT, "samples": str(len(latents))})
    folder.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".writing-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(blob)
        os.replace(temporary, folder / NAME)
    finally:
        Path(temporary).unlink(missing_ok=True)


def count_encoded(folder: Path | str) -> int:
    """How many samples the set has, from the file's header alone."""
    with _opened(Path(folder).expanduser() / NAME) as file:
        return int(file.metadata()["samples"])


def load_encoded(model: Model, folder: Path | str) -> EncodedSet:
    """The set on the model's device, in float32; the empty prompt is encoded by the model."""
    path = Path(folder).expanduser() / NAME
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    try:
        context, pooled = tensors["context"], tensors.get("pooled")
        sizes = [tensors[f"latents.{number}"] for number in range((len(tensors) - 1) // 2)]
        places = [tensors[f"captions.{number}"] for number in range(len(sizes))]
    except KeyError as error:
        raise DataError(f"{path}: has no tensor {error}; make the set anew") from None
    for name, tensor in tensors.items():
        require_finite(tensor, f"{path}, {name},")
    empty = encode_texts(model, [""])
    _fits(path, "context", context, empty.context)
    if empty.pooled is None:
        pooled = None
    elif pooled is None:
        raise DataError(
            f"{path}: has no pooled conditioning, which SDXL needs; encode the captions with "
            "the text encoders of the model that is hardened"
        )
    else:
        _fits(path, "pooled", pooled, empty.pooled)
    names = tuple(
        GIVEN + _digest([context[index]] if pooled is None else [context[index], pooled[index]])
        for index in range(len(context))
    )
    vae: Any = model.vae
    factor = float(vae.config.scaling_factor)
    return EncodedSet(
        buckets=tuple(
            _bucket(model, latents * factor, captions)
            for latents, captions in zip(sizes, places, strict=True)
        ),
        texts=names,
        conditioning=Conditioning(context, pooled).to(model.device),
        empty=empty,
    )


def recaptioned(encoded: EncodedSet, read: Callable[[Sequence[str]], Conditioning]) -> EncodedSet:
    """The set with its captions and the empty prompt as `read` encodes them.

    Given conditioning stays: what it was made from is not known.
    """
    known = [text for text in encoded.texts if not text.startswith(GIVEN)]
    texts = read(["", *known])
    if len(known) == len(encoded.texts):
        return replace(encoded, conditioning=texts[1:], empty=texts[:1])
    place = {text: number for number, text in enumerate(known, start=1)}
    parts = [
        texts[place[text] : place[text] + 1] if text in place
        else encoded.conditioning[number : number + 1]
        for number, text in enumerate(encoded.texts)
    ]  # fmt: skip
    return replace(encoded, conditioning=Conditioning.cat(parts), empty=texts[:1])


def require_texts(encoded: EncodedSet, what: str) -> None:
    """Whoever trains text encoders must know what they read."""
    if any(text.startswith(GIVEN) for text in encoded.texts):
        raise DataError(
            f"{what} trains the text encoders, and its data are conditioning whose texts are not "
            "known; give images with captions, or a folder, instead of latents"
        )


def digest_encoded(
    latents: Sequence[Tensor], contexts: Sequence[Tensor], pooled: Sequence[Tensor | None]
) -> str:
    """SHA-256 of what `write_encoded` would be given."""
    given = [_plain(part) for part in (*latents, *contexts)]
    return _digest([*given, *(_plain(part) for part in pooled if part is not None)])


def _bucket(model: Model, latents: Tensor, captions: Tensor) -> Bucket:
    ids = None
    if model.family == "sdxl":
        size = 8 * latents.shape[2], 8 * latents.shape[3]
        ids = torch.tensor([size_ids(size, (0, 0), size)] * len(latents), device=model.device)
    return Bucket(
        latents.to(model.device), captions, torch.ones(len(captions), dtype=torch.float64), ids
    )


def _check(
    latents: Sequence[Tensor], contexts: Sequence[Tensor], pooled: Sequence[Tensor | None]
) -> None:
    if not latents or not len(latents) == len(contexts) == len(pooled):
        raise DataError(
            f"encoded set: {len(latents)} latents with {len(contexts)} conditionings; give as "
            "many of each, and at least one"
        )
    for number, (sample, context) in enumerate(zip(latents, contexts, strict=True), start=1):
        if sample.ndim != 3 or sample.shape[0] != 4:
            raise DataError(
                f"encoded set: latent {number} has the shape {tuple(sample.shape)}, not [4, "
                "height, width]; encode with the VAE of the Stable Diffusion that is hardened"
            )
        if context.ndim != 2 or not len(context) or len(context) % TOKENS:
            raise DataError(
                f"encoded set: conditioning {number} has the shape {tuple(context.shape)}, not "
                f"[{TOKENS}, width]; encode captions with the CLIP of the checkpoint"
            )
    if len({context.shape[1] for context in contexts}) > 1:
        raise DataError("encoded set: conditionings differ in width; encode all with one CLIP")
    widths = {None if part is None else part.shape[-1] for part in pooled}
    if len(widths) > 1:
        raise DataError("encoded set: pooled conditionings differ; encode all with one CLIP")
    long = sum(len(context) > TOKENS for context in contexts)
    if long:
        log.warning(
            "encoded set: %d of %d captions are longer than CLIP reads at once; only their first "
            "%d tokens are used", long, len(contexts), TOKENS - 2,
        )  # fmt: skip


def _fits(path: Path, what: str, found: Tensor, own: Tensor) -> None:
    if found.shape[1:] != own.shape[1:]:
        raise DataError(
            f"{path}: its {what} has the shape {list(found.shape[1:])}, the model's "
            f"{list(own.shape[1:])}; encode the captions with the text encoders of the model that "
            "is hardened"
        )


def _opened(path: Path) -> safe_open:
    try:
        file = safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read ({error}); make the set anew") from error
    if {name: (file.metadata() or {}).get(name) for name in _FORMAT} != _FORMAT:
        raise DataError(f"{path}: is no encoded set of this version; make the set anew")
    return file


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().float().contiguous()


def _digest(tensors: Sequence[Tensor]) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        tensor = tensor.detach().cpu().contiguous()
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
