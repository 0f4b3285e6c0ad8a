"""Noise processes: how a clean latent becomes noise, and what the denoiser predicts of it.

A process is one of three small values with the same methods:

    EpsilonProcess   x_t = √ᾱ_t · x₀ + √(1 − ᾱ_t) · ε,   predicts ε               SD 1.x, SDXL
    VProcess         the same x_t,                       predicts √ᾱ_t · ε − √(1 − ᾱ_t) · x₀
    FlowProcess      x_σ = (1 − σ) · x₀ + σ · ε,         predicts the velocity ε − x₀

Times are what the denoiser takes: integers from 0 (clean) to steps − 1 (noise) for the first two,
1000 · σ as floats for the third. All random draws happen on the CPU, so that a seed means the same
on each device.

Sources: Ho et al., arXiv:2006.11239 (ε); Salimans & Ho, arXiv:2202.00512 (v); Lipman et al.,
arXiv:2210.02747, and Esser et al., arXiv:2403.03206 (velocity, logit-normal times, shift).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Self

Prediction = Literal["epsilon", "v_prediction", "flow"]

TRAIN_STEPS = 1000  # of the discrete processes; also the factor between σ and a flow's times
# ᾱ of a schedule that ends in pure noise is 0 there; this keeps divisions by √ᾱ finite.
SMALLEST_ALPHA = 2.0**-24


class NoiseProcess(Protocol):
    """Operations that the backend needs; latents are [batch, ...], times [batch]."""

    @property
    def prediction_type(self) -> Prediction:
        """The denoiser's prediction, as files spell it."""
        ...

    def sample_times(self, batch: int, generator: torch.Generator) -> Tensor:
        """Draw the times of a training batch: [batch], on the CPU."""
        ...

    def middle_times(self, batch: int, generator: torch.Generator) -> Tensor:
        """Draw times from the middle of the process, where objects take shape: [batch], CPU."""
        ...

    def time_grid(self, count: int) -> list[float]:
        """Return `count` times spread evenly from clean to noise (midpoints of equal parts)."""
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Diffuse clean latents x₀ to their times with `noise` ε, same shape as `latents`."""
        ...

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Return what a perfect denoiser predicts at these times."""
        ...

    def error_weights(self, times: Tensor, cap: float) -> Tensor:
        """Return weights of squared errors of the prediction, [batch], with which errors of the
        noise and of the clean latent count alike; errors of the noise weigh at most `cap`."""
        ...

    def sampler(self, steps: int, positions: int = 0) -> Any:
        """Return a diffusers scheduler, set to `steps`, that integrates from noise to x₀.

        positions: of a latent, height · width; some schedules depend on it. 0: native size.
        """
        ...

    def fingerprint(self) -> tuple[str | float, ...]:
        """Return what a cache key of anything drawn or sampled by this process must contain."""
        ...

    def to(self, device: torch.device | str) -> NoiseProcess:
        """Return the process with its tensors on a device."""
        ...


