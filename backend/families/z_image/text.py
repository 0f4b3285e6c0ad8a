"""Prompts to the conditioning: Qwen3's states before its last layer, without padding in effect.

The prompt stands in Qwen3's chat template as a user's turn; the answer begins without a thought.
The template is written here: the one in a tokenizer's folder may be another model's.
Source: ZImagePipeline of diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..base.family import Loaded, Size
from ..qwen3.prompts import tokenise
from .config import TOKENS
from .networks import CONTEXT, MASK

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..base.conditioning import Conditioning

TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
_LAYER = -2
_AT_ONCE = 4  # prompts; all layers' states of one take 190 MB in bfloat16


@dataclass(frozen=True, slots=True)
class Texts:
    """The `Texts` of Z-Image: `context`, [batch, 512, width], zero after the prompt's own tokens,
    and `mask`, [batch, 512], 1 where there are some."""

    tokens: int = TOKENS
    embedding: str = CONTEXT

    def tokenise(self, model: Loaded, prompts: Sequence[str]) -> tuple[Tensor, ...]:
        return tokenise(model.tokenizers[0], prompts, self.tokens, TEMPLATE)

    def encode(self, model: Loaded, tokens: Sequence[Tensor]) -> Conditioning:
        import torch

        from ..base.conditioning import Conditioning

        encoder = model.text_encoders[0]
        device = next(encoder.parameters()).device
        found = []
        for ids, mask in zip(*(part.to(device).split(_AT_ONCE) for part in tokens), strict=True):
            states = encoder(
                input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False
            ).hidden_states[_LAYER]
            found.append(states * mask.unsqueeze(-1).to(states))
        context = torch.cat(found).to(model.device)
        return Conditioning({CONTEXT: context, MASK: tokens[1].to(model.device)})

    def of_samples(
        self, samples: Sequence[tuple[Size, Size, Size]], device: torch.device | str = "cpu"
    ) -> Conditioning:
        from ..base.conditioning import Conditioning

        return Conditioning()

    def blank(self, config: Mapping[str, Any]) -> Conditioning:
        import torch

        from ..base.conditioning import Conditioning

        context = torch.zeros(1, self.tokens, config["cap_feat_dim"])
        return Conditioning({CONTEXT: context, MASK: torch.ones(1, self.tokens, dtype=torch.long)})
