"""Prompts to the conditioning: the text conditioner turns Qwen3's last states into one vector for
each T5 token; 512 of them with padding.

Neither tokenizer uses a template. States of padding are zero, and so are vectors of padding, to
which the denoiser attends: the length is fixed. The empty prompt has no Qwen3 token at all; its
`</s>` of T5 meets nothing, as in trainers and diffusers (ComfyUI encodes a padding token there).
Source: AnimaModularPipeline of diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import CheckpointError
from ..base.family import Loaded, Size
from ..qwen3.prompts import padded, tokenise
from .config import TOKENS
from .networks import CONTEXT

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..base.conditioning import Conditioning

AT_ONCE = 8  # prompts


@dataclass(frozen=True, slots=True)
class Texts:
    """The `Texts` of Anima. The conditioning has `context`, [batch, 512, width]."""

    tokens: int = TOKENS
    embedding: str = CONTEXT

    def tokenise(self, model: Loaded, prompts: Sequence[str]) -> tuple[Tensor, ...]:
        """Return ids and mask of Qwen3, then ids and mask of T5."""
        qwen, t5 = model.tokenizers
        targets = [t5(prompt, truncation=True, max_length=TOKENS).input_ids for prompt in prompts]
        texts = tokenise(qwen, prompts, TOKENS)
        return *texts, *padded(targets, TOKENS, t5.pad_token_id or 0)

    def encode(self, model: Loaded, tokens: Sequence[Tensor]) -> Conditioning:
        import torch

        from ..base.conditioning import Conditioning

        encoder = model.text_encoders[0]
        device = next(encoder.parameters()).device
        found = []
        for ids, mask, targets, kept in zip(
            *(part.to(device).split(AT_ONCE) for part in tokens), strict=True
        ):
            read = _readable(mask)
            states = encoder(input_ids=ids, attention_mask=read, use_cache=False).last_hidden_state
            states = states * mask.unsqueeze(-1).to(states)
            found.append(condition(model, states, mask, targets, kept))
        return Conditioning({CONTEXT: torch.cat(found).to(model.device)})

    def of_samples(
        self, samples: Sequence[tuple[Size, Size, Size]], device: torch.device | str = "cpu"
    ) -> Conditioning:
        from ..base.conditioning import Conditioning

        return Conditioning()

    def blank(self, config: Mapping[str, Any]) -> Conditioning:
        import torch

        from ..base.conditioning import Conditioning

        return Conditioning({CONTEXT: torch.zeros(1, self.tokens, config["text_embed_dim"])})


def condition(model: Loaded, states: Tensor, mask: Tensor, targets: Tensor, kept: Tensor) -> Tensor:
    """Return the vectors that the text conditioner makes of Qwen3's states and T5's tokens.

    states: [batch, 512, width], zero where `mask` is 0. targets: ids of T5, used where `kept` is 1.
    """
    conditioner = model.text_encoders[-1]
    home = next(conditioner.parameters())
    _check_vocabulary(targets, conditioner)
    return conditioner(
        source_hidden_states=states.to(home),
        target_input_ids=targets.to(home.device),
        target_attention_mask=kept.to(home.device),
        source_attention_mask=_readable(mask).to(home.device),
    )


def _readable(mask: Tensor) -> Tensor:
    """Attention to nothing is not a number on some devices: an empty prompt reads one state, which
    is zero, and so are its key and its value."""
    mask = mask.clone()
    mask[:, 0] = 1
    return mask


def _check_vocabulary(ids: Tensor, conditioner: Any) -> None:
    known = conditioner.config.target_vocab_size
    if int(ids.max()) >= known:
        raise CheckpointError(
            f"the T5 tokenizer has tokens beyond the {known} that the text conditioner knows: give "
            "the folder `t5_tokenizer` of the published model"
        )
