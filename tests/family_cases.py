"""The families of transformers, each with what the tests in common expect of it.

Every expected value is written out by family: nothing here is computed by the package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import fakes_anima
import fakes_klein
import fakes_z_image
import torch

from resalign.backend.families import Family, find_family


@dataclass(frozen=True, kw_only=True)
class Case:
    """One family and its fakes.

    stem: of folders and of files that hold everything. eighth: tensors of the denoiser's file that
    are stored in fp8, None for all; from_eighth: (denoiser, expected tensors in fp8) to what was
    loaded and what must have been. lacking, extra, unaccounted: tensors taken out of the
    denoiser's file and put into it, and the refusal. companion: how a text encoder is asked for.
    relatives: (component, field of its config, value, refusal) of folders. renamed, distilled: a
    name that a distilled model has, and what is said of it.
    tokenizers: (folder, ComfyUI's folder, what it is called in the refusal).
    """

    name: str
    title: str
    fakes: ModuleType
    stem: str
    eighth: tuple[str, ...] | None
    from_eighth: Callable[[Any, dict[str, torch.Tensor]], tuple[torch.Tensor, torch.Tensor]]
    lacking: tuple[str, ...]
    extra: str
    unaccounted: str
    companion: str
    relatives: tuple[tuple[str, str, Any, str], ...]
    renamed: str
    distilled: str
    tokenizers: tuple[tuple[str, str, str], ...]

    @property
    def family(self) -> Family:
        return find_family(self.name)

    def __str__(self) -> str:
        return self.name


_QWEN = ("tokenizer", "qwen25_tokenizer", "Qwen3")

ANIMA = Case(
    name="anima",
    title="Anima",
    fakes=fakes_anima,
    stem="anima",
    eighth=("net.blocks.0.mlp.layer1.weight",),  # mixed with bf16, as is usual
    from_eighth=lambda denoiser, stored: (
        denoiser.transformer_blocks[0].ff.net[0].proj.weight,
        stored["net.blocks.0.mlp.layer1.weight"],
    ),
    lacking=("net.blocks.1.mlp.layer2.weight", "net.llm_adapter.blocks.0.mlp.2.bias"),
    extra="net.blocks.0.extra.weight",
    unaccounted=r"2 missing.*layer2.*text_conditioner.*1 unexpected",
    companion=r"qwen_3_06b_base.*text_encoders.*--text-encoder",
    relatives=(
        ("transformer", "extra_pos_embed_type", "learnable", "learned positions"),
        ("transformer", "in_channels", 17, "takes 17 channels"),
        ("transformer", "quantization_config", {"bits": 4}, "is quantised"),
        ("text_encoder", "model_type", "t5", "'t5', not Qwen3"),
        ("vae", "_class_name", "AutoencoderKLWan", "not AutoencoderKLQwenImage"),
    ),
    renamed="anima-turbo-v1.safetensors",
    distilled="Turbo",
    tokenizers=(_QWEN, ("t5_tokenizer", "t5_tokenizer", "T5")),
)

KLEIN = Case(
    name="flux2_klein",
    title="FLUX.2 klein",
    fakes=fakes_klein,
    stem="klein-base",
    eighth=None,
    from_eighth=lambda denoiser, stored: (
        denoiser.transformer_blocks[0].ff.linear_in.weight,
        stored["double_blocks.0.img_mlp.0.weight"],
    ),
    lacking=("single_blocks.1.linear2.weight",),
    extra="single_blocks.0.extra.weight",
    unaccounted=r"1 missing.*linear2.*1 unexpected.*extra",
    companion=r"qwen_3_4b.*text_encoders.*--text-encoder",
    relatives=(
        ("transformer", "guidance_embeds", True, "FLUX.2 dev"),
        ("text_encoder", "model_type", "mistral", "'mistral', not Qwen3"),
        ("vae", "_class_name", "AutoencoderKL", "not AutoencoderKLFlux2"),
        ("text_encoder", "quantization_config", {"bits": 4}, "is quantised"),
    ),
    renamed="flux-2-klein-4b.safetensors",
    distilled="without `base`",
    tokenizers=(_QWEN,),
)

Z_IMAGE = Case(
    name="z_image",
    title="Z-Image",
    fakes=fakes_z_image,
    stem="z_image",
    eighth=("layers.0.attention.qkv.weight",),
    from_eighth=lambda denoiser, stored: (
        denoiser.layers[0].attention.to_k.weight,
        stored["layers.0.attention.qkv.weight"][fakes_z_image.WIDTH : 2 * fakes_z_image.WIDTH],
    ),
    lacking=("layers.1.feed_forward.w2.weight",),
    extra="layers.0.extra.weight",
    unaccounted=r"1 missing.*w2.*1 unexpected.*extra",
    companion=r"qwen_3_4b.*text_encoders.*--text-encoder",
    relatives=(
        ("transformer", "siglip_feat_dim", 64, "Z-Image Omni"),
        ("text_encoder", "model_type", "gemma2", "'gemma2', not Qwen3"),
        ("transformer", "quantization_config", {"bits": 4}, "is quantised"),
    ),
    renamed="z_image_turbo_bf16.safetensors",
    distilled="Turbo",
    tokenizers=(_QWEN,),
)

CASES = (ANIMA, KLEIN, Z_IMAGE)
