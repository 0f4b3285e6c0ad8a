"""Builds the backend's Model from ComfyUI's MODEL, CLIP and VAE.

Weights are read through `get_key_patches`, which returns the unpatched base and the patches
wherever the model is loaded (`model_state_dict` contains patches at some times and not at others),
and patches are merged into copies in float32: the backend sees what a KSampler would run. For a
plan in half precision each merged weight of the denoiser is then rounded to it, as when a file is
loaded for that plan. ComfyUI's executor works in inference mode, whose tensors cannot be trained:
everything is cloned. The VAE stays ComfyUI's own, and so do its tiling and memory management; for
families that say so, the CLIP does too (`text.py`).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import checks
from .checks import UNET

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ...backend.families import Family
    from ...backend.families.base.sources import Source
    from ...backend.model.model import Model


_ZERO = 1e-4  # ᾱ below which a schedule ends in pure noise; without that it ends at .0047


@contextmanager
def to_backend(
    model: Any,
    clip: Any,
    vae: Any,
    *,
    source: Path | None = None,
    denoiser_dtype: torch.dtype | None = None,
) -> Iterator[Model]:
    """Build the backend's Model for the context, in float32 on ComfyUI's device.

    Asks ComfyUI to free memory before, and frees its own after, also when an interrupt or an
    out-of-memory error ends the context.

    Args:
        denoiser_dtype: of the denoiser only, as in `load_checkpoint`; None means float32.

    Raises:
        CheckpointError: the model is of a kind that cannot be hardened, or carries something
            that is not in its weights.
    """
    import torch
    from comfy import model_management

    checks.check_model(model)
    checks.check_parts(clip, vae)
    device = model_management.get_torch_device()
    with torch.inference_mode(False), torch.enable_grad():
        if torch.device(device).type != "cpu":
            model_management.free_memory(_bytes_needed(model, clip), device)
        built = None
        try:
            built = _model(model, clip, vae, device, source, denoiser_dtype or torch.float32)
            yield built
        finally:
            if built is not None:  # a reference that is left must not keep the weights
                built.denoiser = built.vae = None  # type: ignore[assignment]
                built.text_encoders = ()
            del built
            gc.collect()
            model_management.soft_empty_cache()


def unet_tensors(model: Any, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return the denoiser's weights with all pending patches merged, names without prefix.

    dtype: each merged weight is rounded to it; None means float32.
    """
    return _merged(model, UNET, dtype)


def merged_weight(model: Any, name: str) -> Tensor:
    """Return one weight, by ComfyUI's whole name, with all patches merged."""
    return _merged(model, name)[""]


def family_of(model: Any) -> Family:
    """Recognise the MODEL's family by the shapes of its weights."""
    from ...backend.checkpoint.in_memory import denoiser_family

    return denoiser_family("the MODEL", _named_shapes(model))


def denoiser_config(model: Any) -> dict[str, Any]:
    """Read the config of diffusers' denoiser off the shapes of the weights."""
    from ...backend.checkpoint import in_memory

    return in_memory.denoiser_config("the MODEL", _named_shapes(model), family_of(model))


def resolution_of(model: Any) -> int:
    """Return the native side in pixels."""
    return family_of(model).native_side(prediction_of(model))


def prediction_of(model: Any) -> str:
    """Return what the MODEL predicts, as checkpoints spell it."""
    return _schedule(model).prediction_type


def decision_of(model: Any) -> str:
    """Return what the MODEL predicts as a decision for its file: `epsilon`, `v` or `v-zsnr`."""
    return process_decision(_schedule(model))


def process_decision(process: Any) -> str:
    """Return what a noise process predicts as a decision for a file; empty where none is needed."""
    from ...backend.families.base.stored import decision_of as decision

    alphas = getattr(process, "alphas_cumprod", None)  # a flow has none
    zero = alphas is not None and float(alphas[-1]) < _ZERO
    return decision(process.prediction_type, zero)


def places_of(model: Any) -> dict[str, Source]:
    """Map each tensor of diffusers' denoiser to its place in ComfyUI's, names without prefix."""
    from ...backend.checkpoint.in_memory import denoiser_places

    return denoiser_places(family_of(model), denoiser_config(model))


def encodes_text(model: Any) -> bool:
    """Return whether prompts are encoded by ComfyUI's CLIP, whose text encoders stay there."""
    return family_of(model).host.prompts is not None


def key_map(model: Any) -> dict[str, str]:
    """Map each module of diffusers' denoiser to its name in ComfyUI, `input_blocks.1.1...`."""
    from ...backend.checkpoint.in_memory import denoiser_modules

    return denoiser_modules(family_of(model), denoiser_config(model))


