"""Unlearn without training: one linear map in front of the cross-attention's K and V.

W' is to send each token c of a concept's prompts to where W sends the token c* at its place in the
anchor, and each token p of what must stay to where W sends it:

    min over W'  Σ_c ‖W'c − Wc*‖² + ρ Σ_p ‖W'p − Wp‖² + ε ‖W' − W‖²

    W' − W = W D,   D = [Σ_c (c* − c) cᵀ] [Σ_c ccᵀ + ρ Σ_p ppᵀ + εI]⁻¹

(sums are means here). D is the same for every projection, as all read the same text, so it is
found once and cut to the adapter's rank; W D is then a LoRA. Source: Gandikota et al., Unified
Concept Editing, arXiv:2308.14761, of which this is the case of one network and one edit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..adapter.apply import AdaptedDenoiser
from ..adapter.lora import Adapter
from ..data.batches import EncodedData
from ..plan.concept import Concept
from ..plan.hardening import HardeningPlan
from ..plan.stages import EditConfig

_ROWS = 4096  # tokens at a time: 2048 wide and in float64, 64 MiB


@dataclass(frozen=True, slots=True)
class Edit:
    """D ≈ U V of rank at most r: U is [width, r], V [r, width]; float32.

    lost: share of ‖D‖² that the rank leaves out; 0 where the rank suffices.
    """

    u: Tensor
    v: Tensor
    lost: float


def edit_adapter(denoiser: AdaptedDenoiser, plan: HardeningPlan, data: EncodedData) -> float:
    """Set θ, which is on K and V of the cross-attention, to the edit; return `Edit.lost`."""
    adapter = plan.adapter
    part = denoiser.model.family.texts.embedding
    edit = closed_form(plan.concepts, data, plan.edit, adapter.rank, part)
    scale = adapter.effective_alpha / adapter.rank
    tensors = edited(edit, denoiser.modules, scale=scale)
    denoiser.load(Adapter(tensors, adapter.rank, adapter.effective_alpha))
    return edit.lost


def closed_form(
    concepts: Sequence[Concept], data: EncodedData, settings: EditConfig, rank: int, part: str
) -> Edit:
    """Solve for D of all concepts by their weights, on the CPU in float64.

    part: of the conditioning, which K and V of the cross-attention read.
    """
    width = data.empty[part].shape[-1]
    moved, met = torch.zeros(2, width, width, dtype=torch.float64).unbind()
    total = sum(concept.weight for concept in concepts)
    for concept in concepts:
        tokens = data.forget[concept.name].conditioning[part].cpu()
        goal = data.anchors[concept.name][part].cpu().expand_as(tokens)
        share = concept.weight / total / tokens.shape[:2].numel()
        for c, g in zip(_rows(tokens), _rows(goal), strict=True):
            moved += share * (g - c).T @ c
            met += share * c.T @ c
    kept = torch.cat([data.retain.conditioning[part].cpu(), data.empty[part].cpu()])
    for p in _rows(kept):
        met += settings.retain_weight / kept.shape[:2].numel() * p.T @ p
    met += settings.ridge * met.diagonal().mean() * torch.eye(width, dtype=torch.float64)
    found = torch.linalg.solve(met, moved.T).T  # moved · met⁻¹, as met is symmetric
    u, s, v = torch.linalg.svd(settings.strength * found, full_matrices=False)
    energy = s.square()
    lost = float(energy[rank:].sum() / energy.sum()) if energy.sum() else 0.0
    root = s[:rank].sqrt()
    return Edit((u[:, :rank] * root).float(), (root[:, None] * v[:rank]).float(), lost)


def edited(edit: Edit, projections: Mapping[str, Any], *, scale: float = 1.0) -> dict[str, Tensor]:
    """Return W D as LoRA tensors by name: A = V, B = W U / scale, for projections [out, width].

    scale: the adapter's own strength, alpha / rank.
    """
    tensors: dict[str, Tensor] = {}
    for name, module in projections.items():
        weight = module.weight.detach()
        u, v = edit.u.to(weight.device), edit.v.to(weight.device)
        tensors[f"{name}.lora_A.weight"] = v.clone()
        tensors[f"{name}.lora_B.weight"] = weight.float() @ u / scale
    return tensors


def _rows(tokens: Tensor) -> list[Tensor]:
    """Split [n, tokens, width] into blocks of tokens in float64."""
    return [block.double() for block in tokens.reshape(-1, tokens.shape[-1]).split(_ROWS)]
