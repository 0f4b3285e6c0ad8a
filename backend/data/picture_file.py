"""Opens picture files as they are found: any format of Pillow, odd metadata, 16 bits, transparency.

Metadata never decide whether a picture is good. Text chunks of a PNG that Pillow refuses (workflows
of image generators can exceed its limits) are skipped, and an EXIF block that cannot be read states
no orientation.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

# What Pillow's readers raise on damaged files; anything else is a bug and keeps its traceback.
BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, OverflowError, struct.error,
    zlib.error, Image.DecompressionBombError,
)  # fmt: skip
# Formats that Pillow recognises without a decoder of its own. EPS would run Ghostscript.
_NOT_READ = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
_ORIENTATION = 0x0112  # EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_PNG = b"\x89PNG\r\n\x1a\n"
_SPREAD = {"L;2": 85, "L;4": 17}  # how a gray of few bits becomes one of 8
_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"eXIf")


@cache
def _suffixes() -> frozenset[str]:
    formats = Image.registered_extensions()  # also loads all of Pillow's readers
    return frozenset(
        suffix for suffix, name in formats.items() if name in Image.OPEN and name not in _NOT_READ
    )


def is_picture(path: Path) -> bool:
    """Return True if a file has a suffix that this Pillow reads."""
    return path.suffix.lower() in _suffixes()


def open_image(source: Path | bytes) -> Image.Image:
    """Open a picture in RGB, upright by its EXIF tag, transparency laid on white.

    Returns the first frame of an animation. Raises one of `BROKEN` where the file is damaged.
    """
    try:
        return _opened(source)
    except BROKEN:
        plain = _without_texts(source if isinstance(source, bytes) else source.read_bytes())
        if plain is None:
            raise
        return _opened(plain)


def _opened(source: Path | bytes) -> Image.Image:
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    with warnings.catch_warnings():
        # about damaged metadata, which are read together with the pixels
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        with Image.open(file) as opened:
            raw = _raw_mode(opened)
            opened.load()
            image = _on_white(opened, raw)
            turn = _TURNS.get(_orientation(opened))
            return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(_ORIENTATION)
    except (*BROKEN, TypeError, KeyError, AttributeError, ZeroDivisionError):
        return 1  # what cannot be read states nothing; viewers show the picture as it is
    return found if isinstance(found, int) else 1


def _raw_mode(image: Image.Image) -> str:
    """Return how a file stores its pixels, such as `RGB;16B`; known before they are loaded only."""
    tiles = getattr(image, "tile", None)
    args = tiles[0][3] if tiles else ""
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _on_white(image: Image.Image, raw: str) -> Image.Image:
    """Return the picture in RGB of 8 bits, its transparency laid on white.

    Where a PNG has one clear colour, Pillow keeps it in the file's own depth, but not the pixels:
    the upper 8 of 16 bits remain, and 2 or 4 bits are spread over 8.
    """
    clear = image.info.get("transparency")
    if image.mode.startswith("I"):  # 16 bits a pixel: Pillow would clip, not scale
        values = np.asarray(image)
        if values.size and int(values.max()) > 65535:
            raise ValueError("its pixels have more than 16 bits")
        gray = (values.clip(0, 65535) / 257).astype(np.uint8)
        if isinstance(clear, int):
            gray[values == clear] = 255
        return Image.fromarray(gray).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are floating point numbers, whose white is not known")
    if image.mode == "RGB" and isinstance(clear, tuple) and raw == "RGB;16B":
        pixels = np.asarray(image).copy()
        pixels[(pixels == [value >> 8 for value in clear]).all(axis=2)] = 255
        return Image.fromarray(pixels)
    if image.mode == "L" and isinstance(clear, int) and raw in _SPREAD:
        gray = np.asarray(image).copy()
        gray[gray == clear * _SPREAD[raw]] = 255
        return Image.fromarray(gray).convert("RGB")
    if "A" in image.mode or "a" in image.mode or clear is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _without_texts(data: bytes) -> bytes | None:
    """Return a PNG without its text and EXIF chunks; None if it is not one or has none."""
    if not data.startswith(_PNG):
        return None
    kept, position, dropped = [_PNG], len(_PNG), False
    while position + 12 <= len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        end = position + 12 + length
        if data[position + 4 : position + 8] in _TEXTS:
            dropped = True
        else:
            kept.append(data[position:end])
        position = end
    return b"".join(kept) if dropped else None
