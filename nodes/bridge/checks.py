"""Checks what is connected before anything is loaded; each refusal says what to do."""

from __future__ import annotations

from inspect import getattr_static
from pathlib import Path
from typing import Any

from ...backend.errors import CheckpointError

UNET = "diffusion_model."  # prefix of the denoiser's weights in a MODEL
_SAMPLING = ("model_sampling",)
_RUNNING = ("apply_model", "diffusion_model")  # kinds of wrapper that are part of a prediction
_SAME_RESULT = ("torch.compile",)
_PLAIN_OPTIONS = {"sample_sigmas", "cond_or_uncond", "sigmas", "wrappers", "callbacks"}


def check_model(model: Any) -> None:
    """Raise a CheckpointError for a MODEL whose behaviour is not in plain weights."""
    kind = type(model).__name__
    if "GGUF" in kind:
        raise CheckpointError(
            "the MODEL is in GGUF format, whose weights are packed: load the same checkpoint in "
            "fp16 or bf16 with core's loader"
        )
    if not hasattr(model, "get_key_patches") or not hasattr(model, "patches"):
        raise CheckpointError(
            f"the MODEL is a {kind}, which does not expose its weights: connect the output of Load "
            "Checkpoint or Load Diffusion Model"
        )
    config = getattr(model.model, "model_config", None)
    weights = list(getattr(model.model, "diffusion_model", model.model).parameters())
    packed = [p for p in weights if not p.dtype.is_floating_point or "Quantized" in _names(p)]
    marks = [getattr_static(config, name, None) for name in ("quant_config", "scaled_fp8")]
    if any(marks) or packed:
        raise CheckpointError(
            "the MODEL is quantised (scaled fp8, nvfp4 or int8): load the fp16 or bf16 file of the "
            "same checkpoint; plain fp8 files work"
        )
    others = [key for key in model.object_patches if key not in _SAMPLING]
    if others:
        raise CheckpointError(
            f"a node replaced {others[0]} of the MODEL: connect the MODEL before that node"
        )
    if getattr(model, "weight_wrapper_patches", None):
        raise CheckpointError(
            "the MODEL's weights are wrapped by another node: connect the MODEL before that node"
        )
    if getattr(model, "injections", None):
        raise CheckpointError(
            "the MODEL carries a LoRA in bypass mode, or another injection: use Load LoRA without "
            "bypass, or connect the MODEL before that node"
        )
    if getattr(model, "hook_patches", None) or getattr(model, "forced_hooks", None):
        raise CheckpointError(
            "the MODEL carries hooks (LoRAs that change with the step): connect the MODEL before "
            "the hook nodes"
        )
    _check_options(model.model_options)
    _check_wrappers(getattr(model, "wrappers", None))
    _check_wrappers(model.model_options.get("transformer_options", {}).get("wrappers"))


def check_parts(clip: Any, vae: Any) -> None:
    """Raise a CheckpointError if CLIP or VAE is missing: not every checkpoint has them."""
    if clip is None or not hasattr(clip, "cond_stage_model"):
        raise CheckpointError(
            "there is no CLIP: the checkpoint has no text encoder; connect one of its family "
            "(Load CLIP)"
        )
    if vae is None or not hasattr(vae, "first_stage_model"):
        raise CheckpointError(
            "there is no VAE: the checkpoint has none; connect one of its family (Load VAE)"
        )


def source_of(model: Any) -> Path | None:
    """Return the file of a MODEL, or of another patcher, if ComfyUI provides it (0.33 does)."""
    cached = getattr(model, "cached_patcher_init", None)
    if not cached or len(cached) < 2:
        return None
    for value in cached[1]:
        if isinstance(value, (list, tuple)) and len(value) == 1:  # files of a text encoder
            value = value[0]
        if isinstance(value, str) and value.endswith(".safetensors") and Path(value).is_file():
            return Path(value)
    return None


def is_patched(model: Any) -> bool:
    """Return whether the MODEL carries LoRAs or merges that its file does not have."""
    return any(key.startswith(UNET) and model.patches[key] for key in model.patches)


def _check_options(options: Any) -> None:
    transformer = options.get("transformer_options", {})
    changed = [
        name
        for name, value in transformer.items()
        if value and name not in _PLAIN_OPTIONS
    ]  # fmt: skip
    functions = [
        name for name in options if name.endswith(("_function", "wrapper")) and options[name]
    ]
    if changed or functions:
        raise CheckpointError(
            f"another node changes how the MODEL runs ({(changed + functions)[0]}), not its "
            "weights: connect the MODEL before that node"
        )


def _check_wrappers(wrappers: Any) -> None:
    for kind in _RUNNING:
        for key, functions in (wrappers or {}).get(kind, {}).items():
            if functions and key not in _SAME_RESULT:
                raise CheckpointError(
                    f"another node wraps how the MODEL runs ({key or kind}), which is not in its "
                    "weights: connect the MODEL before that node"
                )


def _names(parameter: Any) -> str:
    return " ".join(type(item).__name__ for item in (parameter, getattr(parameter, "data", None)))
