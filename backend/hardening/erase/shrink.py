"""All weights shrunk and made noisy, W' = α W + β N / √n, n the inputs of one output.

Source: Lee et al., Distillation Robustifies Unlearning, arXiv:2506.06278 (UNDO), for language
models. It takes from everything alike what the distillation then has to bring back. Serves as a
comparison with the erasure of directions, which takes from the concepts.
"""

from __future__ import annotations

from torch import Generator as Random
from torch import Tensor, randn


def shrunk(weight: Tensor, *, kept_share: float, noise: float, random: Random) -> Tensor:
    """Return W' of a weight [out, ...], on the CPU and in its type. kept_share: α. noise: β."""
    drawn = randn(weight.shape, generator=random) / weight[0].numel() ** 0.5
    return (kept_share * weight.detach().cpu() + noise * drawn).to(weight.dtype)
