"""MODEL, CLIP and VAE of a tiny FLUX.2 klein as ComfyUI holds them: the names of its memory, a CLIP
that encodes by itself, a VAE that normalises by itself."""

from __future__ import annotations

import types
from typing import Any

import fakes_bridge
import fakes_klein
import torch
from torch import Tensor

from resalign.backend.families import find_family
from resalign.backend.families.flux2_klein.latents import Latents
from resalign.backend.model.model import Model

KLEIN = find_family("flux2_klein")


class CONST: ...


class IMG_TO_IMG_FLOW(CONST): ...


def in_memory(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names that ComfyUI gives a file's tensors."""
    return {
        "diffusion_model." + name.replace("_norm.scale", "_norm.weight"): tensor
        for name, tensor in tensors.items()
    }


class Clip(fakes_bridge.Clip):
    """Encodes with transformers' Qwen3. width: of the conditioning, cut off there."""

    def __init__(self, width: int | None = None) -> None:
        networks = fakes_klein.build_networks()
        state = networks["text_encoder"].state_dict()
        super().__init__({f"qwen3_4b.transformer.model.{n}": t for n, t in state.items()})
        self.width, self.asked = width, []
        self._loaded = types.SimpleNamespace(
            text_encoders=(networks["text_encoder"],), tokenizers=(fakes_klein.byte_tokenizer(),),
            device=torch.device("cpu"),
        )  # fmt: skip

    def tokenize(self, text: str) -> Any:
        return {"qwen3_4b": text}

    def encode_from_tokens_scheduled(self, tokens: Any, show_pbar: bool = True) -> list[Any]:
        self.asked.append(tokens["qwen3_4b"])
        with torch.inference_mode():
            ids = KLEIN.texts.tokenise(self._loaded, [tokens["qwen3_4b"]])
            context = KLEIN.texts.encode(self._loaded, ids)["context"]
        return [[context[..., : self.width], {"pooled_output": None, "attention_mask": ids[1]}]]


class Vae(fakes_bridge.Vae):
    """Normalised patches in and out, colours from 0 to 1, last."""

    def __init__(self) -> None:
        super().__init__()
        self._vae = fakes_klein.build_networks()["vae"]
        self.space = Latents().space({"latent_channels": 32, "block_out_channels": (8,) * 4})

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        images = pixels.movedim(-1, 1) * 2 - 1
        return Latents().encode(self._vae, images, self.space, None)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        images = Latents().decode(self._vae, latents, self.space)
        return ((images + 1) / 2).clamp(0, 1).movedim(1, -1)


def host_parts() -> tuple[fakes_bridge.ModelPatcher, Clip, Vae]:
    denoiser = fakes_klein.build_networks()["transformer"].state_dict()
    model = fakes_bridge.ModelPatcher(in_memory(fakes_klein.native_denoiser(denoiser)))
    model.sampling = fakes_bridge.sampling(fakes_bridge.ModelSamplingFlux, CONST)
    model.model.latent_format = types.SimpleNamespace(scale_factor=1.0)
    return model, Clip(), Vae()


def from_files(folder: Any) -> Model:
    """Write the tiny model to split files and load it from them."""
    from resalign.backend.checkpoint.load import load_checkpoint

    return load_checkpoint(fakes_klein.write_split(folder))
