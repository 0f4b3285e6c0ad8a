"""ComfyUI's MODEL, CLIP and VAE to the backend's Model, and an adapter back onto a MODEL.

Weights are read through `get_key_patches`, which gives the unpatched base and the patches whatever
is loaded where (`model_state_dict` contains patches on some days and not on others), and patches
are merged into copies in float32: what the backend sees is what a KSampler would run. For a plan
in half precision each merged weight of the denoiser is then rounded to it, as when a file is loaded
for that plan. ComfyUI's executor works under inference mode, whose tensors cannot be trained:
everything is cloned.
The VAE stays ComfyUI's own, so its tiling and its memory management do too.
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..backend.adapter.lora import Adapter
    from ..backend.families import Family
    from ..backend.model.model import Model

UNET = "diffusion_model."


@contextmanager
def to_backend(
    model: Any,
    clip: Any,
    vae: Any,
    *,
    source: Path | None = None,
    denoiser_dtype: torch.dtype | None = None,
) -> Iterator[Model]:
    """The backend's Model for as long as the context lasts, in float32 on ComfyUI's device.

    Room is asked of ComfyUI before and given back after, also when an interrupt or a lack of
    memory passes through.

    Args:
        denoiser_dtype: of the denoiser alone, as `load_checkpoint` has it; None means float32.

    Raises:
        CheckpointError: the model is of a kind that cannot be hardened, or carries something
            that is not in its weights.
    """
    import torch
    from comfy import model_management

    from . import refuse

    refuse.check_model(model)
    refuse.check_parts(clip, vae)
    device = model_management.get_torch_device()
    with torch.inference_mode(False), torch.enable_grad():
        if torch.device(device).type != "cpu":
            model_management.free_memory(_bytes_needed(model, clip), device)
        built = None
        try:
            built = _model(model, clip, vae, device, source, denoiser_dtype or torch.float32)
            yield built
        finally:
            if built is not None:  # whoever still holds the Model holds no weights
                built.denoiser = built.vae = None  # type: ignore[assignment]
                built.text_encoders = ()
            del built
            gc.collect()
            model_management.soft_empty_cache()


def fingerprint(model: Any, clip: Any = None, vae: Any = None) -> str:
    """What the weights are, patches included, without building a network; 40 hex digits."""
    import torch

    found = hashlib.sha256()
    patchers = [model, getattr(clip, "patcher", None), getattr(vae, "patcher", None)]
    with torch.inference_mode(False), torch.no_grad():
        for number, patcher in enumerate(patchers):
            for name, entries in sorted((patcher.get_key_patches() if patcher else {}).items()):
                found.update(f"{number} {name} ".encode())
                _add(found, entries[0][0] if isinstance(entries[0], tuple) else entries[0])
                for patch in entries[1:]:
                    _add(found, patch)
    layer = getattr(clip, "layer_idx", None)
    found.update(json.dumps(layer if layer is None else int(layer)).encode())
    return found.hexdigest()[:40]


def unet_tensors(model: Any, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The U-Net's weights with all pending patches, names without prefix.

    dtype: that they are rounded to, one by one, once they are merged; None means float32.
    """
    return _merged(model, UNET, dtype)


def family_of(model: Any) -> Family:
    """Recognise the MODEL's family by the shapes of its weights."""
    from ..backend.checkpoint.in_memory import denoiser_family

    return denoiser_family("the MODEL", _named_shapes(model))


def denoiser_config(model: Any) -> dict[str, Any]:
    """Read the config of diffusers' denoiser off the shapes of the weights."""
    from ..backend.checkpoint import in_memory

    return in_memory.denoiser_config("the MODEL", _named_shapes(model), family_of(model))


def resolution_of(model: Any) -> int:
    """Return the native side in pixels."""
    return family_of(model).native_side(prediction_of(model))


def prediction_of(model: Any) -> str:
    """Return what the MODEL predicts, as checkpoints spell it."""
    return _schedule(model).prediction_type


def key_map(model: Any) -> dict[str, str]:
    """Module of the U-Net in diffusers to its name in ComfyUI, `input_blocks.1.1...`."""
    from ..backend.checkpoint.in_memory import denoiser_modules

    return denoiser_modules(family_of(model), denoiser_config(model))