@dataclass(frozen=True, slots=True)
class _Diffusion:
    """Variance-preserving diffusion in discrete times: all but what the denoiser predicts.

    alphas_cumprod: ᾱ, [steps] in float32, falling from 1 towards 0.
    """

    alphas_cumprod: Tensor

    _predicts: ClassVar[Prediction]

    @property
    def prediction_type(self) -> Prediction:
        return self._predicts

    @property
    def steps(self) -> int:
        """Number of discrete times, 1000 in all published models."""
        return len(self.alphas_cumprod)

    def sample_times(self, batch: int, generator: torch.Generator) -> Tensor:
        return torch.randint(0, self.steps, (batch,), generator=generator)

    def middle_times(self, batch: int, generator: torch.Generator) -> Tensor:
        return _middle(self.steps, batch, generator)

    def time_grid(self, count: int) -> list[float]:
        return _discrete_grid(self.steps, count)

    def add_noise(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        return diffuse(latents, noise, times, self.alphas_cumprod)

    def sampler(self, steps: int, positions: int = 0) -> Any:
        return _dpm_solver(self.alphas_cumprod, self.prediction_type, steps)

    def fingerprint(self) -> tuple[str | float, ...]:
        return (self.prediction_type, *self.alphas_cumprod.tolist())

    def to(self, device: torch.device | str) -> Self:
        return replace(self, alphas_cumprod=self.alphas_cumprod.to(device))


@dataclass(frozen=True, slots=True)
class EpsilonProcess(_Diffusion):
    """Variance-preserving diffusion whose denoiser predicts the noise ε.

    alphas_cumprod: ᾱ, [steps] in float32, falling from 1 towards 0.
    """

    _predicts: ClassVar[Prediction] = "epsilon"

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        return noise

    def error_weights(self, times: Tensor, cap: float) -> Tensor:
        return _noise_error_weights(self.alphas_cumprod.to(times.device)[times], cap)


@dataclass(frozen=True, slots=True)
class VProcess(_Diffusion):
    """Variance-preserving diffusion whose denoiser predicts v = √ᾱ_t · ε − √(1 − ᾱ_t) · x₀.

    alphas_cumprod: ᾱ, [steps] in float32, falling from 1 towards 0.
    """

    _predicts: ClassVar[Prediction] = "v_prediction"

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        alpha = _per_sample(self.alphas_cumprod, times, latents)
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * latents

    def error_weights(self, times: Tensor, cap: float) -> Tensor:
        alpha = self.alphas_cumprod.to(times.device)[times]
        return alpha * _noise_error_weights(alpha, cap)  # an error of v is √ᾱ of it in ε


@dataclass(frozen=True, slots=True)
class FlowProcess:
    """Rectified flow: a straight line from x₀ (σ = 0) to ε (σ = 1), velocity ε − x₀.

    shift: s ≥ 1 moves times towards noise, σ ↦ s·σ / (1 + (s − 1)·σ), in training and sampling.
    time_mean, time_std: of the normal distribution of logit σ before the shift.
    sampling_mu: (positions of a latent, steps) to μ, where models are sampled with the shift
        s = exp μ instead; for 0 positions it takes the native size.
    """

    shift: float = 1.0
    time_mean: float = 0.0
    time_std: float = 1.0
    sampling_mu: Callable[[int, int], float] | None = None

    @property
    def prediction_type(self) -> Prediction:
        return "flow"

    def sample_times(self, batch: int, generator: torch.Generator) -> Tensor:
        logit = self.time_mean + self.time_std * torch.randn(batch, generator=generator)
        return TRAIN_STEPS * self._shifted(logit.sigmoid())

    def middle_times(self, batch: int, generator: torch.Generator) -> Tensor:
        return self.sample_times(batch, generator)  # which are drawn so already

    def time_grid(self, count: int) -> list[float]:
        return [float(TRAIN_STEPS * self._shifted((i + 0.5) / count)) for i in range(count)]

    def add_noise(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        sigma = _broadcast(times / TRAIN_STEPS, latents)
        return (1 - sigma) * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        return noise - latents

    def error_weights(self, times: Tensor, cap: float) -> Tensor:
        # The same x_t on a variance-preserving scale has this ᾱ; an error of the velocity is 1 − σ
        # of it in ε.
        kept = 1 - times / TRAIN_STEPS
        alpha = kept.square() / (kept.square() + (1 - kept).square())
        return kept.square() * _noise_error_weights(alpha, cap)

    def sampler(self, steps: int, positions: int = 0) -> Any:
        from diffusers import FlowMatchEulerDiscreteScheduler

        if self.sampling_mu is not None:
            scheduler = FlowMatchEulerDiscreteScheduler(TRAIN_STEPS, use_dynamic_shifting=True)
            even = [1 - i / steps for i in range(steps)]
            scheduler.set_timesteps(sigmas=even, mu=self.sampling_mu(positions, steps))
            return scheduler
        scheduler = FlowMatchEulerDiscreteScheduler(TRAIN_STEPS, shift=self.shift)
        scheduler.set_timesteps(steps)
        return scheduler

    def fingerprint(self) -> tuple[str | float, ...]:
        if self.sampling_mu is not None:
            return ("flow", self.shift, "mu", *(self.sampling_mu(0, steps) for steps in (1, 100)))
        return ("flow", self.shift)

    def to(self, device: torch.device | str) -> FlowProcess:
        return self

    def _shifted(self, sigma: Any) -> Any:
        return self.shift * sigma / (1 + (self.shift - 1) * sigma)


def discrete_process(
    alphas_cumprod: Tensor, prediction: str = "epsilon"
) -> EpsilonProcess | VProcess:
    """Build the process of a discrete schedule for `epsilon` or `v_prediction`."""
    kinds = {"epsilon": EpsilonProcess, "v_prediction": VProcess}
    return kinds[prediction](alphas_cumprod)


def scaled_linear_alphas_cumprod(
    steps: int = TRAIN_STEPS, beta_start: float = 0.00085, beta_end: float = 0.012
) -> Tensor:
    """ᾱ of Stable Diffusion's schedule, [steps] in float32: √β rises linearly.

    Source: Rombach et al., arXiv:2112.10752.
    """
    root_betas = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64)
    return torch.cumprod(1 - root_betas**2, dim=0).float()


def diffuse(latents: Tensor, noise: Tensor, times: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Diffuse clean latents to discrete times: √ᾱ_t · x₀ + √(1 − ᾱ_t) · ε.

    Args:
        latents: x₀, [batch, ...], in the denoiser's latent space.
        noise: ε of unit variance, same shape as `latents`.
        times: [batch], integers from 0 (clean) to steps − 1 (noise).
        alphas_cumprod: ᾱ, [steps], falling from 1 towards 0.
    """
    alpha = _per_sample(alphas_cumprod, times, latents)
    return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise


def _middle(steps: int, batch: int, generator: torch.Generator) -> Tensor:
    """Times whose share of the process has the logit N(½, 1): half of them from 456 to 764."""
    share = torch.sigmoid(0.5 + torch.randn(batch, generator=generator))
    return (steps * share).long().clamp(max=steps - 1)


def _noise_error_weights(alpha: Tensor, cap: float) -> Tensor:
    """Return min(1/ᾱ, cap): an error of ε is √((1 − ᾱ)/ᾱ) of it in x₀, and 1 + (1 − ᾱ)/ᾱ = 1/ᾱ."""
    return (1 / alpha.clamp(min=SMALLEST_ALPHA)).clamp(max=cap)


def _discrete_grid(steps: int, count: int) -> list[float]:
    return [int((part + 0.5) / count * steps) for part in range(count)]


def _per_sample(alphas_cumprod: Tensor, times: Tensor, like: Tensor) -> Tensor:
    return _broadcast(alphas_cumprod.to(device=like.device)[times], like)


def _broadcast(values: Tensor, like: Tensor) -> Tensor:
    """[batch] as [batch, 1, ...] in the type and on the device of `like`."""
    return values.to(device=like.device, dtype=like.dtype).view(-1, *[1] * (like.dim() - 1))


def _dpm_solver(alphas_cumprod: Tensor, prediction: Prediction, steps: int) -> Any:
    """DPM-Solver++ (Lu et al., arXiv:2211.01095) over this very ᾱ, whatever its schedule."""
    from diffusers import DPMSolverMultistepScheduler

    alphas = alphas_cumprod.double().clamp(min=SMALLEST_ALPHA).cpu()
    betas = 1 - alphas / torch.cat([torch.ones(1, dtype=torch.float64), alphas[:-1]])
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=len(alphas),
        trained_betas=betas.float().numpy(),
        prediction_type=cast(Any, prediction),  # never flow: that has a sampler of its own
    )
    with warnings.catch_warnings():  # diffusers hands torch tensors to np.array
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        scheduler.set_timesteps(steps)
    return scheduler