def _model(
    model: Any, clip: Any, vae: Any, device: Any, source: Path | None, dtype: torch.dtype
) -> Model:
    import torch

    from ...backend.checkpoint import in_memory
    from ...backend.model.model import Model
    from .text import HostText, HostTexts
    from .vae import HostVae

    family = family_of(model)
    if family.host.prompts is not None:
        _check_clip(clip, family)
    tensors = unet_tensors(model, dtype)
    denoiser = in_memory.denoiser_from_tensors(
        "the MODEL", tensors, family, device=device, dtype=dtype
    )
    del tensors
    schedule = _schedule(model)
    latents = family.host.latents or family.latents
    space = latents.space({"scaling_factor": float(model.model.latent_format.scale_factor)})
    prompts, texts = family.host.prompts, None
    if prompts is None:
        with torch.no_grad():
            encoders = _text_encoders(clip, family, device)
        tokenizers = family.networks.tokenizers()
    else:
        encoders = (HostText(clip, **prompts.options), *_inner_encoders(model, family, device))
        tokenizers, texts = (), HostTexts(family, prompts, denoiser.config)
    return Model(
        family=family,
        denoiser=denoiser,
        text_encoders=encoders,
        tokenizers=tokenizers,
        texts=texts,  # type: ignore[arg-type]
        latents=latents,
        vae=HostVae(vae, space.scale),  # type: ignore[arg-type]
        process=schedule.to(device),
        resolution=family.native_side(schedule.prediction_type),
        source=source,
        latent_space=space,
    )


def _text_encoders(clip: Any, family: Family, device: Any) -> tuple[Any, ...]:
    merged = _merged(clip.patcher, "")
    found = []
    for part, component in zip(family.host.texts, family.text_encoders, strict=True):
        prefix = f"{part}.transformer."
        own = {n.removeprefix(prefix): t for n, t in merged.items() if n.startswith(prefix)}
        if not own:
            raise _without(part, family)
        skip = _layers_skipped(clip, family)
        found.append(
            family.networks.text_encoder("the CLIP", component, own, skip_last=skip, device=device)
        )
    return tuple(found)


def _inner_encoders(model: Any, family: Family, device: Any) -> tuple[Any, ...]:
    """Build the text encoders whose tensors lie in the MODEL, patches included."""
    return tuple(
        family.networks.text_encoder(
            "the MODEL", component, _merged(model, UNET + prefix), skip_last=0, device=device
        )
        for component, prefix in family.host.within.items()
    )


def _check_clip(clip: Any, family: Family) -> None:
    """Raise a CheckpointError for the CLIP of another family, and for one that is cut short."""
    names = clip.patcher.get_key_patches()
    for part in family.host.texts:
        if not any(name.startswith(f"{part}.") for name in names):
            raise _without(part, family)
    if getattr(clip, "layer_idx", None) not in (None, family.host.last_layer):
        raise _other_layer(clip, family)


def _without(part: str, family: Family) -> Exception:
    from ...backend.errors import CheckpointError

    return CheckpointError(
        f"the CLIP has no {part}, which the MODEL reads: connect the CLIP of the same checkpoint "
        f"({family.host.loader})"
    )


def _other_layer(clip: Any, family: Family) -> Exception:
    from ...backend.errors import CheckpointError

    return CheckpointError(
        f"CLIP Set Last Layer is {clip.layer_idx} on a text encoder of {family.title}, which is "
        f"always read at {family.host.last_layer}: connect the CLIP before that node"
    )


def _layers_skipped(clip: Any, family: Family) -> int:
    """Layers left out at the end: as CLIP Set Last Layer says, else as the family is used."""
    layer = getattr(clip, "layer_idx", None)
    usual = family.host.last_layer
    if family.host.fixed_layer:  # the backend reads that layer by itself
        if layer not in (None, usual):
            raise _other_layer(clip, family)
        return 0
    return -(usual if layer is None else int(layer)) - 1


def _schedule(model: Any) -> Any:
    """Read the noise schedule, and what is predicted.

    A discrete one is ComfyUI's own: ᾱ = 1 / (1 + σ²) of its σ. For a flow ComfyUI knows only
    the shift of sampling, which is a choice of whoever samples: the family's published
    one is taken.
    """
    import torch

    from ...backend.errors import CheckpointError
    from ...backend.families.base.process import discrete_process

    sampling = model.get_model_object("model_sampling")
    names = [kind.__name__ for kind in type(sampling).__mro__]
    family = family_of(model)
    flow = family.process("the MODEL", family.config("scheduler"))
    if flow.prediction_type == "flow":
        if "CONST" in names and "IMG_TO_IMG_FLOW" not in names:
            return flow
        raise CheckpointError(
            f"the MODEL samples as {'/'.join(names[1:3])}, and {family.title} as a flow: connect "
            "the MODEL before a ModelSampling node"
        )
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
    return discrete_process(torch.clone(alphas), kind)  # type: ignore[arg-type]


def _merged(patcher: Any, prefix: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return base weights with pending patches as ordinary tensors, on their own device."""
    import torch

    out: dict[str, Tensor] = {}
    with torch.no_grad():
        for key, entries in patcher.get_key_patches(prefix or None).items():
            (weight, convert), patches = entries[0], entries[1:]
            merged = convert(weight.to(torch.float32, copy=True))
            if patches:
                import comfy.lora

                merged = comfy.lora.calculate_weight(patches, merged, key)
            out[key.removeprefix(prefix)] = merged.detach().clone().to(dtype or torch.float32)
    return out


def _named_shapes(model: Any) -> dict[str, Tensor]:
    return {
        key.removeprefix(UNET): entries[0][0]
        for key, entries in model.get_key_patches(UNET).items()
    }


def _bytes_needed(model: Any, clip: Any) -> int:
    """Estimate weights in float32, as much again for activations and graphs, and 1 GiB."""
    modules = [model.model] if encodes_text(model) else [model.model, clip.cond_stage_model]
    parameters = sum(part.numel() for module in modules for part in module.parameters())
    return parameters * 8 + (1 << 30)
