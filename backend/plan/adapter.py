"""The shape of the adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .checks import check_fields, freeze_lists
from .document import document
from .field import NOT_EMPTY, Choices, Help, Range

Target = Annotated[
    Literal["attention", "cross_attention_kv", "feed_forward", "convolution"],
    Choices(
        attention="queries, keys, values and outputs of self- and cross-attention",
        cross_attention_kv="keys and values of cross-attention only",
        feed_forward="feed-forward layers of the transformer blocks",
        convolution="convolutions",
    ),
]
Targets = Annotated[
    tuple[Target, ...], NOT_EMPTY, Help("Layers that the adapter changes; several may be given.")
]
Alpha = Annotated[
    float,
    Range(0, 1024),
    Help("Scale of the adapter: its strength is alpha / rank. 0 sets alpha to the rank."),
]


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """Shape of the adapter θ, the low-rank change that hardening learns."""

    rank: Annotated[
        int,
        Range(1, 1024, usual="4 to 16"),
        Help("Rank of the adapter; a higher rank can change more."),
    ] = 4
    alpha: Alpha = 0.0
    targets: Targets = ("attention",)

    def __post_init__(self) -> None:
        freeze_lists(self)
        check_fields(self, "adapter")

    @property
    def effective_alpha(self) -> float:
        return self.alpha or float(self.rank)
