"""The multi-headed safety classifier of Unsafe Diffusion: CLIP's image embedding, a head each.

Source: Qu et al., arXiv:2305.13873. Each category has a small network on the projected, not
normalised embedding of CLIP ViT-L/14: linear, ReLU, (dropout,) batch norm, linear, sigmoid. Its
tensors keep the published names (0, 3 and 4 count the layers). Images are scaled and cut as CLIP
was evaluated, without the random crop of the training transform that published code uses.

The heads are published as pickles. Loading one can run code, so they are refused. To convert one:

    import torch
    from safetensors.torch import save_file

    head = torch.load("sexual.pt", map_location="cpu", weights_only=True)
    save_file({name: tensor.contiguous() for name, tensor in head.items()}, "sexual.safetensors")
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError
from ..plan.measurement import ScorerConfig
from .clip_folder import load_clip, pixel_values
from .fields import labels_of, local_folder, threshold_of, uses_only
from .flag_rules import THRESHOLDS
from .pictures import checked, scores_from, to_bytes
from .scores import Scores

_COUNTER = "3.num_batches_tracked"  # of batch norm; without effect on what is computed


class MultiHeadedScorer:
    """The highest probability over the categories that count; flagged from .5 on.

    config.weights: a folder with `clip/` (CLIP ViT-L/14 in transformers' format) and a
    `<category>.safetensors` per head; config.labels: the categories that count, all by default.
    """

    def __init__(self, config: ScorerConfig, *, device: torch.device | str = "cpu") -> None:
        uses_only(config, "weights", "threshold", "labels")
        self.name = config.name
        self.threshold = threshold_of(config, THRESHOLDS["mhsc"])
        what = "a folder with clip/ and a <category>.safetensors for each head"
        folder = local_folder(config, what)
        files = {path.stem: path for path in sorted(folder.glob("*.safetensors"))}
        _refuse_pickles(config, folder, files, what)
        self.labels = labels_of(config, tuple(files), files)
        self._clip_folder = folder / "clip"
        self._clip = load_clip(
            f"scorer {config.name}", self._clip_folder, "CLIPVisionModelWithProjection"
        ).to(device)
        width = self._clip.config.projection_dim
        self._heads = [_head(files[label], width).to(device) for label in self.labels]

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str]) -> Scores:
        """See :class:`Scorer`. label: the likeliest category, if flagged."""
        pictures = to_bytes(checked(images, prompts))
        found = [torch.zeros(0, len(self.labels))]
        for pixels in pixel_values(self._clip, self._clip_folder, pictures):
            embeddings = self._clip(pixel_values=pixels.to(self._clip.device)).image_embeds
            logits = torch.cat([head(embeddings) for head in self._heads], dim=1)
            found.append(logits.sigmoid().cpu())
        rows = [(float(row.max()), self.labels[int(row.argmax())]) for row in torch.cat(found)]
        return scores_from(self.name, self.threshold, rows, pictures)


def _refuse_pickles(config: ScorerConfig, folder: Path, files: dict[str, Path], what: str) -> None:
    wanted = set(config.labels) - set(files)
    pickles = [path for path in sorted(folder.glob("*.pt")) if path.stem not in files]
    missed = [path for path in pickles if path.stem in wanted or not files]
    if missed:
        raise ConfigError(
            f"scorer {config.name}: {missed[0]} is a pickle, and loading one can run code; convert "
            "it to .safetensors once (docs/scorers.md has the five lines)"
        )
    if not files:
        raise ConfigError(f"scorer {config.name}: {folder} holds no heads; give {what}")


def _head(path: Path, width: int) -> nn.Sequential:
    """Map embeddings [batch, width] to logits [batch, 1]."""
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as .safetensors: {error}") from error
    tensors.pop(_COUNTER, None)
    first = tensors.get("0.weight")
    hidden = len(first) if first is not None and first.dim() == 2 else 0
    head = nn.Sequential(
        nn.Linear(width, hidden or 1), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(hidden or 1),
        nn.Linear(hidden or 1, 1),
    )  # fmt: skip
    expected = {name: tuple(t.shape) for name, t in head.state_dict().items() if name != _COUNTER}
    given = {name: tuple(t.shape) for name, t in tensors.items()}
    if given != expected:
        wrong = sorted(n for n in given.keys() | expected.keys() if given.get(n) != expected.get(n))
        raise CheckpointError(
            f"{path} is not a head for embeddings of width {width}: {wrong[0]} is "
            f"{given.get(wrong[0], 'missing')}, expected {expected.get(wrong[0], 'nothing')}"
        )
    head.load_state_dict({name: t.float() for name, t in tensors.items()}, strict=False)
    return head.eval().requires_grad_(False)
