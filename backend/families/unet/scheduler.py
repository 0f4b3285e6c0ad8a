"""Scheduler configs of diffusers folders: what they say about training is read or refused.

Most fields of a scheduler only steer sampling and do not matter here. A field that changes the
noise that the denoiser was trained on is either read (`noise_schedule`) or refused by its name.
An unknown field is refused too, unless it is switched off: it may be of either kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...errors import CheckpointError

# Schedulers that sample a model of discrete, variance-preserving noise, as all of Stable
# Diffusion is trained; any of them may be stored with any such model.
SUPPORTED = frozenset(
    name + "Scheduler"
    for name in (
        "DDIM", "DDIMInverse", "DDIMParallel", "DDPM", "DDPMParallel", "DEISMultistep",
        "DPMSolverMultistep", "DPMSolverMultistepInverse", "DPMSolverSDE", "DPMSolverSinglestep",
        "EulerAncestralDiscrete", "EulerDiscrete", "HeunDiscrete", "KDPM2AncestralDiscrete",
        "KDPM2Discrete", "LCM", "LMSDiscrete", "PNDM", "SASolver", "TCD", "UniPCMultistep",
    )
)  # fmt: skip
_READ = {
    "beta_start", "beta_end", "beta_schedule", "trained_betas", "num_train_timesteps",
    "prediction_type", "rescale_betas_zero_snr",
}  # fmt: skip
# Fields that only steer sampling.
_SAMPLING = {
    "algorithm_type", "clip_sample", "clip_sample_range", "corrector_order", "disable_corrector",
    "dynamic_thresholding_ratio", "eta", "euler_at_final", "final_sigmas_type", "flow_shift",
    "gamma", "interpolation_type", "lambda_min_clipped", "lower_order_final",
    "noise_sampler_seed", "original_inference_steps", "predict_x0", "predictor_order",
    "sample_max_value", "set_alpha_to_one", "set_alpha_to_zero", "skip_prk_steps", "solver_order",
    "solver_p", "solver_type", "steps_offset", "tau_func", "thresholding", "timestep_scaling",
    "timestep_spacing", "time_shift_type", "use_beta_sigmas", "use_exponential_sigmas",
    "use_karras_sigmas", "use_lu_lambdas",
}  # fmt: skip
_FIXED = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
# Fields that change the noise, with the values at which they do not.
_NEUTRAL: dict[str, Callable[[Any], bool]] = {
    "timestep_type": lambda value: value == "discrete",
    "variance_type": lambda value: value in _FIXED,
    "snr_shift_scale": lambda value: value in (1, 1.0),
}


def check_scheduler(file: str, config: Mapping[str, Any], index: Any = None) -> None:
    """Refuse a scheduler of another kind of training. index: its entry in model_index.json."""
    named = index[1] if isinstance(index, list) and len(index) == 2 else None
    for where, kind in (("model_index.json", named), ("_class_name", config.get("_class_name"))):
        if kind is not None and kind not in SUPPORTED:
            raise CheckpointError(
                f"{file}: its scheduler ({where}) is {kind!r}, whose noise differs from that of "
                f"Stable Diffusion{_edm(str(kind))}; only models for discrete ε and v "
                "schedulers, such as EulerDiscreteScheduler, can be hardened"
            )
    for name, value in config.items():
        if name.startswith("_") or name in _READ or name in _SAMPLING or value in (None, False):
            continue
        if not _NEUTRAL.get(name, lambda value: False)(value):
            raise CheckpointError(
                f"{file}: its scheduler has {name} = {value!r}, which changes the noise that the "
                "model was trained on, or is not known here: such models cannot be hardened"
            )


def _edm(kind: str) -> str:
    return " (EDM, as in Playground 2.5)" if kind.startswith("EDM") else ""