def lora_model(adapter: Adapter, names: Mapping[str, str]) -> dict[str, Tensor]:
    """The adapter as a LORA_MODEL, in the names that ComfyUI reads completely, strength included.

    names: as `key_map` gives them.
    """
    import torch

    from ..backend.adapter.lora import A, B

    tensors: dict[str, Tensor] = {}
    with torch.inference_mode(False), torch.no_grad():
        for module in adapter.modules:
            stem = UNET + names[module]
            tensors[stem + ".lora_down.weight"] = adapter.tensors[module + A].cpu().clone()
            tensors[stem + ".lora_up.weight"] = adapter.tensors[module + B].cpu().clone()
            tensors[stem + ".alpha"] = torch.tensor(float(adapter.alpha))
    return tensors


def with_adapter(model: Any, lora: Mapping[str, Tensor]) -> Any:
    """A clone of the MODEL with the LORA_MODEL on it; every module of it must have been taken."""
    import comfy.sd

    from ..backend.errors import ExportError

    modules = sum(name.endswith(".alpha") for name in lora)
    patched = comfy.sd.load_lora_for_models(model, None, dict(lora), 1.0, 0.0)[0]
    before = sum(len(patches) for patches in model.patches.values())
    taken = sum(len(patches) for patches in patched.patches.values()) - before
    if taken != modules:
        raise ExportError(
            f"ComfyUI took {taken} of the adapter's {modules} modules: the MODEL is not the one "
            "that was hardened; connect the MODEL that Harden Model was given"
        )
    return patched


def carries(model: Any, lora: Mapping[str, Tensor]) -> bool:
    """Whether every weight that the LORA_MODEL changes is patched on the MODEL."""
    stems = [name.removesuffix(".alpha") for name in lora if name.endswith(".alpha")]
    return all(model.patches.get(stem + ".weight") for stem in stems)


def source_of(model: Any) -> Path | None:
    """The checkpoint file that ComfyUI loaded the MODEL from, where it says so (0.33 does)."""
    cached = getattr(model, "cached_patcher_init", None)
    if not cached or len(cached) < 2:
        return None
    for value in cached[1]:
        if isinstance(value, str) and value.endswith(".safetensors") and Path(value).is_file():
            return Path(value)
    return None


def is_patched(model: Any) -> bool:
    """Whether the MODEL carries LoRAs or merges that its file does not have."""
    return any(key.startswith(UNET) and model.patches[key] for key in model.patches)


def _model(
    model: Any, clip: Any, vae: Any, device: Any, source: Path | None, dtype: torch.dtype
) -> Model:
    import torch

    from ..backend.checkpoint import in_memory
    from ..backend.model.model import Model
    from .bridge_vae import HostVae

    tensors = unet_tensors(model, dtype)
    family = in_memory.denoiser_family("the MODEL", tensors)
    denoiser = in_memory.denoiser_from_tensors(
        "the MODEL", tensors, family, device=device, dtype=dtype
    )
    del tensors
    schedule = _schedule(model)
    space = family.latents.space({"scaling_factor": float(model.model.latent_format.scale_factor)})
    with torch.no_grad():
        texts = _text_encoders(clip, family, device)
    return Model(
        family=family,
        denoiser=denoiser,
        text_encoders=texts,
        tokenizers=family.networks.tokenizers(),
        vae=HostVae(vae, space.scale),  # type: ignore[arg-type]
        schedule=schedule.to(device),
        resolution=family.native_side(schedule.prediction_type),
        source=source,
        latent_space=space,
    )


def _text_encoders(clip: Any, family: Family, device: Any) -> tuple[Any, ...]:
    from ..backend.errors import CheckpointError

    merged = _merged(clip.patcher, "")
    found = []
    for part, component in zip(family.host.texts, family.text_encoders, strict=True):
        prefix = f"{part}.transformer."
        own = {n.removeprefix(prefix): t for n, t in merged.items() if n.startswith(prefix)}
        if not own:
            raise CheckpointError(
                f"the CLIP has no {part}, which the MODEL reads: connect the CLIP of the same "
                "checkpoint"
            )
        skip = _layers_skipped(clip, family)
        found.append(
            family.networks.text_encoder("the CLIP", component, own, skip_last=skip, device=device)
        )
    return tuple(found)


