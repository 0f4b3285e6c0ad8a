"""A checkpoint into memory, strictly: every tensor is accounted for before any is read.

The networks are built without storage (meta device) and filled tensor by tensor from the file, so
there is never more than one copy of the weights plus one tensor. Configs and tokenizers are those
that ship with the package, or those of the diffusers folder; nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import CheckpointError
from ..model.model import Model
from ..model.schedule import NoiseSchedule
from .detect import CheckpointInfo, detect
from .family import load_tokenizers, text_encoders_of
from .keys import Source
from .schedule import noise_schedule
from .sources import canonical_name, harmless_extra, tensor_sources
from .tensors import FLOATS, TensorFile, part_shape

_SHOWN = 4  # names of missing or unexpected tensors in a message
_HALVES = {"F16": torch.float16, "BF16": torch.bfloat16}
# Fields of a text encoder's config that speak of how it was stored, not of what it is.
_STORAGE_FIELDS = ("architectures", "dtype", "torch_dtype", "transformers_version", "model_type")


def load_checkpoint(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    denoiser_dtype: torch.dtype | None = None,
    linear_device: torch.device | str | None = None,
    spare_encoders: bool = False,
) -> Model:
    """Load a checkpoint for inference and hardening: eval mode, no weight requires a gradient.

    Args:
        path: a single `.safetensors` file or a diffusers folder of SD 1.x, SD 2.x or SDXL.
        device: where the weights go, one by one.
        dtype: of all weights. None means float32 on the CPU; elsewhere each network keeps its
            storage type if that is float16 or bfloat16 (fp8 becomes float16), else float32. The
            VAE of SDXL overflows in float16 and is kept in float32 instead.
        denoiser_dtype: of the denoiser alone; None means `dtype`.
        linear_device: where the denoiser's linear layers go instead, for `harden` to quantise
            them onto the device one by one; until then the denoiser cannot be used.
        spare_encoders: hardening may drop text encoders and VAE when it has encoded its data.
    """
    info = detect(path)
    device = torch.device(device)
    schedule = load_schedule(info)
    networks = {name: build_network(info, name) for name in info.components}
    check_tensors(info, networks)
    for name, network in networks.items():
        asked = denoiser_dtype or dtype if name == "unet" else dtype
        apart = linear_device if name == "unet" else None
        _fill(info, name, network, device, _dtype_of(info, name, device, asked), apart)
    texts = text_encoders_of(info.family)
    return Model(
        family=info.family,
        denoiser=networks["unet"],  # type: ignore[arg-type]
        text_encoders=tuple(networks[name] for name in texts),
        tokenizers=load_tokenizers(info.family),
        vae=networks["vae"],  # type: ignore[arg-type]
        schedule=schedule.to(device),
        resolution=info.resolution,
        source=info.path,
        spare_encoders=spare_encoders,
    )


def load_schedule(info: CheckpointInfo) -> NoiseSchedule:
    """ᾱ and the prediction type, without loading any network."""
    return noise_schedule(info.path.name, info.configs["scheduler"])


def build_network(info: CheckpointInfo, component: str) -> nn.Module:
    """One network of the checkpoint without storage: every tensor is on the meta device."""
    return network_from(info.path.name, component, info.configs[component])


def network_from(who: str, component: str, config: Mapping[str, Any]) -> nn.Module:
    """The network of a config in diffusers' form, without storage; `who` names it in errors."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = {key: v for key, v in config.items() if not key.startswith("_")}
    try:
        with torch.device("meta"):
            if component == "unet":
                return UNet2DConditionModel.from_config(config)  # type: ignore[return-value]
            if component == "vae":
                return AutoencoderKL.from_config(config)  # type: ignore[return-value]
            plain = {key: v for key, v in config.items() if key not in _STORAGE_FIELDS}
            kind = CLIPTextModelWithProjection if component == "text_encoder_2" else CLIPTextModel
            return kind(CLIPTextConfig(**plain))
    except (TypeError, ValueError, KeyError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(
            f"{who}: its {component} cannot be built from its config ({error}); fetch "
            "it again, or correct its config"
        ) from error


def check_tensors(info: CheckpointInfo, networks: dict[str, nn.Module]) -> None:
    """Raise unless the file holds exactly the tensors of the networks, harmless extras apart."""
    stored = {
        (file, name): entry
        for file, header in info.headers.items()
        for name, entry in header.tensors.items()
    }
    missing, wrong, used = [], [], set()
    for component, network in networks.items():
        sources = tensor_sources(info, component)
        for name, tensor in network.state_dict().items():
            if name.endswith("position_ids"):
                continue
            source = sources.get(canonical_name(component, name))
            places = [(file, source.name) for file in info.files[component]] if source else []
            place = next((place for place in places if place in stored), None)
            if source is None or place is None:
                missing.append(source.name if source else f"{component}: {name}")
                continue
            used.add(place)
            entry = stored[place]
            found = part_shape(entry.shape, source.part)
            if found != tuple(tensor.shape):
                wrong.append(f"{source.name} is {list(found)}, not {list(tensor.shape)}")
            elif entry.dtype not in FLOATS:
                wrong.append(f"{source.name} is stored as {entry.dtype}, not as floating point")
    unexpected = [
        name for file, name in stored if (file, name) not in used and not harmless_extra(info, name)
    ]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{', ...' * (len(names) > _SHOWN)})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("unfit", wrong))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{info.path.name} looks like {info.title}, but its tensors are not exactly those: "
            + "; ".join(problems)
            + ". It is incomplete or of another kind; use the original checkpoint"
        )


