"""A family as ComfyUI holds it: the names of its parts, and what its CLIP makes of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from .conditioning import Conditioning
    from .family import Latents, Loaded


@dataclass(frozen=True, slots=True)
class HostPrompts:
    """How a family reads prompts that ComfyUI's CLIP encoded, so that no text encoder is rebuilt.

    read: (embedding [1, tokens, width], entries beside it) to what is kept of one prompt, in a
        fixed number of tokens. The family's `texts.embedding` is among its parts.
    entries: the entries that it reads, as ComfyUI names them.
    finish: (model, what was kept) to the conditioning, where a network of the model has a part in
        it; None: what is kept is the conditioning.
    width: of the embedding that `read` takes, for a model; None: that of the conditioning.
    options: for the CLIP's `tokenize`.
    """

    read: Callable[[Tensor, Mapping[str, Any]], Conditioning]
    entries: tuple[str, ...] = ()
    finish: Callable[[Loaded, Conditioning], Conditioning] | None = None
    width: Callable[[Loaded], int] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def finished(self, model: Loaded, kept: Conditioning) -> Conditioning:
        """Return the conditioning of what was kept."""
        return self.finish(model, kept) if self.finish else kept


@dataclass(frozen=True, slots=True)
class HostNames:
    """ComfyUI's names for the parts of a model.

    texts: names of the text encoders in its CLIP; none where nothing of the family is taken from a
    host. last_layer: the layer of the text encoders that the family reads (ComfyUI's `layer_idx`).
    fixed_layer: that layer is read whatever is asked for, by the family's own code, so no layer is
    cut off. inside: what the names of a text encoder's tensors begin with there, before those of
    the network.
    within: components that lie inside of its denoiser, to what the names of their tensors begin
    with there.
    prompts: how the prompts that its CLIP encodes are read; None: the text encoders are rebuilt
    from its tensors.
    latents: of its VAE, where that normalises by itself. loader: what loads the family's CLIP.
    webui: A1111 and classic Forge load such models too.
    """

    texts: tuple[str, ...]
    last_layer: int
    fixed_layer: bool = False
    inside: str = ""
    within: Mapping[str, str] = field(default_factory=dict)
    prompts: HostPrompts | None = None
    latents: Latents | None = None
    loader: str = "Load Checkpoint"
    webui: bool = False


def to_length(rows: Tensor, length: int, *, at_end: bool = True) -> Tensor:
    """Return [1, tokens, ...] with `length` tokens: of more the first are kept, fewer are filled up
    with zeros, at the end or before the beginning."""
    from torch.nn.functional import pad

    kept = rows[:, :length]
    missing = length - kept.shape[1]
    sides = (0, missing) if at_end else (missing, 0)
    return pad(kept, (*(0, 0) * (kept.ndim - 2), *sides))


def mask_of(tokens: int, length: int, device: Any = None) -> Tensor:
    """Return the mask [1, length] of so many tokens at the beginning, 1 where there is one."""
    import torch

    return (torch.arange(length, device=device) < tokens).long()[None]
