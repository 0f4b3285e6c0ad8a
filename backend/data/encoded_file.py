"""Latents and conditioning that someone else encoded, as one file in a folder.

    encoded.safetensors
        latents.0, latents.1 ...    [n, channels, height, width] of each size, as the VAE gave them
        captions.0, captions.1 ...  [n], index into the conditioning
        context, pooled ...         [texts, ...], the parts of the conditioning, or what the
                                    family makes it of with a network of the model

An image set whose folder has this file is read from it. The texts behind the conditioning are not
known, so a set keeps what it was given, whichever checkpoint reads it (`recaptioned`).
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import DataError
from ..families import Family, all_families
from ..families.base.conditioning import Conditioning
from ..model.encode import on_device
from ..model.model import Model
from .assembly import encode_texts, require_finite
from .encoded_set import Bucket, EncodedSet

NAME = "encoded.safetensors"
GIVEN = "\0given conditioning "  # begins the name of a text of which only the conditioning is known
_LATENTS, _CAPTIONS = "latents.", "captions."
_FORMAT = {"format": "resalign encoded set", "version": "1"}

log = logging.getLogger(__name__)


def is_encoded(folder: Path | str) -> bool:
    """Return True if a folder is an encoded set."""
    return (Path(folder).expanduser() / NAME).is_file()


def write_encoded(
    folder: Path, latents: Sequence[Tensor], texts: Sequence[Mapping[str, Tensor]]
) -> None:
    """Write one sample per entry, atomically.

    Args:
        latents: [channels, height, width] each, as the VAE gave them.
        texts: the conditioning of each, by part, without a batch: `context` is [tokens, width].
            Of longer ones the first tokens are kept, as many as the family was trained on.
    """
    if not latents or len(latents) != len(texts):
        raise DataError(
            f"encoded set: {len(latents)} latents with {len(texts)} conditionings; give as "
            "many of each, and at least one"
        )
    families = [_families(*pair) for pair in zip(latents, texts, strict=True)]
    long = sum(map(_is_long, families, texts))  # some families cut them as they read them
    texts = [_as_read(*pair) for pair in zip(families, texts, strict=True)]
    _check(families, latents, texts)
    if long:
        log.warning(
            "encoded set: %d of %d captions are longer than the model reads at once; only their "
            "beginning is used", long, len(texts),
        )  # fmt: skip
    places: dict[str, int] = {}
    kept: list[dict[str, Tensor]] = []
    captions: dict[tuple[int, ...], list[int]] = {}
    samples: dict[tuple[int, ...], list[Tensor]] = {}
    for own, sample, text in zip(families, latents, texts, strict=True):
        parts = {part: _plain(_cut(own, part, tensor)) for part, tensor in text.items()}
        name = _digest(list(parts.values()))
        if name not in places:
            places[name] = len(kept)
            kept.append(parts)
        size = tuple(sample.shape)
        samples.setdefault(size, []).append(_plain(sample))
        captions.setdefault(size, []).append(places[name])
    tensors = {part: torch.stack([text[part] for text in kept]) for part in kept[0]}
    for number, size in enumerate(sorted(samples)):
        tensors[f"{_LATENTS}{number}"] = torch.stack(samples[size])
        tensors[f"{_CAPTIONS}{number}"] = torch.tensor(captions[size])
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
    """Return the number of samples in the set; reads only the file's header."""
    with _opened(Path(folder).expanduser() / NAME) as file:
        return int(file.metadata()["samples"])


def load_encoded(model: Model, folder: Path | str) -> EncodedSet:
    """Load the set on the model's device, in float32; the empty prompt is encoded by the model."""
    path = Path(folder).expanduser() / NAME
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    numbers = sorted(
        int(name.removeprefix(_LATENTS)) for name in tensors if name.startswith(_LATENTS)
    )
    given = {n: t for n, t in tensors.items() if not n.startswith((_LATENTS, _CAPTIONS))}
    try:
        sizes = [tensors[f"{_LATENTS}{number}"] for number in numbers]
        places = [tensors[f"{_CAPTIONS}{number}"] for number in numbers]
    except KeyError as error:
        raise DataError(f"{path}: has no tensor {error}; make the set anew") from None
    for name, tensor in tensors.items():
        require_finite(tensor, f"{path}, {name},")
    space = model.latent_space
    for latents in sizes:
        if latents.shape[1] != space.channels:
            raise DataError(
                f"{path}: its latents have {latents.shape[1]} channels, the model's "
                f"{space.channels}; encode with the VAE of the model that is hardened"
            )
    empty = encode_texts(model, [""])
    given = _finished(model, given)
    conditioning = Conditioning({name: _part(path, given, name, empty) for name in empty.parts})
    names = tuple(
        GIVEN + _digest([part[index] for part in conditioning.parts.values()])
        for index in range(len(conditioning))
    )
    return EncodedSet(
        buckets=tuple(
            _bucket(model, space.normalised(latents), captions)
            for latents, captions in zip(sizes, places, strict=True)
        ),
        texts=names,
        conditioning=conditioning.to(model.device),
        empty=empty,
    )


