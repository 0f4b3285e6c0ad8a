"""A plan and tiny networks for the memory planner."""

from __future__ import annotations

from dataclasses import replace

from resalign.backend.plan.adapter import AdapterConfig
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.fine_tune import FineTuneConfig
from resalign.backend.plan.hardening import HardeningPlan

SIDE = 16  # of the latents
USER = FineTuneConfig(name="u", learning_rate=1e-4, steps=7, batch=3)
THREE = tuple(replace(USER, name=f"u{number}") for number in range(3))

TINY = {  # configs of all networks of a family, small enough to trace in a moment
    "unet": {
        "sample_size": 16, "layers_per_block": 1, "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": 16,
        "attention_head_dim": 2, "norm_num_groups": 4,
    },
    "text_encoder": {
        "vocab_size": 600, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 77, "projection_dim": 16,
    },
    "vae": {
        "block_out_channels": (8, 8, 8, 8), "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 1, "norm_num_groups": 4,
        "latent_channels": 4,
    },
}  # fmt: skip


def hardening_plan(**changes) -> HardeningPlan:
    settings = {
        "concepts": (Concept("bad", prompts=("bad",)),), "fine_tunes": (USER,),
        "adapter": AdapterConfig(rank=2), "forget_batch": 2, "retain_batch": 4,
    }  # fmt: skip
    return HardeningPlan(**(settings | changes))
