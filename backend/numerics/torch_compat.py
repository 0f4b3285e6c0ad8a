"""Names that PyTorch 2.1 to 2.3 spell differently: A1111 pins 2.1.2, which its worker uses."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

# safetensors' names of the two types that 2.2 brought
FNUZ = {
    name: getattr(torch, type_)
    for name, type_ in (
        ("F8_E4M3FNUZ", "float8_e4m3fnuz"),
        ("F8_E5M2FNUZ", "float8_e5m2fnuz"),
    )
    if hasattr(torch, type_)
}


def math_attention() -> AbstractContextManager[Any]:
    """Select the math kernel of attention, the only one with a second derivative."""
    try:
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ModuleNotFoundError:  # before 2.3
        return torch.backends.cuda.sdp_kernel(enable_flash=False, enable_mem_efficient=False)
    return sdpa_kernel(SDPBackend.MATH)


def grad_scaler(device: str, *, init_scale: float, enabled: bool) -> torch.amp.GradScaler:
    """The loss scaler of `device` ("cuda", "cpu", ...); before 2.3 there is none but CUDA's."""
    if hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler(device, init_scale=init_scale, enabled=enabled)
    return torch.cuda.amp.GradScaler(init_scale=init_scale, enabled=enabled)


def autocasts(device: str) -> bool:
    """Return whether autocast is on for a type of device ("cuda", "cpu", ...)."""
    try:
        return torch.is_autocast_enabled(device)
    except TypeError:  # before 2.4
        return torch.is_autocast_cpu_enabled() if device == "cpu" else torch.is_autocast_enabled()
    except RuntimeError:  # a type without autocast, such as "meta"
        return False
