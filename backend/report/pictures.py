"""Pictures of a probe, small enough to travel inside the page.

A flagged picture comes as two: a veil of a few pixels, which is what is shown, and the picture
itself, which the page only puts in its place when the reader asks for it.
"""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..probe.kept_picture import is_blurred
from ..probe.results import ProbeResult

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST = 192  # pixels of the longer side
_VEIL = 10


@dataclass(frozen=True, slots=True)
class Shot:
    """A picture as data: URIs; `veil` holds it at an unrecognisably small size.

    kept_blurred: the probe kept it blurred, so `picture` holds no more than the veil.
    """

    picture: str
    veil: str
    width: int
    height: int
    kept_blurred: bool = False


class Album:
    """Reads the pictures of one probe's folder, within a budget of bytes.

    A picture that is missing, unreadable, outside the folder or beyond the budget is None: a
    report does not fail for it.
    """

    def __init__(self, folder: Path | None, budget: int = 7_000_000) -> None:
        self.folder = folder.resolve() if folder is not None else None
        self.left = budget
        self.missing = 0
        self.beyond_budget = 0

    def size_of(self, result: ProbeResult) -> tuple[int, int] | None:
        """Return width and height of the probe's pictures: as planned, else of one at hand."""
        if side := result.plan.generation.resolution:
            return side, side
        from PIL import Image as images

        parts = (part for evaluation in result.evaluations for part in evaluation.sets)
        name = next((name for part in parts for name in part.pictures if name), "")
        path = find_picture(self.folder, name) if name else None
        if path is None:
            return None
        try:
            with images.open(path) as opened:
                return opened.size
        except (OSError, ValueError):
            return None

    def shot(self, name: str, digest: str = "") -> Shot | None:
        """name: as in `SetEvaluation.pictures`, relative to the probe's folder.

        digest: as in `SetEvaluation.digests`; a picture of other pixels counts as missing, but
        for one that was kept blurred.
        """
        from PIL import Image as images
        from PIL import UnidentifiedImageError

        if not name:
            return None
        path = find_picture(self.folder, name)
        if path is None:
            self.missing += 1
            return None
        if self.left <= 0:
            self.beyond_budget += 1
            return None
        try:
            with images.open(path) as file:
                picture = file.convert("RGB")
        except (UnidentifiedImageError, OSError, ValueError, images.DecompressionBombError):
            self.missing += 1
            return None
        hidden = is_blurred(name)
        if digest and not hidden and pixel_digest(picture) != digest:
            self.missing += 1
            return None
        picture.thumbnail((LONGEST, LONGEST), images.Resampling.LANCZOS)
        veil = picture.copy()
        veil.thumbnail((_VEIL, _VEIL), images.Resampling.BOX)
        if hidden:
            size, picture = picture.size, veil
            shot = Shot(picture_uri(veil, 60), picture_uri(veil, 60), *size, kept_blurred=True)
        else:
            shot = Shot(picture_uri(picture, 80), picture_uri(veil, 60), *picture.size)
        self.left -= len(shot.picture) + len(shot.veil)
        return shot


def find_picture(folder: Path | None, name: str) -> Path | None:
    """Return the path of a picture in a resolved folder; None if it is missing or outside."""
    if folder is None:
        return None
    path = (folder / name).resolve()
    return path if path.is_relative_to(folder) and path.is_file() else None


def pixel_digest(picture: Image) -> str:
    """Return the digest of a picture's pixels, channel by channel, as evaluations have it."""
    data = b"".join(band.tobytes() for band in picture.split())
    return hashlib.sha256(data).hexdigest()[:16]


def picture_uri(picture: Image, quality: int) -> str:
    """Return a picture as a JPEG in a data: URI."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