def recaptioned(encoded: EncodedSet, read: Callable[[Sequence[str]], Conditioning]) -> EncodedSet:
    """Return the set with its captions and the empty prompt as `read` encodes them.

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
    """Raise if text encoders are to be trained on conditioning whose texts are unknown."""
    if any(text.startswith(GIVEN) for text in encoded.texts):
        raise DataError(
            f"{what} trains the text encoders, and its data are conditioning whose texts are not "
            "known; give images with captions, or a folder, instead of latents"
        )


def digest_encoded(latents: Sequence[Tensor], texts: Sequence[Mapping[str, Tensor]]) -> str:
    """Return the SHA-256 of the arguments of `write_encoded`."""
    names = dict.fromkeys(name for text in texts for name in text)
    parts = [text[name] for name in names for text in texts if name in text]
    return _digest([_plain(part) for part in (*latents, *parts)])


def _bucket(model: Model, latents: Tensor, captions: Tensor) -> Bucket:
    size = model.latent_space.pixels(latents)
    sizes = [(size, (0, 0), size)] * len(latents)
    return Bucket(
        latents.to(model.device),
        captions,
        torch.ones(len(captions), dtype=torch.float64),
        model.family.texts.of_samples(sizes, model.device),
    )


def _check(
    families: Sequence[Sequence[Family]],
    latents: Sequence[Tensor],
    texts: Sequence[Mapping[str, Tensor]],
) -> None:
    for number, (own, sample, text) in enumerate(zip(families, latents, texts, strict=True), 1):
        if not own:
            raise DataError(
                f"encoded set: latent {number} has the shape {tuple(sample.shape)}, not "
                f"[{_channels()}, height, width]; encode with the VAE of the model that is hardened"
            )
        for family in own:
            tokens, context = family.texts.tokens, text.get(family.texts.embedding)
            if context is None or context.ndim != 2 or not len(context) or len(context) % tokens:
                shape = None if context is None else tuple(context.shape)
                raise DataError(
                    f"encoded set: conditioning {number} has the shape {shape}, not [{tokens}, "
                    "width]; encode captions with the CLIP of the checkpoint"
                )
    if len({tuple(text) for text in texts}) > 1:
        raise DataError("encoded set: conditionings differ in their parts; encode all with one "
                        "CLIP")  # fmt: skip
    for part in texts[0]:
        if len({text[part].shape[-1] for text in texts}) > 1:
            raise DataError(
                f"encoded set: conditionings differ in width ({part}); encode all with one CLIP"
            )


def host_entries() -> tuple[str, ...]:
    """Name the entries beside a host's embedding that some family reads."""
    return tuple(dict.fromkeys(name for family in _in_hosts() for name in _entries(family)))


def _entries(family: Family) -> tuple[str, ...]:
    return family.host.prompts.entries if family.host.prompts else ()


def _families(sample: Tensor, text: Mapping[str, Tensor]) -> list[Family]:
    """List the families with latents of this shape and such a conditioning: a set is written before
    its model is known. Entries that only one family reads tell it from the others."""
    if sample.ndim != 3:
        return []
    fitting = [
        family for family in _in_hosts()
        if family.latents.space({}).channels == sample.shape[0]
        and set(_entries(family)) <= set(text)
    ]  # fmt: skip
    most = max((len(_entries(family)) for family in fitting), default=0)
    return [family for family in fitting if len(_entries(family)) == most]


def _in_hosts() -> list[Family]:
    """List the families of which a host's latents and conditioning are taken."""
    return [family for family in all_families() if family.host.texts]


def _channels() -> str:
    found = sorted({family.latents.space({}).channels for family in _in_hosts()})
    return " or ".join(map(str, found))


def _is_long(families: Sequence[Family], text: Mapping[str, Tensor]) -> bool:
    """True if a conditioning, as it was given, has more tokens than its family reads."""
    given = ((family, text.get(family.texts.embedding)) for family in families)
    return any(
        part is not None and part.ndim > 0 and len(part) > family.texts.tokens
        for family, part in given
    )


def _as_read(families: Sequence[Family], text: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return a conditioning as its family reads what a host encodes, where that differs."""
    for family in families:
        prompts, embedding = family.host.prompts, text.get(family.texts.embedding)
        if prompts is not None and embedding is not None and embedding.ndim == 2 and len(embedding):
            found = prompts.read(embedding[None], text)
            return {name: part[0] for name, part in found.parts.items()}
    return text


def _cut(families: Sequence[Family], part: str, tensor: Tensor) -> Tensor:
    """Keep as many tokens of a part as the family reads."""
    longest = [f.texts.tokens for f in families if f.texts.embedding == part]
    return tensor[: min(longest)] if longest else tensor


@torch.no_grad()
def _finished(model: Model, given: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the conditioning of what a host encoded, where the model itself has a part in it."""
    prompts = model.family.host.prompts
    if prompts is None:
        return given
    with on_device(model, *model.text_encoders):
        return prompts.finished(model, Conditioning(given)).parts


def _part(path: Path, given: Mapping[str, Tensor], name: str, empty: Conditioning) -> Tensor:
    found, own = given.get(name), empty[name]
    if found is None:
        raise DataError(
            f"{path}: has no {name} conditioning, which the model needs; encode the captions with "
            "the text encoders of the model that is hardened"
        )
    if found.shape[1:] != own.shape[1:]:
        raise DataError(
            f"{path}: its {name} has the shape {list(found.shape[1:])}, the model's "
            f"{list(own.shape[1:])}; encode the captions with the text encoders of the model that "
            "is hardened"
        )
    return found if own.is_floating_point() else found.to(own.dtype)  # a mask


def _opened(path: Path) -> safe_open:
    try:
        file = safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read ({error}); make the set anew") from error
    if {name: (file.metadata() or {}).get(name) for name in _FORMAT} != _FORMAT:
        raise DataError(f"{path}: is not an encoded set of this version; make the set anew")
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
