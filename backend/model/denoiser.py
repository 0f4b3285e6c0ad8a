"""The conditioning that a denoiser is given, under the name by which the model's users know it."""

from ..families.base.conditioning import Conditioning, onto

__all__ = ["Conditioning", "onto"]
