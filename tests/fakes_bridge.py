"""ComfyUI's patchers as the bridge sees them: weights by name, patches on them, options."""

from __future__ import annotations

import copy
import sys
import types
from pathlib import Path
from typing import Any

import fakes_comfy
import torch
from fakes_checkpoint import build_networks, ldm_tensors
from torch import Tensor, nn

from resalign.backend.families.base.process import scaled_linear_alphas_cumprod
from resalign.backend.families.unet import recognition


class EPS: ...


class V_PREDICTION(EPS): ...


class EDM(V_PREDICTION): ...


class ModelSamplingDiscrete:
    def __init__(self) -> None:
        alphas = scaled_linear_alphas_cumprod()
        self.sigmas = ((1 - alphas) / alphas).sqrt()


class ModelSamplingFlux: ...


def sampling(*kinds: type) -> Any:
    return type("ModelSampling", kinds, {})()


class Holder(nn.Module):
    """A network: tensors under dotted names."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.held = nn.ParameterList(
            [nn.Parameter(t, requires_grad=False) for t in tensors.values()]
        )


class ModelPatcher:
    """A patch is (strength, tensor); a weight may come with a function that unpacks it."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors
        self.unpack: dict[str, Any] = {}
        self.patches: dict[str, list[Any]] = {}
        self.object_patches: dict[str, Any] = {}
        self.model_options: dict[str, Any] = {"transformer_options": {}}
        self.model = Holder(tensors)
        self.model.latent_format = types.SimpleNamespace(scale_factor=0.18215)
        self.model.model_config = types.SimpleNamespace(quant_config=None)
        self.sampling = sampling(ModelSamplingDiscrete, EPS)
        self.attachments: dict[str, Any] = {}

    def set_attachments(self, key: str, attachment: Any) -> None:
        self.attachments[key] = attachment

    def get_attachment(self, key: str) -> Any:
        return self.attachments.get(key)

    def clone(self) -> ModelPatcher:
        other = copy.copy(self)
        other.unpack = dict(self.unpack)
        other.patches = {key: list(patches) for key, patches in self.patches.items()}
        other.attachments = dict(self.attachments)
        return other

    def get_model_object(self, name: str) -> Any:
        return {"model_sampling": self.sampling}[name]

    def get_key_patches(self, prefix: str | None = None) -> dict[str, list[Any]]:
        return {
            name: [
                (tensor, self.unpack.get(name, lambda weight: weight)),
                *self.patches.get(name, []),
            ]
            for name, tensor in self.tensors.items()
            if name.startswith(prefix or "")
        }


class Clip:
    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.patcher = ModelPatcher(tensors)
        self.cond_stage_model = self.patcher.model
        self.layer_idx: int | None = None


class Vae:
    """Eight times smaller by averaging; colours from 0 to 1, last."""

    def __init__(self) -> None:
        self.patcher = ModelPatcher({"decoder.weight": torch.ones(3)})
        self.first_stage_model = nn.Linear(2, 2)
        self.given: list[Tensor] = []

    def encode(self, pixels: Tensor) -> Tensor:
        self.given.append(pixels)
        small = nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8)
        return torch.cat([small, small[:, :1]], dim=1)

    def decode(self, latents: Tensor) -> Tensor:
        self.given.append(latents)
        large = latents[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3)
        return large.movedim(1, -1)


def host_parts(seed: int = 0) -> tuple[ModelPatcher, Clip, Vae]:
    """MODEL, CLIP and VAE of a tiny SD 1.x checkpoint."""
    tensors = ldm_tensors(build_networks("sd1", seed=seed), "sd1")
    unet = {n[6:]: t for n, t in tensors.items() if n.startswith("model.diffusion_model.")}
    start = "cond_stage_model.transformer."
    text = {n.replace(start, "clip_l.transformer."): t for n, t in tensors.items() if start in n}
    return ModelPatcher(unet), Clip(text), Vae()


def load_lora(model: Any, clip: Any, tensors: Any, strength: float, strength_clip: float) -> Any:
    """Stand in for comfy.sd.load_lora_for_models, for LoRAs in ComfyUI's own names."""
    other = model.clone()
    for name in tensors:
        for mark, leaf in ((".diff", ".weight"), (".diff_b", ".bias")):
            key = name.removesuffix(mark) + leaf
            if name.endswith(mark) and key in other.tensors:
                other.patches.setdefault(key, []).append((strength, tensors[name]))
        stem = name.removesuffix(".alpha")
        if stem != name and stem + ".weight" in other.tensors:
            up, down = (tensors[f"{stem}.lora_{side}.weight"] for side in ("up", "down"))
            change = (up.flatten(1) @ down.flatten(1)) * (tensors[name] / len(down))
            shape = other.tensors[stem + ".weight"].shape
            patch = (strength, change.reshape(shape))
            other.patches.setdefault(stem + ".weight", []).append(patch)
    return other, clip


def bridge(monkeypatch: Any, base: Path) -> tuple[Any, fakes_comfy.Host]:
    """The module under test against a host that merges patches and loads LoRAs."""
    host = fakes_comfy.install(monkeypatch, base)
    lora, sd = types.ModuleType("comfy.lora"), types.ModuleType("comfy.sd")
    lora.calculate_weight = lambda patches, weight, key: (
        weight + sum(strength * change for strength, change in patches)
    )

    sd.load_lora_for_models = load_lora
    package = sys.modules["comfy"]
    for name, module in {"lora": lora, "sd": sd}.items():
        monkeypatch.setitem(sys.modules, f"comfy.{name}", module)
        monkeypatch.setattr(package, name, module, raising=False)
    monkeypatch.setattr(recognition, "CONTEXT_WIDTHS", {32: "plain"})  # the tiny model's width
    return fakes_comfy.load_nodes(monkeypatch, "bridge"), host
