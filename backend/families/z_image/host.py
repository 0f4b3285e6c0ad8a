"""Z-Image as ComfyUI holds it: its CLIP gives as many states as a prompt has tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..base.host import HostNames, HostPrompts, mask_of, to_length
from .config import TOKENS
from .networks import CONTEXT, MASK

if TYPE_CHECKING:
    from torch import Tensor

    from ..base.conditioning import Conditioning


def read_prompt(embedding: Tensor, entries: Mapping[str, Any]) -> Conditioning:
    """Bring [1, tokens, width] to 512 tokens, with a mask of those that are the prompt's."""
    from ..base.conditioning import Conditioning

    mask = mask_of(embedding.shape[1], TOKENS, embedding.device)
    return Conditioning({CONTEXT: to_length(embedding, TOKENS), MASK: mask})


HOST = HostNames(
    ("qwen3_4b",),
    -2,
    inside="model.",
    prompts=HostPrompts(read_prompt),
    loader="Load CLIP with Qwen3 4B and the type lumina2",
)