def _fill(
    info: CheckpointInfo,
    component: str,
    network: nn.Module,
    device: torch.device,
    dtype: torch.dtype,
    linear_device: torch.device | str | None = None,
) -> None:
    """Give every tensor of a network its value from the file."""
    linear = {name for name, part in network.named_modules() if isinstance(part, nn.Linear)}
    sources = tensor_sources(info, component)
    wanted: dict[str, Source] = {
        name: sources[canonical_name(component, name)]
        for name in network.state_dict()
        if not name.endswith("position_ids")
    }
    state: dict[str, torch.Tensor] = {}
    for path in info.files[component]:
        with TensorFile(path, info.headers[path]) as file:
            for name, source in wanted.items():
                if source.name in file.header.tensors:
                    apart = linear_device is not None and name.rpartition(".")[0] in linear
                    home = linear_device if apart else device
                    state[name] = file.read(source).to(device=home, dtype=dtype)
    network.load_state_dict(state, strict=False, assign=True)
    _fill_position_ids(network, device)
    empty = [name for name, tensor in _tensors(network) if tensor.is_meta]
    assert not empty, f"left without storage: {empty}"
    network.eval().requires_grad_(False)


def _fill_position_ids(network: nn.Module, device: torch.device) -> None:
    """CLIP's buffer 0, 1, 2 ..., which some files hold and no version needs from them."""
    for module in network.modules():
        for name, buffer in module._buffers.items():
            if name == "position_ids" and buffer is not None:
                module._buffers[name] = torch.arange(buffer.shape[-1], device=device)[None]


def _tensors(network: nn.Module) -> list[tuple[str, Any]]:
    return [*network.named_parameters(), *network.named_buffers()]


def _dtype_of(
    info: CheckpointInfo, component: str, device: torch.device, asked: torch.dtype | None
) -> torch.dtype:
    if asked is None and device.type == "cpu":
        return torch.float32
    stored = info.dtypes[component][0]
    if stored.startswith("F8"):
        stored = "F16"
    dtype = asked or _HALVES.get(stored, torch.float32)
    if info.family == "sdxl" and component == "vae" and dtype == torch.float16:
        return torch.float32
    return dtype
