"""The noise schedule of a model, under the name by which the model's users know it."""

from ..families.base.schedule import (
    NoiseSchedule,
    PredictionType,
    add_noise,
    scaled_linear_alphas_cumprod,
)

__all__ = ["NoiseSchedule", "PredictionType", "add_noise", "scaled_linear_alphas_cumprod"]
