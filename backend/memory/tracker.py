"""Counts the bytes of live tensors while code runs, as a caching allocator hands them out.

Every operation that PyTorch dispatches is inspected: the storages of its results are counted until
they are freed, including those that only a graph keeps (saved tensors). So the peak is that of the
code as it runs, forward and backward. Memory that a kernel takes and frees within one operation
(workspaces of convolutions and attention) is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LiveMemory(TorchDispatchMode):
    """Counts storages of one kind of device while it is entered.

    device: "cpu", "cuda", or "meta" for tensors without memory.
    block: sizes are rounded up to a multiple of it; CUDA's allocator takes 512 bytes.
    live, peak: bytes now and at most. peak_base: what was live at the last `mark` before the peak.
    """

    def __init__(self, device: str, *, block: int = 1) -> None:
        super().__init__()
        self._device = device
        self._block = block
        self._sizes: dict[int, int] = {}
        self._watched: dict[int, Any] = {}
        self.live = self.peak = self.peak_base = self._base = 0

    def count(self, tensors: Iterable[Tensor]) -> int:
        """Count tensors made before; return the bytes of those that were not counted yet."""
        before = self.live
        for tensor in tensors:
            self._see(tensor)
        return self.live - before

    def mark(self) -> None:
        """Begin the next part of the work: tensors made from here on belong to it."""
        self._base = self.live

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = self.run(func, args, kwargs or {})
        if isinstance(result, Tensor):
            self._see(result)
        elif isinstance(result, (tuple, list)):
            for part in result:
                if isinstance(part, Tensor):
                    self._see(part)
        return result

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)

    def _see(self, tensor: Tensor) -> None:
        if tensor.device.type != self._device or tensor.layout != torch.strided:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        size = -(-storage.nbytes() // self._block) * self._block
        self._sizes[key] = size
        # The storage's Python object lives as long as anything, a graph included, holds it.
        self._watched[key] = weakref.ref(storage, partial(self._gone, key))
        self.live += size
        if self.live > self.peak:
            self.peak, self.peak_base = self.live, self._base

    def _gone(self, key: int, _: object) -> None:
        self.live -= self._sizes.pop(key)
        del self._watched[key]
