"""Tiny networks whose training takes milliseconds on a CPU."""

from __future__ import annotations

from typing import Any

import torch

from resalign.backend.data.batches import EncodedData
from resalign.backend.data.encoded_set import Bucket, EncodedSet
from resalign.backend.families import find_family
from resalign.backend.families.base.conditioning import Conditioning
from resalign.backend.families.base.process import discrete_process, scaled_linear_alphas_cumprod
from resalign.backend.model.model import Model


def tiny_unet(seed: int = 0, **changes: Any) -> Any:
    """A two-level U-Net with self- and cross-attention: 0.2 M weights, latents [4, 8, 8]."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    config = {
        "sample_size": 8,
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**(config | changes)).eval().requires_grad_(False)


def tiny_model(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Model:
    """A model with a denoiser and a schedule only: its data are random latents."""
    return Model(
        family=find_family("sd1"),
        denoiser=tiny_unet(seed, **changes).to(dtype),
        text_encoders=(),
        tokenizers=(),
        vae=None,  # type: ignore[arg-type]
        process=discrete_process(scaled_linear_alphas_cumprod()),
        resolution=64,
    )


def random_conditioning(
    batch: int, seed: int = 0, width: int = 16, tokens: int = 5
) -> Conditioning:
    random = torch.Generator().manual_seed(seed)
    return Conditioning({"context": torch.randn(batch, tokens, width, generator=random)})


class PoisonedSet:
    """An encoded set whose latents become NaN after so many draws: a divergence on demand."""

    def __init__(self, inner: Any, after: int) -> None:
        self.inner, self.after, self.draws = inner, after, 0

    def draw(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, Conditioning]:
        latents, conditioning = self.inner.draw(*args, **kwargs)
        self.draws += 1
        return (latents * float("nan") if self.draws > self.after else latents), conditioning

    def to(self, *_: Any) -> PoisonedSet:
        return self


def random_set(samples: int, seed: int, shift: float = 0.0) -> EncodedSet:
    """Latents around `shift`, [4, 8, 8] each, two captions."""
    random = torch.Generator().manual_seed(seed)
    latents = torch.randn(samples, 4, 8, 8, generator=random) * 0.5 + shift
    bucket = Bucket(latents, torch.arange(samples) % 2, torch.ones(samples, dtype=torch.float64))
    return EncodedSet(
        (bucket,), ("one", "two"), random_conditioning(2, seed), random_conditioning(1, 99)
    )


def encoded_data(
    concepts: tuple[str, ...] = ("bad",), poison_after: int | None = None
) -> EncodedData:
    """Random forget and retain sets for `tiny_model`; fine-tuning data is the retain set."""
    forget: dict[str, Any] = {
        name: random_set(12, seed, shift=1.0) for seed, name in enumerate(concepts, start=1)
    }
    if poison_after is not None:
        forget = {name: PoisonedSet(part, poison_after) for name, part in forget.items()}
    retain = random_set(16, 7)
    return EncodedData(
        forget=forget,
        retain=retain,
        anchors={name: random_conditioning(1, 50) for name in concepts},
        empty=random_conditioning(1, 99),
        fine_tunes={"retain": retain},
    )
