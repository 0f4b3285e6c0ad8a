"""Prompts to ids and masks of a fixed length, as the denoisers that read Qwen3 need them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .tokenizer import PAD

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)


def tokenise(
    tokenizer: Any, prompts: Sequence[str], length: int, template: str = "{}"
) -> tuple[Tensor, Tensor]:
    """Return ids and mask, [prompts, length], of the prompts in their template; the mask is 1 where
    there are tokens. A prompt that is longer is cut, with a warning."""
    rows = []
    for prompt in prompts:
        found = tokenizer(template.format(prompt), add_special_tokens=False).input_ids
        if len(found) > length:
            log.warning(
                "prompt has %d tokens%s, the last %d are ignored: %r",
                len(found), "" if template == "{}" else " with its template",
                len(found) - length, prompt[:200],
            )  # fmt: skip
        rows.append(found)
    return padded(rows, length, tokenizer.convert_tokens_to_ids(PAD))


def padded(rows: Sequence[Sequence[int]], length: int, pad: int) -> tuple[Tensor, Tensor]:
    """Return ids and mask, [rows, length]: each row cut or filled up with `pad` at its end."""
    import torch

    ids = torch.full((len(rows), length), pad, dtype=torch.long)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for number, row in enumerate(rows):
        kept = list(row[:length])
        ids[number, : len(kept)] = torch.tensor(kept, dtype=torch.long)
        mask[number, : len(kept)] = 1
    return ids, mask
