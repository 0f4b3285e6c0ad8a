"""Prompts to the conditioning: three layers of Qwen3 side by side, 512 tokens with padding.

The prompt stands in Qwen3's chat template as a user's turn, with an empty thought before the
answer. The padding at the end is masked inside Qwen3, but the denoiser attends to it, so the length
is fixed. The template is written here: the one in a tokenizer's folder may be another model's.
Source: Flux2KleinPipeline of diffusers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..base.family import Loaded, Size
from ..qwen3.tokenizer import PAD
from .config import TOKENS, taps
from .networks import CONTEXT

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..base.conditioning import Conditioning

TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
_AT_ONCE = 4  # prompts; all layers' states of one take 190 MB in bfloat16

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Texts:
    """The `Texts` of FLUX.2 klein. The conditioning has `context`, [batch, 512, 3 · width]."""

    tokens: int = TOKENS
    embedding: str = CONTEXT

    def tokenise(self, model: Loaded, prompts: Sequence[str]) -> tuple[Tensor, ...]:
        import torch

        tokenizer = model.tokenizers[0]
        pad = tokenizer.convert_tokens_to_ids(PAD)
        # A text encoder with fewer positions reads fewer tokens: the embedded demo's has 24
        most = min(self.tokens, model.text_encoders[0].config.max_position_embeddings)
        ids = torch.full((len(prompts), most), pad, dtype=torch.long)
        mask = torch.zeros(len(prompts), most, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            found = tokenizer(TEMPLATE.format(prompt), add_special_tokens=False).input_ids
            if len(found) > most:
                log.warning(
                    "prompt has %d tokens with its template, the last %d are ignored: %r",
                    len(found), len(found) - most, prompt[:200],
                )  # fmt: skip
            kept = found[:most]
            ids[row, : len(kept)] = torch.tensor(kept, dtype=torch.long)
            mask[row, : len(kept)] = 1
        return ids, mask

    def encode(self, model: Loaded, tokens: Sequence[Tensor]) -> Conditioning:
        import torch

        from ..base.conditioning import Conditioning

        encoder = model.text_encoders[0]
        device = next(encoder.parameters()).device
        layers = taps(encoder.config.num_hidden_layers)
        found = []
        for ids, mask in zip(*(part.to(device).split(_AT_ONCE) for part in tokens), strict=True):
            states = encoder(
                input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False
            ).hidden_states
            found.append(torch.cat([states[layer] for layer in layers], dim=-1))
        return Conditioning({CONTEXT: torch.cat(found).to(model.device)})

    def of_samples(
        self, samples: Sequence[tuple[Size, Size, Size]], device: torch.device | str = "cpu"
    ) -> Conditioning:
        from ..base.conditioning import Conditioning

        return Conditioning()

    def blank(self, config: Mapping[str, Any]) -> Conditioning:
        import torch

        from ..base.conditioning import Conditioning

        return Conditioning({CONTEXT: torch.zeros(1, self.tokens, config["joint_attention_dim"])})
