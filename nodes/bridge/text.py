"""Encodes prompts with ComfyUI's CLIP, for families whose text encoders are not rebuilt.

The conditioning is then what the graph's CLIP Text Encode would give, with ComfyUI's own memory
management. The text encoder cannot be trained this way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...backend.errors import CheckpointError
from ...backend.families.base.conditioning import Conditioning
from .identity import fingerprint

if TYPE_CHECKING:
    from ...backend.families import Family
    from ...backend.families.base.host import HostPrompts

_END = -1  # fills up the bytes of shorter prompts


class HostText(nn.Module):
    """Stands where a text encoder does, and asks the connected CLIP. options: for its tokenizer.

    The CLIP's weights are not registered here: moving this module moves a single number, and moving
    it off the device asks ComfyUI to unload what it had loaded for the encoding.
    """

    def __init__(self, clip: Any, **options: Any) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(1), requires_grad=False)
        self._host: Any = clip
        self._options = options

    def read(self, prompt: str) -> tuple[Tensor, dict[str, Any]]:
        """Return the embedding [1, tokens, width] of a prompt, and the other entries beside it."""
        clip = self._host
        tokens = clip.tokenize(prompt, **self._options)
        embedding, entries = clip.encode_from_tokens_scheduled(tokens, show_pbar=False)[0]
        return self._own(embedding).float(), {n: self._own(one) for n, one in entries.items()}

    def _own(self, value: Any) -> Any:
        """Return a tensor as an ordinary one, on the device of this module."""
        if not isinstance(value, Tensor):
            return value
        return value.detach().to(self.place.device, copy=True)

    def to(self, *args: Any, **options: Any) -> HostText:
        before = self.place.device
        super().to(*args, **options)
        if before.type != "cpu" and self.place.device.type == "cpu":
            from comfy import model_management

            model_management.unload_all_models()
        return self

    def named_parameters(self, *args: Any, **options: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield one that identifies the CLIP in the cache of encodings: weights, patches, layer."""
        digest = bytes.fromhex(fingerprint(None, self._host))
        kept = torch.tensor(list(digest), dtype=torch.uint8)
        yield "fingerprint", nn.Parameter(kept, requires_grad=False)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        yield self.place


class HostTexts:
    """The `Texts` of a family as the host reads them. Tokens are the bytes of a prompt in UTF-8."""

    def __init__(self, family: Family, prompts: HostPrompts, config: Any) -> None:
        self._own, self._prompts = family.texts, prompts
        self._loader = family.host.loader
        self.tokens, self.embedding = family.texts.tokens, family.texts.embedding
        self._width = self._own.blank(config)[self.embedding].shape[-1]

    def tokenise(self, model: Any, prompts: Sequence[str]) -> tuple[Tensor, ...]:
        rows = [list(prompt.encode()) for prompt in prompts]
        longest = max(map(len, rows), default=0)
        return (torch.tensor([row + [_END] * (longest - len(row)) for row in rows]).long(),)

    @torch.no_grad()
    def encode(self, model: Any, tokens: Sequence[Tensor]) -> Conditioning:
        encoder, found = model.text_encoders[0], []
        wanted = self._prompts.width(model) if self._prompts.width else self._width
        for row in tokens[0]:
            prompt = bytes(row[row != _END].tolist()).decode()
            embedding, entries = encoder.read(prompt)
            if embedding.ndim != 3 or embedding.shape[-1] != wanted:
                raise CheckpointError(
                    f"the CLIP encodes prompts to the shape {list(embedding.shape[1:])}, but the "
                    f"MODEL reads a width of {wanted}: use {self._loader}"
                )
            found.append(self._prompts.finished(model, self._prompts.read(embedding, entries)))
        return Conditioning.cat(found).to(model.device)

    def of_samples(self, samples: Any, device: Any = "cpu") -> Conditioning:
        return self._own.of_samples(samples, device)

    def blank(self, config: Any) -> Conditioning:
        return self._own.blank(config)
