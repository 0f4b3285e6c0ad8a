"""The kernels that a run trains with: chosen once, by measurement, and kept in its record.

Which attention and which memory format are quickest depends on the device, the resolution and the
batch, so on a GPU they are tried on the plan's own retain loss, forward and backward. A resumed
run keeps to what it began with. On a CPU nothing is tried unless the plan names it: the clock would
decide about last bits, and there is little to gain (docs/benchmarks.md).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError
from ..numerics.tf32 import tf32
from ..plan.kernels import KernelConfig

_WARM_UP, _REPEATS = 2, 3  # passes: libraries choose their own kernels in the first

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Kernels:
    """The kernels chosen for a run, and why.

    optimiser: `fused` on CUDA, `foreach` elsewhere. device: its name.
    milliseconds: of one gradient by each candidate; empty if there was nothing to choose.
    left_out: candidates that did not run here, with their error messages.
    tf32: whether fp32 products use TF32; None where the process's own setting stays: not on CUDA,
    or in a run of before.
    """

    attention: str
    memory_format: str
    optimiser: str
    device: str
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    tf32: bool | None = None

    @property
    def name(self) -> str:
        return f"{self.attention}, {self.memory_format}"

    def to_json(self) -> dict[str, Any]:
        fields = asdict(self)
        if self.tf32 is None:  # records of before, and of a CPU, have no such field
            del fields["tf32"]
        return fields


def choose_kernels(
    denoiser: nn.Module,
    config: KernelConfig,
    work: Callable[[], object],
    *,
    twice: bool = False,
    own: bool = True,
    bears_tf32: bool = False,
    began: Mapping[str, Any] | None = None,
    seconds: Callable[[Callable[[], object], torch.device], float] | None = None,
) -> Kernels:
    """Return the quickest of what `config` allows; `denoiser` is left as it was.

    Args:
        work: one representative forward and backward pass.
        twice: it will be differentiated twice, which no fused kernel of xformers can be.
        own: the network's memory is ours; a host's is not laid out anew unasked.
        bears_tf32: rounding to TF32 does no harm, so that CUDA may use it.
        began: what this run began with, as of `to_json`; kept to where it is still to be had.
        seconds: how long a piece of work takes; the clock by default.

    Raises:
        ConfigError: the plan asks for xformers where it cannot be used.
    """
    device = next(denoiser.parameters()).device
    if config.attention == "xformers":
        _require_xformers(device, twice)
        if not hasattr(denoiser, "attn_processors"):
            raise ConfigError(
                'kernels.attention = "xformers": this kind of denoiser has no attention that can '
                'be replaced; use "auto"'
            )
    found = candidates(config, device, twice or not hasattr(denoiser, "attn_processors"), own)
    if device.type == "cuda":
        found = [replace(one, tf32=bears_tf32) for one in found]
    if began is not None:
        try:
            kept = Kernels(**began)
        except TypeError as error:
            raise ConfigError(
                f"the run's kernels.json was written by another version ({error}): remove it, and "
                "the kernels are chosen again"
            ) from None
        if any(kept.name == one.name for one in found):
            return kept
    if len(found) == 1:
        return found[0]
    times: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for one in found:
        try:
            with applied(denoiser, one):
                times[one.name] = (seconds or _seconds)(work, device) * 1000
        except (NotImplementedError, ValueError) as error:  # how xformers says it has no operator
            if one.attention != "xformers":
                raise
            left_out[one.name] = str(error).splitlines()[0]
    times = {name: round(value, 3) for name, value in times.items()}
    best = min((one for one in found if one.name in times), key=lambda one: times[one.name])
    log.info("kernels: %s, of %s", best.name, times)
    return replace(best, milliseconds=times, left_out=left_out)


@contextmanager
def applied(denoiser: Any, kernels: Kernels) -> Iterator[None]:
    """Run the network with these kernels for a while; its weights stay the same bit for bit."""
    processors = None
    if kernels.attention == "xformers":
        processors = denoiser.attn_processors
        denoiser.enable_xformers_memory_efficient_attention()
    relaid = kernels.memory_format == "channels_last"
    if relaid:
        _lay_out(denoiser, torch.channels_last)
    try:
        with tf32(kernels.tf32):
            yield
    finally:
        if relaid:
            _lay_out(denoiser, torch.contiguous_format)
        if processors is not None:
            denoiser.set_attn_processor(processors)


def optimiser_options(device: torch.device) -> dict[str, Any]:
    """Return the options of AdamW on a device: one kernel for all tensors on CUDA."""
    return {"fused": True} if device.type == "cuda" else {}


def candidates(config: KernelConfig, device: torch.device, twice: bool, own: bool) -> list[Kernels]:
    gpu = device.type == "cuda"
    attentions, formats = [config.attention], [config.memory_format]
    if config.attention == "auto":
        attentions = ["sdpa"]
        if gpu and not twice and find_spec("xformers"):
            attentions.append("xformers")
    if config.memory_format == "auto":
        formats = ["contiguous", "channels_last"] if gpu and own else ["contiguous"]
    optimiser = "fused" if optimiser_options(device) else "foreach"
    name = torch.cuda.get_device_name(device) if gpu else device.type
    return [Kernels(a, f, optimiser, name) for a in attentions for f in formats]


def _require_xformers(device: torch.device, twice: bool) -> None:
    asked = 'kernels.attention = "xformers"'
    if device.type != "cuda":
        raise ConfigError(f'{asked} needs a CUDA device, not {device.type}: use "auto"')
    if not find_spec("xformers"):
        raise ConfigError(f'{asked}: xformers is not installed; pip install xformers, or "auto"')
    if twice:
        raise ConfigError(
            f'{asked} has no second derivative, which solver.products = "exact" needs: use '
            '"finite_difference", or attention = "auto"'
        )


@torch.no_grad()
def _lay_out(denoiser: nn.Module, memory_format: torch.memory_format) -> None:
    """Lay out the frozen weights of convolutions anew; those of an adapter stay as they are."""
    for name, tensor in denoiser.named_parameters():
        if tensor.dim() == 4 and ".lora_" not in name:
            tensor.data = tensor.data.contiguous(memory_format=memory_format)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the least time of some repeats, the device's queue included."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    times = []
    for _ in range(_WARM_UP + _REPEATS):
        wait()
        began = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - began)
    return min(times[_WARM_UP:])
