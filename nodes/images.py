"""Image Set: pictures from a folder, from the graph, or made by the model itself."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..backend.errors import ConfigError, DataError
from . import places
from .plan import folder_stamp
from .types import CATEGORY, Images


class ImageSet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ResAlign_ImageSet",
            display_name="Image Set",
            category=CATEGORY,
            description="Images with captions from exactly one source: a folder, prompts to "
            "synthesise from, images, or latents with conditioning.",
            is_input_list=True,
            inputs=[
                io.String.Input(
                    "folder", default="",
                    tooltip="Folder of images with captions (.txt beside them, or "
                    "metadata.jsonl); absolute, or below ComfyUI's input folder.",
                ),
                io.String.Input(
                    "prompts", default="", multiline=True,
                    tooltip="One a line: the model that is hardened makes the images itself.",
                ),
                io.Int.Input(
                    "count", default=64, min=1, max=100_000,
                    tooltip="How many images to make from the prompts.",
                ),
                io.String.Input(
                    "caption", default="", tooltip="For images that have no caption of their own."
                ),
                io.Image.Input("images", optional=True, tooltip="Images of the graph."),
                io.String.Input(
                    "captions", optional=True, force_input=True,
                    tooltip="Captions of `images`: one for all, or one each.",
                ),
                io.Latent.Input(
                    "latents", optional=True,
                    tooltip="Latents of Make Training Dataset; connect `conditioning` too.",
                ),
                io.Conditioning.Input(
                    "conditioning", optional=True,
                    tooltip="Conditioning of Make Training Dataset: one for all, or one each.",
                ),
            ],
            outputs=[Images.Output(display_name="images", tooltip="For the other ResAlign nodes.")],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, folder: Any = None, **_: Any) -> str:
        path = resolved(_text(folder))
        return folder_stamp(path) if path else ""

    @classmethod
    def execute(
        cls,
        folder: Any = "",
        prompts: Any = "",
        count: Any = 64,
        caption: Any = "",
        images: Any = None,
        captions: Any = None,
        latents: Any = None,
        conditioning: Any = None,
    ) -> io.NodeOutput:
        from ..backend.plan.hardening import ImageSet as Value

        lines = _lines(prompts)
        source = _source(_text(folder), lines, images, captions, latents, conditioning)
        shared = _text(caption)
        if source == "prompts":
            return io.NodeOutput(Value(prompts=lines, images=int(_first(count))))
        if source == "folder":
            return io.NodeOutput(Value(folder=str(_existing(_text(folder))), caption=shared))
        if source == "images":
            return io.NodeOutput(Value(folder=str(store_images(images, captions, shared))))
        return io.NodeOutput(Value(folder=str(store_latents(latents, conditioning))))


def resolved(folder: str) -> Path | None:
    """The folder that a user means; None where none is given."""
    if not folder:
        return None
    import folder_paths

    path = Path(folder).expanduser()
    return path if path.is_absolute() else Path(folder_paths.get_input_directory()) / path


def store_images(images: Any, captions: Any, shared: str) -> Path:
    """Images [B, H, W, 3] from 0 to 1 and their captions as a folder; one there is kept."""
    pictures = list(_pictures(images))
    texts = [" ".join(text.split()) for text in _texts(captions)]
    if len(texts) not in (0, 1, len(pictures)):
        raise ConfigError(
            f"Image Set: {len(texts)} captions for {len(pictures)} images; give one for all or "
            "one each"
        )
    texts = texts * len(pictures) if len(texts) == 1 else texts or [""] * len(pictures)
    texts = [text or shared for text in texts]
    if missing := [number for number, text in enumerate(texts, 1) if not text]:
        raise ConfigError(
            f"Image Set: image {missing[0]} has no caption ({len(missing)} of {len(texts)} have "
            "none); fill in `caption`, or connect `captions`"
        )
    found = hashlib.sha256()
    for picture, text in zip(pictures, texts, strict=True):
        found.update(repr((picture.shape, text)).encode())
        found.update(picture.tobytes())

    def write(folder: Path) -> None:
        from PIL import Image

        for number, (picture, text) in enumerate(zip(pictures, texts, strict=True), 1):
            Image.fromarray(picture).save(folder / f"{number:05}.png", compress_level=1)
            (folder / f"{number:05}.txt").write_text(text + "\n", encoding="utf-8")

    return _stored(places.key("images", found.hexdigest()), write)


def store_latents(latents: Any, conditioning: Any) -> Path:
    """LATENT and CONDITIONING of core's dataset nodes as a folder; one there is kept."""
    from ..backend.data.encoded_file import digest_encoded, write_encoded

    batches = [list(_samples(one)) for one in _listed(latents)]
    told = [list(_pairs(one)) for one in _listed(conditioning)]
    samples = [sample for batch in batches for sample in batch]
    if len(told) == len(batches):  # one conditioning of a batch is that of all in it
        told = [
            own * len(batch) if len(own) == 1 else own
            for own, batch in zip(told, batches, strict=True)
        ]
    pairs = [pair for own in told for pair in own]
    pairs = pairs * len(samples) if len(pairs) == 1 else pairs
    if len(pairs) != len(samples):
        raise DataError(
            f"Image Set: {len(samples)} latents and {len(pairs)} conditionings; connect one for "
            "all or one each, as Make Training Dataset gives them"
        )
    name = places.key("latents", digest_encoded(samples, pairs))
    return _stored(name, lambda folder: write_encoded(folder, samples, pairs))


