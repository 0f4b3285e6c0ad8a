"""MODEL, CLIP and VAE of tiny flow-matching models as ComfyUI holds them: the names of its memory,
a CLIP that encodes by itself, a VAE with latents of its own kind."""

from __future__ import annotations

import gc
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fakes_anima
import fakes_bridge
import fakes_klein
import fakes_z_image
import pytest
import torch
from torch import Tensor

from resalign.backend.families import find_family
from resalign.backend.families.base.family import Family
from resalign.backend.families.flux2_klein.latents import Latents
from resalign.backend.model.model import Model


def bridge(monkeypatch: Any, base: Path) -> Any:
    """The module under test. Collecting garbage would take longer than most tests."""
    monkeypatch.setattr(gc, "collect", lambda: 0)
    return fakes_bridge.bridge(monkeypatch, base)[0]


def bridge_fixtures() -> tuple[Any, Any]:
    """Make the fixtures `parts`, the MODEL, CLIP and VAE of a module's `host`, and `bridge`."""

    @pytest.fixture(name="parts")
    def parts(host):
        return host.parts()

    @pytest.fixture(name="bridge")
    def made(monkeypatch, tmp_path):
        return bridge(monkeypatch, tmp_path)

    return parts, made


class CONST: ...


class IMG_TO_IMG_FLOW(CONST): ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Host:
    """One family in ComfyUI.

    encode: (networks, prompt) to the embedding and the entries beside it. held: a file's tensors
    without prefix to those in memory. fused: modules that share a weight there.
    """

    family: Family
    fakes: Any
    part: str
    scale: float
    encode: Callable[[Any, str], tuple[Tensor, dict[str, Any]]]
    vae: type[fakes_bridge.Vae]
    held: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    fused: tuple[str, ...]
    others: tuple[str, ...]
    loader: str

    def __str__(self) -> str:
        return self.family.name

    def parts(self) -> tuple[fakes_bridge.ModelPatcher, Clip, fakes_bridge.Vae]:
        tensors = self.held(denoiser_tensors(self))
        model = fakes_bridge.ModelPatcher({f"diffusion_model.{n}": t for n, t in tensors.items()})
        model.sampling = fakes_bridge.sampling(fakes_bridge.ModelSamplingFlux, CONST)
        model.model.latent_format = types.SimpleNamespace(scale_factor=self.scale)
        return model, Clip(self), self.vae()

    def from_files(self, folder: Any) -> Model:
        """Write the tiny model to split files and load it from them."""
        from resalign.backend.checkpoint.load import load_checkpoint

        return load_checkpoint(self.fakes.write_split(folder))


class Clip(fakes_bridge.Clip):
    """Encodes with transformers' Qwen3. width: of the embedding, cut off there."""

    def __init__(self, host: Host, width: int | None = None) -> None:
        self._networks, self._encode = host.fakes.build_networks(), host.encode
        state = self._networks["text_encoder"].state_dict()
        super().__init__({f"{host.part}.transformer.model.{n}": t for n, t in state.items()})
        self.width, self.asked, self.options = width, [], {}

    def tokenize(self, text: str, **options: Any) -> Any:
        self.options = options
        return {"tokens": text}

    def encode_from_tokens_scheduled(self, tokens: Any, show_pbar: bool = True) -> list[Any]:
        self.asked.append(tokens["tokens"])
        with torch.inference_mode():
            embedding, entries = self._encode(self._networks, tokens["tokens"])
        return [[embedding[..., : self.width], {"pooled_output": None, **entries}]]


def denoiser_tensors(host: Host) -> dict[str, Tensor]:
    """The tensors of the denoiser's file, without prefix."""
    if host.fakes is fakes_klein:
        state = fakes_klein.build_networks()["transformer"].state_dict()
        return fakes_klein.native_denoiser(state)
    return host.fakes.denoiser_tensors()


class Vae(fakes_bridge.Vae):
    """Colours from 0 to 1, last; latents as the network of `fakes` gives them."""

    fakes: Any

    def __init__(self) -> None:
        super().__init__()
        self._vae = self.fakes.build_networks()["vae"]

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        return self.to_latents(pixels.movedim(-1, 1) * 2 - 1)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        return ((self.to_images(latents) + 1) / 2).clamp(0, 1).movedim(1, -1)

    def to_latents(self, images: Tensor) -> Tensor:
        return self._vae.encode(images).latent_dist.mean

    def to_images(self, latents: Tensor) -> Tensor:
        return self._vae.decode(latents).sample


