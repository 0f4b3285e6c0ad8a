"""The places of a checkpoint's tensors in its files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..base.sources import Source
from ..base.stored import Checkpoint
from ..qwen3.network import UNREAD, text_sources
from ..unet.vae_files import spelled_sources
from .config import DENOISER, TEXT
from .file import norm_name
from .names import denoiser_sources

_COUNTER = "num_batches_tracked"  # of the VAE's normalisation, of no use once it is trained
_STATISTICS = ("bn.running_mean", "bn.running_var")


class Layout:
    """The `TensorLayout` of FLUX.2 klein."""

    def sources(self, component: str, checkpoint: Checkpoint) -> dict[str, Source]:
        config, prefix = checkpoint.configs[component], checkpoint.prefixes[component]
        names = checkpoint.names(component)
        if component == TEXT:
            return text_sources(checkpoint, component)
        if checkpoint.layout == "diffusers":
            return {name: Source(name) for name in names if self.stored(name)}
        if component == DENOISER:
            return denoiser_sources(config, prefix, norm=norm_name(names, prefix))
        statistics = {name: Source(prefix + name) for name in _STATISTICS}
        return spelled_sources(config, prefix, names) | statistics

    def canonical(self, component: str, name: str) -> str:
        return name

    def stored(self, name: str) -> bool:
        return not name.endswith(_COUNTER)

    def harmless(self, checkpoint: Checkpoint, name: str) -> bool:
        return name.endswith((_COUNTER, UNREAD))

    def moving_averages(self, checkpoint: Checkpoint) -> dict[str, str]:
        return {}

    def denoiser_sources(self, config: Mapping[str, Any]) -> dict[str, Source]:
        return denoiser_sources(config, norm="weight")
