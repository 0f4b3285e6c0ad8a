"""Drawing of a probe's images: prompts are encoded once, requests of one guidance go together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor

from ..families.base.conditioning import Conditioning
from ..model.encode import encode_prompts, encoders_on_device
from ..model.generate import generate_images
from ..model.model import Model
from ..plan.measurement import GenerationConfig
from .prompts import ImageRequest


class EncodedPrompts:
    """Conditioning of every prompt, encoded on first use and kept until `forget`."""

    def __init__(self, requests: Mapping[str, Sequence[ImageRequest]], resolution: int) -> None:
        texts = [request.text for part in requests.values() for request in part]
        self._distinct = ["", *dict.fromkeys(text for text in texts if text)]
        self._places = {text: place for place, text in enumerate(self._distinct)}
        self._size = resolution, resolution
        self._encoded: Conditioning | None = None

    def forget(self) -> None:
        """Encode again on the next use: the text encoder has changed."""
        self._encoded = None

    def of(
        self, model: Model, requests: Sequence[ImageRequest]
    ) -> tuple[Conditioning, Conditioning]:
        """Return the conditioning of each request, and of the empty prompt."""
        if self._encoded is None:
            with encoders_on_device(model):
                self._encoded = encode_prompts(model, self._distinct, size=self._size)
        chosen = torch.tensor([self._places[request.text] for request in requests])
        return self._encoded[chosen.to(model.device)], self._encoded[:1]


def draw_requests(
    model: Model,
    prompts: EncodedPrompts,
    requests: Sequence[ImageRequest],
    settings: GenerationConfig,
    *,
    resolution: int,
    on_image: Callable[[int], None],
) -> Tensor:
    """Draw one image per request: [n, 3, height, width] from −1 to 1, on the CPU.

    on_image: called with the number of images drawn so far.
    """
    drawn = []
    own = settings.guidance
    for guidance, group in groupby(requests, lambda r: own if r.guidance is None else r.guidance):
        part = list(group)
        conditioning, empty = prompts.of(model, part)
        before, count = sum(map(len, drawn)), len(part)
        drawn.append(
            generate_images(
                model, conditioning, seeds=[request.seed for request in part],
                steps=settings.steps, guidance=guidance, height=resolution, width=resolution,
                batch=settings.batch, negative=empty,
                on_progress=lambda p, b=before, n=count: on_image(b + n * p.step // p.total),
            ).float().cpu().clamp(-1, 1)
        )  # fmt: skip
    return torch.cat(drawn)