# --- FLUX.2 klein ---------------------------------------------------------------------------------


def encode_klein(networks: Any, prompt: str) -> tuple[Tensor, dict[str, Any]]:
    """Three layers, 512 tokens with padding."""
    loaded: Any = types.SimpleNamespace(
        text_encoders=(networks["text_encoder"],), tokenizers=(fakes_klein.byte_tokenizer(),),
        device=torch.device("cpu"),
    )  # fmt: skip
    texts = KLEIN.family.texts
    ids = texts.tokenise(loaded, [prompt])
    return texts.encode(loaded, ids)["context"], {"attention_mask": ids[1]}


class KleinVae(Vae):
    """Normalised patches in and out."""

    fakes = fakes_klein

    def __init__(self) -> None:
        super().__init__()
        self.space = Latents().space({"latent_channels": 32, "block_out_channels": (8,) * 4})

    def to_latents(self, images: Tensor) -> Tensor:
        return Latents().encode(self._vae, images, self.space, None)

    def to_images(self, latents: Tensor) -> Tensor:
        return Latents().decode(self._vae, latents, self.space)


def held_klein(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.replace("_norm.scale", "_norm.weight"): tensor for n, tensor in tensors.items()}


KLEIN = Host(
    family=find_family("flux2_klein"), fakes=fakes_klein, part="qwen3_4b", scale=1.0,
    encode=encode_klein, vae=KleinVae, held=held_klein, loader="type flux2",
    fused=tuple(f"transformer_blocks.0.attn.{name}"
                for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")),
    others=("single_transformer_blocks.1.attn.to_qkv_mlp_proj", "norm_out.linear"),
)  # fmt: skip


# --- Z-Image --------------------------------------------------------------------------------------


def encode_z_image(networks: Any, prompt: str) -> tuple[Tensor, dict[str, Any]]:
    """The layer before the last, of the prompt's own tokens."""
    text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    ids = fakes_klein.byte_tokenizer()(text, add_special_tokens=False, return_tensors="pt")
    states = networks["text_encoder"](input_ids=ids.input_ids, output_hidden_states=True)
    return states.hidden_states[-2], {"attention_mask": torch.ones_like(ids.input_ids)}


class ZImageVae(Vae):
    fakes = fakes_z_image


def held_z_image(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name != "norm_final.weight"}


Z_IMAGE = Host(
    family=find_family("z_image"), fakes=fakes_z_image, part="qwen3_4b", scale=0.3611,
    encode=encode_z_image, vae=ZImageVae, held=held_z_image, loader="type lumina2",
    fused=tuple(f"layers.1.attention.to_{name}" for name in "qkv"),
    others=("layers.0.feed_forward.w2", "layers.0.attention.to_out.0"),
)  # fmt: skip


# --- Anima ----------------------------------------------------------------------------------------


def encode_anima(networks: Any, prompt: str) -> tuple[Tensor, dict[str, Any]]:
    """The last layer, of a padding token where there are no others; and T5's tokens."""
    qwen, t5 = fakes_anima.byte_tokenizer("qwen"), fakes_anima.byte_tokenizer("t5")
    ids = qwen(prompt, add_special_tokens=False).input_ids or [qwen.pad_token_id]
    states = networks["text_encoder"](input_ids=torch.tensor([ids])).last_hidden_state
    targets = torch.tensor(t5(prompt).input_ids, dtype=torch.int)
    return states, {"t5xxl_ids": targets, "t5xxl_weights": torch.ones(len(targets))}


class AnimaVae(Vae):
    """A VAE of videos: several pictures at once are moments of one."""

    fakes = fakes_anima

    def to_latents(self, images: Tensor) -> Tensor:
        return super().to_latents(images.movedim(1, 0)[None])


def held_anima(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    counters = fakes_anima.counters()
    own = {name.removeprefix("net."): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in own.items() if name not in counters}


ANIMA = Host(
    family=find_family("anima"), fakes=fakes_anima, part="qwen3_06b", scale=1.0,
    encode=encode_anima, vae=AnimaVae, held=held_anima, loader=r"Qwen3 0\.6B",
    fused=(),
    others=("transformer_blocks.1.attn2.to_k", "transformer_blocks.0.ff.net.0.proj", "proj_out"),
)  # fmt: skip

HOSTS = (KLEIN, ANIMA, Z_IMAGE)