def _layers_skipped(clip: Any, family: Family) -> int:
    """Layers left out at the end: as CLIP Set Last Layer says, else as the family is used."""
    from ..backend.errors import CheckpointError

    layer = getattr(clip, "layer_idx", None)
    usual = family.host.last_layer
    if family.host.fixed_layer:  # the backend reads that layer by itself
        if layer not in (None, usual):
            raise CheckpointError(
                f"CLIP Set Last Layer is {layer} on a text encoder of {family.title}, which is "
                f"always read at {usual}: connect the CLIP before that node"
            )
        return 0
    return -(usual if layer is None else int(layer)) - 1


def _schedule(model: Any) -> Any:
    """ᾱ = 1 / (1 + σ²) from ComfyUI's σ, and what the network predicts."""
    import torch

    from ..backend.errors import CheckpointError
    from ..backend.model.schedule import NoiseSchedule

    sampling = model.get_model_object("model_sampling")
    names = [kind.__name__ for kind in type(sampling).__mro__]
    kinds = {"V_PREDICTION": "v_prediction", "EPS": "epsilon"}
    kind = next((kinds[name] for name in names if name in kinds), None)
    discrete = any(name == "ModelSamplingDiscrete" for name in names)
    if kind is None or not discrete or {"EDM", "X0", "IMG_TO_IMG"} & set(names):
        raise CheckpointError(
            f"the MODEL samples as {'/'.join(names[1:3])}: only ε and v prediction over a discrete "
            "schedule can be hardened; connect the MODEL before a ModelSampling node"
        )
    sigmas = sampling.sigmas.detach().double().cpu()
    alphas = (1 / (1 + sigmas**2)).float()
    return NoiseSchedule(torch.clone(alphas), kind)  # type: ignore[arg-type]


def _merged(patcher: Any, prefix: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Base weights with pending patches as ordinary tensors, float32 by default, where they lie."""
    import comfy.lora
    import torch

    out: dict[str, Tensor] = {}
    with torch.no_grad():
        for key, entries in patcher.get_key_patches(prefix or None).items():
            (weight, convert), patches = entries[0], entries[1:]
            merged = convert(weight.to(torch.float32, copy=True))
            if patches:
                merged = comfy.lora.calculate_weight(patches, merged, key)
            out[key.removeprefix(prefix)] = merged.detach().clone().to(dtype or torch.float32)
    return out


def _named_shapes(model: Any) -> dict[str, Tensor]:
    return {
        key.removeprefix(UNET): entries[0][0]
        for key, entries in model.get_key_patches(UNET).items()
    }


def _bytes_needed(model: Any, clip: Any) -> int:
    """Weights in float32, as much again for activations and graphs, and some room."""
    parameters = 0
    for module in (model.model, clip.cond_stage_model):
        parameters += sum(parameter.numel() for parameter in module.parameters())
    return parameters * 8 + (1 << 30)


def _add(found: Any, value: Any) -> None:
    """Feed a patch or weight, whatever it is nested in, to a hash: bits of tensors and numbers."""
    import torch

    if isinstance(value, torch.Tensor):
        tensor = value.detach().contiguous().reshape(-1)
        size = tensor.element_size()
        bits = tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size])
        picks = torch.linspace(0, max(len(bits) - 1, 0), min(64, len(bits)), dtype=torch.double)
        values = bits[picks.long().to(bits.device)].tolist()
        total = int(bits.sum(dtype=torch.int64))
        found.update(json.dumps([list(value.shape), str(value.dtype), values, total]).encode())
    elif isinstance(value, (list, tuple)):
        for item in value:
            _add(found, item)
    elif isinstance(value, (str, int, float, bool, type(None))):
        found.update(repr(value).encode())
    elif hasattr(value, "weights"):  # one of ComfyUI's weight adapters: a LoRA, LoHa, ...
        found.update(type(value).__name__.encode())
        _add(found, value.weights)
