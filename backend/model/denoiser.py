"""Re-exports the conditioning of a denoiser for users of the model."""

from ..families.base.conditioning import Conditioning, onto

__all__ = ["Conditioning", "onto"]
