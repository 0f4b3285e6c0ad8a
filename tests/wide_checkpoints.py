"""Random checkpoints of the published widths with as few blocks as a family reads, in bfloat16.

Weights have the size that keeps activations at their scale, so that a run on them is numerically
like one on trained weights. The text encoder has its published width and few layers; the VAE is
tiny, and the vocabulary that of the byte tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from family_cases import Case
from safetensors.torch import save_file
from torch import Tensor, device

_VOCABULARY = 512
# By component, the fields of the published configs that are changed: the fewest layers.
_FEWEST: dict[str, dict[str, dict[str, Any]]] = {
    "anima": {
        "transformer": {"num_layers": 1},
        "text_encoder": {"num_hidden_layers": 1},
        "text_conditioner": {"num_layers": 1, "target_vocab_size": _VOCABULARY},
    },
    "flux2_klein": {
        "transformer": {"num_layers": 1, "num_single_layers": 1},
        "text_encoder": {"num_hidden_layers": 4},  # three of them are read
    },
    "z_image": {
        "transformer": {"n_layers": 1, "n_refiner_layers": 1},
        "text_encoder": {"num_hidden_layers": 2},  # the last but one is read
    },
}


def write_wide(case: Case, models: Path) -> Path:
    """Write denoiser, text encoder and VAE as `write_split` does; return the denoiser's file."""
    fakes = case.fakes
    source = fakes.write_split(models)  # the tiny VAE and the tokenizers are kept
    random = torch.Generator().manual_seed(0)
    states = {name: _state(case, name, random) for name in _FEWEST[case.name]}
    denoiser = fakes.native_denoiser(states["transformer"])
    if "text_conditioner" in states:
        inside = {f"llm_adapter.{name}": t for name, t in states["text_conditioner"].items()}
        denoiser = {f"net.{name}": tensor for name, tensor in (denoiser | inside).items()}
    save_file(denoiser, source)
    text = {f"model.{name}": tensor for name, tensor in states["text_encoder"].items()}
    save_file(text, models / fakes.TEXT_FILE)
    return source


def published_width(case: Case) -> Mapping[str, Any]:
    """Return the config of the denoiser that `write_wide` writes."""
    return case.family.config("transformer") | _FEWEST[case.name]["transformer"]


def _state(case: Case, component: str, random: torch.Generator) -> dict[str, Tensor]:
    config = case.family.config(component) | _FEWEST[case.name][component]
    if component == "text_encoder":
        config |= {"vocab_size": _VOCABULARY}
    with device("meta"):
        network = case.family.networks.build(component, config)
    return {
        name: _drawn(name, tuple(tensor.shape), random)
        for name, tensor in network.state_dict().items()
    }


def _drawn(name: str, shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    """A matrix that keeps the scale of its inputs; norms of 1, biases of 0."""
    if len(shape) == 1:
        return torch.full(shape, 0.0 if name.endswith("bias") else 1.0, dtype=torch.bfloat16)
    size = 1.0 if "embed" in name and len(shape) == 2 and shape[0] == _VOCABULARY else shape[-1]
    return torch.empty(shape, dtype=torch.bfloat16).normal_(std=size**-0.5, generator=random)
