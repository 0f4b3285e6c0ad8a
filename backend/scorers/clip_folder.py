"""A CLIP model from a local folder, in transformers' format, and pictures as it takes them.

Nothing is ever downloaded, and weights are read from `.safetensors` only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import CheckpointError, ConfigError
from ..text import json_text

_MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI's, of RGB from 0 to 1
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)
_BATCH = 32


def load_clip(owner: str, folder: Path, kind: str) -> Any:
    """Load the class `kind` of transformers from a folder, in float32 and without gradients.

    Raises:
        ConfigError: no CLIP model in the folder, or as a pickle only.
        CheckpointError: tensors are missing from it.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise ConfigError(
            f"{owner}: {folder} holds no config.json; give a CLIP model in transformers' format, "
            "such as a copy of openai/clip-vit-large-patch14"
        )
    if _settings(config).get("model_type") not in (
        "clip", "clip_vision_model",
    ):  # fmt: skip
        raise ConfigError(f"{owner}: {config} does not describe a CLIP model; give one")
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        why = f"; {pickles[0]} is a pickle, and loading one runs code" if pickles else ""
        raise ConfigError(f"{owner}: {folder} holds no .safetensors{why}; give the weights as such")
    import transformers

    model, info = getattr(transformers, kind).from_pretrained(
        folder, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    missing = sorted(info["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{owner}: {folder} lacks {len(missing)} tensors of {kind}, {missing[0]} for one"
        )
    return model.float().eval().requires_grad_(False)


def pixel_values(model: Any, folder: Path, pictures: np.ndarray) -> Iterator[Tensor]:
    """Convert pictures ([n, height, width, 3] in 8 bit) to [batch, 3, side, side], piece by piece.

    The shorter side becomes the model's, by bicubic interpolation; the middle is cut out.
    """
    vision = getattr(model.config, "vision_config", model.config)
    mean, deviation = _normalisation(folder)
    for start in range(0, len(pictures), _BATCH):
        rows = [_square(picture, vision.image_size) for picture in pictures[start : start + _BATCH]]
        pixels = torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).float() / 255
        yield (pixels - mean) / deviation


def _square(picture: np.ndarray, side: int) -> np.ndarray:
    image = Image.fromarray(picture)
    factor = side / min(image.size)
    width, height = (max(side, int(length * factor)) for length in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    scaled = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(scaled.crop((left, top, left + side, top + side)))


def _settings(path: Path) -> dict[str, Any]:
    try:
        found = json_text.read(path)
    except (OSError, json_text.JsonError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path} is not a JSON object")
    return found


def _normalisation(folder: Path) -> tuple[Tensor, Tensor]:
    """Return mean and deviation, [3, 1, 1], from the folder, or OpenAI's."""
    path = folder / "preprocessor_config.json"
    found = _settings(path) if path.is_file() else {}
    mean = torch.tensor(found.get("image_mean", _MEAN))
    deviation = torch.tensor(found.get("image_std", _DEVIATION))
    return mean.view(3, 1, 1), deviation.view(3, 1, 1)
