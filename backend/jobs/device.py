"""The device that a job runs on, and what to do when its memory is full."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import ConfigError, RunError


class DeviceMemoryError(RunError):
    """The memory of the device is full; what was saved can be resumed."""


def resolve_device(name: str) -> str:
    """Return the device to use: the best one for `auto`; raise where the named one is missing."""
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device is {name!r}; choose from auto, cpu, cuda, cuda:1, mps") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device is {name!r}; choose from auto, cpu, cuda, cuda:1, mps")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(
            f"device is {name!r}, but torch sees {count} CUDA devices here: "
            + ("choose a lower number" if count else "use cpu, or install a CUDA build of torch")
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device is 'mps', but there is none here: use auto or cpu")
    return name


def device_memory(device: str) -> int | None:
    """Return all memory of a CUDA device in bytes; None for other devices."""
    import torch

    if not device.startswith("cuda"):
        return None
    return torch.cuda.get_device_properties(torch.device(device)).total_memory


def free_memory(device: str) -> int | None:
    """Return what this process may use of a CUDA device in bytes; None for other devices.

    What its own allocator holds counts as free: a host gives it up for a run.
    """
    import torch

    if not device.startswith("cuda"):
        return None
    free, _ = torch.cuda.mem_get_info(torch.device(device))
    return free + torch.cuda.memory_reserved(torch.device(device))


def device_name(device: str) -> str:
    """Return the name of a card; of other devices, with the threads of a CPU."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(torch.device(device)).name
    threads = torch.get_num_threads()
    return f"cpu, {threads} thread{'s' * (threads > 1)}" if device == "cpu" else device


@contextmanager
def explaining_full_memory(device: str) -> Iterator[None]:
    """Turn CUDA's out-of-memory error into one that says which settings need less."""
    import torch

    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise DeviceMemoryError(
            f"the memory of {device} is full ({str(error).splitlines()[0]}): set micro_batch = 1, "
            "turn on gradient_checkpointing, use precision bf16, or lower resolution, and start a "
            "new run; `resalign check --budget GIB` tells which of these is enough"
        ) from error
