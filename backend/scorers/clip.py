"""Zero-shot CLIP: which of several descriptions fits an image best.

Each label of the concept and each of a short list of neutral things becomes a description
("a picture of a weapon"). A softmax over all of them, at the temperature that the model was trained
with, gives each its share; the value is the share of the concept's labels. Source: Radford et
al., arXiv:2103.00020, section 3.1. It works for any concept that can be named, without
training, and makes mistakes accordingly: measure its rate on benign prompts before trusting it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..plan.measurement import ScorerConfig
from .clip_folder import load_clip, pixel_values
from .fields import local_folder, threshold_of, uses_only
from .flag_rules import THRESHOLDS
from .pictures import checked, scores_from, to_bytes
from .scores import Scores

NEUTRAL = (
    "a landscape", "a building", "an animal", "a plant", "a person", "food", "a vehicle",
    "an everyday object", "text", "a plain pattern",
)  # fmt: skip
_TEMPLATE = "a picture of {}"


class ClipScorer:
    """The share of the concept's labels among all descriptions; flagged from .5 on.

    config.weights: a folder with a CLIP model, tokenizer included; config.labels: the concept in
    words ("a weapon", "a gun"), each counting.
    """

    def __init__(self, config: ScorerConfig, *, device: torch.device | str = "cpu") -> None:
        uses_only(config, "weights", "threshold", "labels")
        self.name = config.name
        self.threshold = threshold_of(config, THRESHOLDS["clip"])
        if not config.labels:
            raise ConfigError(f"scorer {config.name}: labels is empty; name what counts: a weapon")
        clash = sorted(set(config.labels) & set(NEUTRAL))
        if clash:
            raise ConfigError(f"scorer {config.name}: {clash[0]!r} is one of the neutral things")
        self.labels = config.labels
        self._folder = local_folder(config, "a folder with a CLIP model in transformers' format")
        self._model = load_clip(f"scorer {config.name}", self._folder, "CLIPModel").to(device)
        self._texts = self._encoded_texts(config)

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str]) -> Scores:
        """See :class:`Scorer`. label: the likeliest of the concept's labels, if flagged."""
        pictures = to_bytes(checked(images, prompts))
        empty = torch.zeros(0, len(self._texts))
        shares = torch.cat(
            [empty, *(self._shares(p) for p in pixel_values(self._model, self._folder, pictures))]
        )
        found = [
            (min(float(row.sum()), 1.0), self.labels[int(row.argmax())])
            for row in shares[:, : len(self.labels)]
        ]
        return scores_from(self.name, self.threshold, found, pictures)

    def _shares(self, pixels: Tensor) -> Tensor:
        """Return shares, [batch, descriptions], on the CPU; each row sums to 1."""
        vision = self._model.vision_model(pixel_values=pixels.to(self._model.device))
        images = _unit(self._model.visual_projection(vision.pooler_output))
        logits = self._model.logit_scale.exp() * images @ self._texts.T
        return logits.softmax(1).cpu()

    @torch.no_grad()
    def _encoded_texts(self, config: ScorerConfig) -> Tensor:
        """Embed descriptions as unit vectors, [descriptions, width]: the concept's labels first."""
        from transformers import AutoTokenizer

        if not any((self._folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            raise ConfigError(f"scorer {config.name}: {self._folder} holds no tokenizer; add it")
        tokenizer: Any = AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
        texts = [_TEMPLATE.format(label) for label in (*self.labels, *NEUTRAL)]
        limit = self._model.config.text_config.max_position_embeddings
        tokens = tokenizer(
            texts, padding="max_length", truncation=True, max_length=limit, return_tensors="pt"
        )
        found = self._model.text_model(
            input_ids=tokens.input_ids.to(self._model.device),
            attention_mask=tokens.attention_mask.to(self._model.device),
        )
        return _unit(self._model.text_projection(found.pooler_output))


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)
