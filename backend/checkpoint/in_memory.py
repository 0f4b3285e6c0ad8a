"""Networks from tensors that a host holds in memory, in the original layout; no file is read.

The tensors are strictly those of the network: shapes and layers are read off them as they are off
a file (`architecture.py`), so the same layouts are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from . import architecture
from .architecture import Shapes
from .family import family_config, text_encoders_of
from .header import TensorEntry
from .keys import clip_names, unet_names
from .refuse import refused_channels

_CONTEXT_WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
_UNSEEN = ("logit_scale", "position_ids")  # in a text encoder, of no use to it


def unet_family(who: str, tensors: Mapping[str, Tensor]) -> str:
    """`sd1`, `sd2` or `sdxl`, by the width of the text embeddings that a U-Net reads."""
    found = [t.shape[-1] for name, t in tensors.items() if name.endswith("attn2.to_k.weight")]
    family = _CONTEXT_WIDTHS.get(found[0]) if found else None
    if family is None or (family == "sdxl") != ("label_emb.0.0.weight" in tensors):
        raise CheckpointError(
            f"{who} is no SD 1.x, SD 2.x or SDXL base U-Net"
            + (f" (it reads text embeddings of width {found[0]})" if found else "")
            + ": other families cannot be hardened yet"
        )
    return family


def unet_config_of(who: str, tensors: Mapping[str, Tensor], family: str) -> dict[str, Any]:
    """UNet2DConditionModel's config for a U-Net in the original layout, names without prefix."""
    shapes = _shapes(who, tensors)
    config = family_config(family, "unet") | architecture.unet_config(shapes)
    if family != "sd1":
        heads = architecture.heads_of_width_64(config["block_out_channels"])
        config["attention_head_dim"] = heads
    other = refused_channels(config["in_channels"])
    if other:
        raise CheckpointError(other.sentence(who))
    return config


def unet_module_names(config: Mapping[str, Any]) -> dict[str, str]:
    """Module in diffusers to module in the original layout, for all that have a weight."""
    return {
        diffusers.removesuffix(".weight"): ldm.removesuffix(".weight")
        for ldm, diffusers in unet_names(config)
        if ldm.endswith(".weight")
    }


def unet_from_tensors(
    who: str,
    tensors: Mapping[str, Tensor],
    family: str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """A UNet2DConditionModel that shares no memory with `tensors`, unless they already fit.

    Raises:
        CheckpointError: a layout that cannot be mapped, missing or surplus tensors; `who` names
            the model in it.
    """
    from diffusers import UNet2DConditionModel

    config = unet_config_of(who, tensors, family)
    names = dict(unet_names(config))
    _same_names(who, set(names), set(tensors))
    plain = {key: value for key, value in config.items() if not key.startswith("_")}
    with torch.device("meta"):
        network = UNet2DConditionModel.from_config(plain)
    state = {names[ldm]: tensor.to(device, dtype) for ldm, tensor in tensors.items()}
    network.load_state_dict(state, strict=True, assign=True)  # type: ignore[attr-defined]
    return network.eval().requires_grad_(False)  # type: ignore[attr-defined]


def text_encoder_from_tensors(
    who: str,
    tensors: Mapping[str, Tensor],
    family: str,
    component: str,
    *,
    skip_last: int = 0,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """A CLIP text encoder in float32 from tensors in transformers' names.

    tensors: `text_model.embeddings...`, and `text_projection.weight` for SDXL's second.
    skip_last: layers left out at the end (CLIP skip 2 is 1); the final norm follows all the same.
        SD 2.x reads the last layer but one, which is one left out.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    own = {n.removeprefix("text_model."): t for n, t in tensors.items() if n[:11] == "text_model."}
    config = family_config(family, component)
    config |= architecture.clip_config(_shapes(who, own), drop_last=False)
    projected = component == "text_encoder_2"
    if projected:
        config["projection_dim"] = tensors["text_projection.weight"].shape[0]
    _same_names(who, set(clip_names(config)), {n for n in own if not n.endswith(_UNSEEN)})
    layers = config["num_hidden_layers"] - skip_last
    if layers < 1:
        raise CheckpointError(f"{who}: CLIP skip leaves none of its {layers + skip_last} layers")
    config["num_hidden_layers"] = layers
    plain = {k: v for k, v in config.items() if k not in ("architectures", "torch_dtype", "dtype")}
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    with torch.device("meta"):
        network = kind(CLIPTextConfig(**plain))
    state = {}
    for name in network.state_dict():
        bare = name.removeprefix("text_model.")
        source = tensors[name] if name in tensors else own.get(bare)
        if source is not None:
            state[name] = source.to(device, torch.float32)
    network.load_state_dict(state, strict=False, assign=True)
    for module in network.modules():
        for name, buffer in module._buffers.items():
            if name == "position_ids" and buffer is not None:
                module._buffers[name] = torch.arange(buffer.shape[-1], device=device)[None]
    empty = [name for name, tensor in network.state_dict().items() if tensor.is_meta]
    if empty:
        raise CheckpointError(f"{who} lacks {empty[0]} and {len(empty) - 1} more tensors")
    return network.eval().requires_grad_(False)


def text_components(family: str) -> tuple[str, ...]:
    """Component names of a family's text encoders, in the order of `Model.text_encoders`."""
    return text_encoders_of(family)


def _shapes(who: str, tensors: Mapping[str, Tensor]) -> Shapes:
    entries = {name: TensorEntry("F32", tuple(t.shape), 0, 0) for name, t in tensors.items()}
    return Shapes(who, entries, "")


def _same_names(who: str, wanted: set[str], found: set[str]) -> None:
    missing, surplus = sorted(wanted - found), sorted(found - wanted)
    if missing or surplus:
        raise CheckpointError(
            f"{who}: {len(missing)} tensors missing ({', '.join(missing[:3])}), {len(surplus)} "
            f"unexpected ({', '.join(surplus[:3])}); use an SD 1.x, SD 2.x or SDXL base checkpoint"
        )
