"""Anima as ComfyUI holds it: the text conditioner lies inside of its denoiser, so that its CLIP
gives what the conditioner reads: Qwen3's states, and T5's tokens with weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...errors import DataError
from ..base.host import HostNames, HostPrompts, mask_of, to_length
from .config import CONDITIONER, TOKENS
from .names import CONDITIONER as ADAPTER
from .networks import CONTEXT
from .text import AT_ONCE, condition

if TYPE_CHECKING:
    from torch import Tensor

    from ..base.conditioning import Conditioning
    from ..base.family import Loaded

_IDS, _WEIGHTS = "t5xxl_ids", "t5xxl_weights"  # ComfyUI's names
_KEPT = (_STATES_MASK, _TARGETS, _TARGETS_MASK, _SCALE) = (
    "states_mask", "t5_ids", "t5_mask", "t5_weights",
)  # fmt: skip


def read_prompt(embedding: Tensor, entries: Mapping[str, Any]) -> Conditioning:
    """Bring states, [1, tokens, width], and T5's tokens to 512 of each with masks.

    Weights are those that the syntax (word:1.2) gives to T5's tokens.
    """
    import torch

    from ..base.conditioning import Conditioning

    if entries.get(_IDS) is None:
        raise _lacks(_IDS)
    device = embedding.device
    ids = entries[_IDS].reshape(1, -1).to(device, torch.long)
    weights = entries.get(_WEIGHTS)
    weights = torch.ones(ids.shape) if weights is None else weights.reshape(1, -1)
    return Conditioning(
        {
            CONTEXT: to_length(embedding, TOKENS),
            _STATES_MASK: mask_of(embedding.shape[1], TOKENS, device),
            _TARGETS: to_length(ids, TOKENS),
            _TARGETS_MASK: mask_of(ids.shape[1], TOKENS, device),
            _SCALE: to_length(weights.to(device, torch.float32), TOKENS),
        }
    )


def finish(model: Loaded, kept: Conditioning) -> Conditioning:
    """Let the text conditioner make the denoiser's vectors of what `read_prompt` keeps."""
    import torch

    from ..base.conditioning import Conditioning

    if missing := [name for name in (CONTEXT, *_KEPT) if name not in kept]:
        raise _lacks(missing[0])
    found = []
    for states, mask, targets, targets_mask, scale in zip(
        *(kept[name].split(AT_ONCE) for name in (CONTEXT, *_KEPT)), strict=True
    ):
        vectors = condition(model, states, mask, targets.long(), targets_mask)
        # float32, as what hosts give otherwise
        found.append(vectors * scale.to(vectors.device).unsqueeze(-1))
    return Conditioning({CONTEXT: torch.cat(found)})


def _lacks(name: str) -> DataError:
    return DataError(
        f"the conditioning has no {name}: Anima reads Qwen3's states with T5's tokens; "
        f"encode the captions with its CLIP ({HOST.loader})"
    )


def _width(model: Loaded) -> int:
    return model.text_encoders[-1].config.source_dim


HOST = HostNames(
    ("qwen3_06b",),
    -1,
    inside="model.",
    within={CONDITIONER: ADAPTER},
    # brackets are characters for this family's trainers, as they are for its files
    prompts=HostPrompts(
        read_prompt, (_IDS, _WEIGHTS), finish, _width, options={"disable_weights": True}
    ),
    loader="Load CLIP with Qwen3 0.6B",
)
