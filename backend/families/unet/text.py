"""Prompts to the conditioning of a U-Net, read in each family's own way:

    SD 1.x   last hidden state of CLIP-L, after the final layer norm
    SD 2.x   the same of OpenCLIP-H, whose configuration already drops the last layer
    SDXL     penultimate hidden states of CLIP-L and OpenCLIP-G side by side, the pooled
             embedding of the second, and six numbers for size and crop

as diffusers' pipelines do, except that an empty prompt is encoded like any other text (as ComfyUI
and A1111 do) where diffusers' SDXL pipeline puts zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..base.family import Loaded, Size
from ..clip.config import TOKENS
from .spec import UNetSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..base.conditioning import Conditioning

CONTEXT, POOLED, TIME_IDS = "context", "pooled", "time_ids"


@dataclass(frozen=True, slots=True)
class UNetTexts:
    """The `Texts` of a U-Net family.

    The conditioning has `context`, [batch, 77, width], and for SDXL `pooled`, [batch, width], and
    `time_ids`, [batch, 6]: (original height, width, crop top, left, target height, width).
    """

    spec: UNetSpec
    tokens: int = TOKENS
    embedding: str = CONTEXT

    def tokenise(self, model: Loaded, prompts: Sequence[str]) -> tuple[Tensor, ...]:
        from ..clip.networks import tokenise

        return tokenise(model, prompts)

    def encode(self, model: Loaded, tokens: Sequence[Tensor]) -> Conditioning:
        import torch

        from ..base.conditioning import Conditioning

        if not self.spec.sized:
            return Conditioning({CONTEXT: model.text_encoders[0](tokens[0]).last_hidden_state})
        outputs = [
            encoder(ids, output_hidden_states=True)
            for encoder, ids in zip(model.text_encoders, tokens, strict=True)
        ]
        states = [output.hidden_states[-2].to(model.device) for output in outputs]
        pooled = outputs[1].text_embeds.to(model.device)
        return Conditioning({CONTEXT: torch.cat(states, dim=-1), POOLED: pooled})

    def of_samples(
        self, samples: Sequence[tuple[Size, Size, Size]], device: torch.device | str = "cpu"
    ) -> Conditioning:
        import torch

        from ..base.conditioning import Conditioning

        if not self.spec.sized:
            return Conditioning()
        rows = [[float(value) for pair in sample for value in pair] for sample in samples]
        return Conditioning({TIME_IDS: torch.tensor(rows, device=device)})

    def blank(self, config: Mapping[str, Any]) -> Conditioning:
        import torch

        from ..base.conditioning import Conditioning

        context = torch.zeros(1, TOKENS, config["cross_attention_dim"])
        if not self.spec.sized:
            return Conditioning({CONTEXT: context})
        ids = 6 * config["addition_time_embed_dim"]
        pooled = torch.zeros(1, config["projection_class_embeddings_input_dim"] - ids)
        return Conditioning({CONTEXT: context, POOLED: pooled})
