"""The places of a checkpoint's tensors in its files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..base.sources import Source
from ..base.stored import Checkpoint
from ..qwen3.network import UNREAD as HEAD
from ..qwen3.network import text_sources
from ..unet.vae_files import spelled_sources
from .config import DENOISER, TEXT
from .file import is_fused
from .names import UNREAD, denoiser_sources


class Layout:
    """The `TensorLayout` of Z-Image."""

    def sources(self, component: str, checkpoint: Checkpoint) -> dict[str, Source]:
        config, prefix = checkpoint.configs[component], checkpoint.prefixes[component]
        names = checkpoint.names(component)
        if component == TEXT:
            return text_sources(checkpoint, component)
        if component == DENOISER:
            return denoiser_sources(config, prefix, fused=is_fused(names, prefix))
        return spelled_sources(config, prefix, names)

    def canonical(self, component: str, name: str) -> str:
        return name

    def stored(self, name: str) -> bool:
        return True

    def harmless(self, checkpoint: Checkpoint, name: str) -> bool:
        return name.endswith((HEAD, UNREAD))

    def moving_averages(self, checkpoint: Checkpoint) -> dict[str, str]:
        return {}

    def denoiser_sources(self, config: Mapping[str, Any]) -> dict[str, Source]:
        return denoiser_sources(config)
