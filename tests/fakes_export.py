"""Adapters for tiny checkpoints, for the tests of what goes out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fakes_checkpoint import build_networks, write_tiny_checkpoint

from resalign.backend.adapter.lora import Adapter
from resalign.backend.adapter.targets import target_modules
from resalign.backend.families import find_family
from resalign.backend.plan.adapter import AdapterConfig
from resalign.backend.plan.field import field_of

META = {"author": "somebody", "sshs_model_hash": "beef", "modelspec.hash_sha256": "0xbad"}
TARGETS = tuple(field_of(AdapterConfig, "targets").choices)


def random_adapter(
    unet: Any,
    targets: tuple[str, ...] = TARGETS,
    *,
    rank: int = 3,
    alpha: float = 1.5,
    seed: int = 0,
    size: float = 0.3,
) -> Adapter:
    """Random tensors for every module that the targets select; ‖ΔW‖ is about `size`² of ‖W‖."""
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for module in target_modules(unet, find_family("sd1").targets, targets):
        shape = unet.get_submodule(module).weight.shape
        fan_in = shape[1:].numel()
        a = torch.randn(rank, *shape[1:], generator=random) * size / fan_in**0.5
        b = torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=random) * size
        tensors[f"{module}.lora_A.weight"] = a
        tensors[f"{module}.lora_B.weight"] = b
    return Adapter(tensors, rank, alpha)


@torch.no_grad()
def with_adapter(unet: Any, adapter: Adapter) -> Any:
    """Add the adapter into the network's weights, in place; returns the network."""
    for module in adapter.modules:
        weight = unet.get_submodule(module).weight
        weight += adapter.delta(module).to(weight)
    return unet


@torch.no_grad()
def prediction(unet: Any, seed: int = 0) -> torch.Tensor:
    """The U-Net's prediction for random latents, text and (SDXL) sizes."""
    random = torch.Generator().manual_seed(seed)
    latents = torch.randn(2, 4, 8, 8, generator=random)
    context = torch.randn(2, 5, unet.config.cross_attention_dim, generator=random)
    added = None
    if unet.config.addition_embed_type == "text_time":
        pooled = unet.config.projection_class_embeddings_input_dim - 6 * 256
        added = {
            "text_embeds": torch.randn(2, pooled, generator=random),
            "time_ids": torch.full((2, 6), 64.0),
        }
    timesteps = torch.tensor([10, 700])
    return unet(latents, timesteps, context, added_cond_kwargs=added, return_dict=False)[0]


def save_fixtures() -> tuple[Any, Any, Any]:
    """A `unet`, a random `adapter` of it, and its checkpoint as `source`."""

    @pytest.fixture(scope="module")
    def unet():
        return build_networks("sd1")["unet"]

    @pytest.fixture(scope="module")
    def adapter(unet):
        return random_adapter(unet)

    @pytest.fixture(scope="module")
    def source(tmp_path_factory):
        return write_tiny_checkpoint(
            tmp_path_factory.mktemp("source") / "base.safetensors",
            dtype=torch.float32,
            metadata=META,
        )

    return unet, adapter, source
