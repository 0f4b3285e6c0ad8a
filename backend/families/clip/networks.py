"""CLIP's networks and tokenizer: built, filled, and read."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import CheckpointError
from ..base.family import Loaded
from ..base.shapes import Shapes, check_same_names
from .config import TOKENS, clip_config
from .names import clip_names

TOKENIZER_FOLDER = Path(__file__).parent / "tokenizer"
TOKENIZER_FILES = ("vocab.json", "merges.txt")
# Fields of a text encoder's config that speak of how it was stored, not of what it is.
_STORAGE_FIELDS = ("architectures", "dtype", "torch_dtype", "transformers_version", "model_type")
_UNSEEN = ("logit_scale", "position_ids")  # in a text encoder's state, of no use to it

log = logging.getLogger(__name__)


def build_text_encoder(config: Mapping[str, Any], *, projected: bool) -> nn.Module:
    """Build a CLIP text encoder; `projected` adds the projection of the pooled embedding."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    plain = {
        key: value
        for key, value in config.items()
        if key not in _STORAGE_FIELDS and not key.startswith("_")
    }
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    return kind(CLIPTextConfig(**plain))


def fill_position_ids(network: nn.Module, device: torch.device | str) -> None:
    """Set CLIP's buffer 0, 1, 2 ..., which some files hold and no version needs from them."""
    for module in network.modules():
        for name, buffer in module._buffers.items():
            if name == "position_ids" and buffer is not None:
                module._buffers[name] = torch.arange(buffer.shape[-1], device=device)[None]


def load_tokenizer(options: Mapping[str, Any]) -> Any:
    """Load the CLIPTokenizer from shipped files. options: its config; they differ in padding."""
    from transformers import CLIPTokenizer

    plain = {key: value for key, value in options.items() if key != "tokenizer_class"}
    return CLIPTokenizer.from_pretrained(str(TOKENIZER_FOLDER), local_files_only=True, **plain)


def tokenise(model: Loaded, prompts: Sequence[str]) -> tuple[Tensor, ...]:
    """Return token ids for each text encoder, [len(prompts), 77], on its device."""
    _warn_of_truncation(model, list(prompts))
    found = []
    for encoder, tokenizer in zip(model.text_encoders, model.tokenizers, strict=False):
        tokens = tokenizer(
            list(prompts), padding="max_length", max_length=TOKENS, truncation=True,
            return_tensors="pt",
        )  # fmt: skip
        found.append(tokens.input_ids.to(next(encoder.parameters()).device))
    return tuple(found)


def _warn_of_truncation(model: Loaded, prompts: list[str]) -> None:
    lengths = [len(ids) for ids in model.tokenizers[0](prompts, verbose=False).input_ids]
    for prompt, length in zip(prompts, lengths, strict=True):
        if length > TOKENS:
            log.warning(
                "prompt has %d tokens, the last %d are ignored (CLIP reads %d): %r",
                length - 2, length - TOKENS, TOKENS - 2, prompt,
            )  # fmt: skip


def text_encoder_from_tensors(
    who: str,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    *,
    projected: bool,
    skip_last: int = 0,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Build a text encoder in float32 from a host's tensors, which are in transformers' names.

    tensors: `text_model.embeddings...`, and `text_projection.weight` for a projected one.
    config: the family's; sizes are read off the tensors.
    skip_last: layers left out at the end (CLIP skip 2 is 1); the final norm follows all the same.
        SD 2.x reads the last layer but one, which is one left out.
    """
    own = {n.removeprefix("text_model."): t for n, t in tensors.items() if n[:11] == "text_model."}
    shapes = Shapes(who, {name: tuple(tensor.shape) for name, tensor in own.items()})
    config = {**config, **clip_config(shapes, drop_last=False)}
    if projected:
        config["projection_dim"] = tensors["text_projection.weight"].shape[0]
    wanted, found = set(clip_names(config)), {n for n in own if not n.endswith(_UNSEEN)}
    check_same_names(who, wanted, found)
    layers = config["num_hidden_layers"] - skip_last
    if layers < 1:
        raise CheckpointError(f"{who}: CLIP skip leaves none of its {layers + skip_last} layers")
    config["num_hidden_layers"] = layers
    with torch.device("meta"):
        network = build_text_encoder(config, projected=projected)
    state = {}
    for name in network.state_dict():
        source = tensors[name] if name in tensors else own.get(name.removeprefix("text_model."))
        if source is not None:
            state[name] = source.to(device, torch.float32)
    network.load_state_dict(state, strict=False, assign=True)
    fill_position_ids(network, device)
    empty = [name for name, tensor in network.state_dict().items() if tensor.is_meta]
    if empty:
        raise CheckpointError(f"{who} lacks {empty[0]} and {len(empty) - 1} more tensors")
    return network.eval().requires_grad_(False)
