"""A tiny random model of each family with text encoders, tokenizers and VAE, and pictures."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

from fakes import tiny_unet
from resalign.backend.families import find_family
from resalign.backend.model.model import Model
from resalign.backend.model.process import discrete_process, scaled_linear_alphas_cumprod

START, END = "<|startoftext|>", "<|endoftext|>"
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]


@cache
def tiny_tokenizer(pad: str = END) -> Any:
    """CLIP's tokenizer without a single merge: each letter is a token."""
    from transformers import CLIPTokenizer

    symbols = [chr(code) for code in PRINTABLE]
    symbols += [chr(256 + number) for number in range(256 - len(symbols))]
    words = [*symbols, *(symbol + "</w>" for symbol in symbols), START, END]
    with TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
        Path(folder, "merges.txt").write_text("#version: 0.2\n")
        special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
        config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
        Path(folder, "tokenizer_config.json").write_text(json.dumps(config))
        return CLIPTokenizer.from_pretrained(folder)


def tiny_text_encoder(width: int, seed: int, projection: bool = False, layers: int = 3) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=514, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=2, max_position_embeddings=77, projection_dim=12,
        bos_token_id=512, eos_token_id=513, pad_token_id=0,
    )  # fmt: skip
    kind = CLIPTextModelWithProjection if projection else CLIPTextModel
    return kind(config).eval().requires_grad_(False)


def tiny_vae(seed: int = 3) -> Any:
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, norm_num_groups=4,
        sample_size=64, scaling_factor=0.5,
    )  # fmt: skip
    return vae.eval().requires_grad_(False)


def tiny_family(family: str = "sd1", prediction: Any = "epsilon", seed: int = 0) -> Model:
    """All parts of a checkpoint with random weights; 64 pixels, latents [4, 8, 8]."""
    encoders = (tiny_text_encoder(16, seed + 1),)
    tokenizers = (tiny_tokenizer(),)
    unet = tiny_unet(seed)
    if family == "sd2":
        tokenizers = (tiny_tokenizer(pad="!"),)
    if family == "sdxl":
        encoders = (*encoders, tiny_text_encoder(24, seed + 2, projection=True))
        tokenizers = (*tokenizers, tiny_tokenizer(pad="!"))
        unet = tiny_unet(
            seed, cross_attention_dim=40, addition_embed_type="text_time",
            addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 12,
        )  # fmt: skip
    return Model(
        family=find_family(family),
        denoiser=unet,
        text_encoders=encoders,
        tokenizers=tokenizers,
        vae=tiny_vae(),
        process=discrete_process(scaled_linear_alphas_cumprod(), prediction),
        resolution=64,
    )


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Smooth random colours."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def save_pictures(folder: Path, captions: dict[str, str | None], side: int = 64) -> Path:
    """Pictures by file name, each with a `.txt` beside it unless its caption is None."""
    for seed, (name, caption) in enumerate(captions.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(side, side, seed).save(path)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return folder


class Calls:
    """Counts the calls of a function that it replaces."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.count = inner, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        return self.inner(*args, **kwargs)