def _source(
    folder: str, prompts: Sequence[str], images: Any, captions: Any, latents: Any, conditioning: Any
) -> str:
    """Which of the sources is given; anything but exactly one is an error."""
    given = {
        "folder": bool(folder),
        "prompts": bool(prompts),
        "images": bool(_listed(images)),
        "latents": bool(_listed(latents)),
    }
    found = [name for name, there in given.items() if there]
    if len(found) > 1:
        raise ConfigError(f"Image Set: has {' and '.join(found)}; keep one of them")
    if _listed(conditioning) and found != ["latents"]:
        raise ConfigError("Image Set: conditioning belongs to latents; connect `latents` too")
    if _listed(captions) and found != ["images"]:
        raise ConfigError("Image Set: captions belong to images; connect `images` too")
    if not found:
        raise ConfigError(
            "Image Set is empty: name a folder, write prompts, or connect images or latents"
        )
    if found == ["latents"] and not _listed(conditioning):
        raise ConfigError("Image Set: latents need `conditioning`; connect it too")
    return found[0]


def _existing(folder: str) -> Path:
    path = resolved(folder)
    if path is None or not path.is_dir():
        raise DataError(
            f"Image Set: there is no folder {path}; name one below ComfyUI's input folder, or an "
            "absolute path"
        )
    return path


def _stored(name: str, write: Callable[[Path], None]) -> Path:
    """A folder of the sets by this name, written wholly or not at all."""
    folder = places.sets() / name
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".writing-"))
    try:
        write(half)
        try:
            os.replace(half, folder)
        except OSError:
            if not folder.is_dir():  # otherwise another prompt wrote the same meanwhile
                raise
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return folder


def _pictures(images: Any) -> Iterator[Any]:
    """Each image as bytes, [H, W, 3 or 4]."""
    import torch

    for batch in _listed(images):
        batch = batch[None] if batch.ndim == 3 else batch
        if batch.ndim != 4 or batch.shape[-1] not in (3, 4):
            raise DataError(
                f"Image Set: an image has the shape {tuple(batch.shape)}, not "
                "[images, height, width, 3]"
            )
        if not batch.isfinite().all():
            raise DataError("Image Set: an image has values that are not finite; make it anew")
        yield from (batch.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def _samples(latent: Any) -> Iterator[Any]:
    samples = latent["samples"] if isinstance(latent, dict) else latent
    if samples.ndim != 4:
        raise DataError(
            f"Image Set: latents have the shape {tuple(samples.shape)}, not [images, channels, "
            "height, width]; those of videos and of other models cannot be used"
        )
    yield from samples


def _pairs(conditioning: Any) -> Iterator[dict[str, Any]]:
    """Parts of each entry: context [tokens, width], and pooled [width] where there is one."""
    for tensor, options in conditioning:
        for name in ("control", "area", "mask", "gligen"):
            if options.get(name) is not None:
                raise DataError(
                    f"Image Set: a conditioning carries {name}, which training does not use; "
                    "connect plain text conditioning"
                )
        pooled = options.get("pooled_output")
        for index, context in enumerate(tensor):
            parts = {"context": context}
            if pooled is not None:
                parts["pooled"] = pooled[index if len(pooled) > 1 else 0]
            yield parts


def _listed(value: Any) -> list[Any]:
    items = value if isinstance(value, list) else [value]
    return [item for item in items if item is not None]


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else value


def _text(value: Any) -> str:
    found = _first(value)
    return str(found).strip() if found else ""


def _texts(value: Any) -> list[str]:
    return [str(item) for item in _listed(value)]


def _lines(value: Any) -> tuple[str, ...]:
    lines = (line.strip() for line in "\n".join(_texts(value)).splitlines())
    return tuple(dict.fromkeys(line for line in lines if line))
