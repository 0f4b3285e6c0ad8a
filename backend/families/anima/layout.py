"""The places of a checkpoint's tensors in its files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..base.sources import Source
from ..base.stored import Checkpoint
from ..qwen3.network import UNREAD, text_sources
from .config import CONDITIONER, DENOISER, TEXT
from .names import denoiser_sources
from .vae_names import own_name

# Counters and constants of Cosmos' training, which no network here has
_COUNTERS = ("pos_embedder.", "accum_")
_STATES = ("_extra_state", "rotary_emb.inv_freq")
_AVERAGED, _AVERAGE = "net.", "net_ema."


class Layout:
    """The `TensorLayout` of Anima."""

    def sources(self, component: str, checkpoint: Checkpoint) -> dict[str, Source]:
        config, prefix = checkpoint.configs[component], checkpoint.prefixes[component]
        names = checkpoint.names(component)
        if component == TEXT:
            return text_sources(checkpoint, component)
        if checkpoint.layout == "diffusers":
            return {name: Source(name) for name in names}
        if component == DENOISER:
            return denoiser_sources(config, prefix)
        own = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        if component == CONDITIONER:
            return {name: Source(prefix + name) for name in own if not name.endswith(_STATES)}
        residuals = config["num_res_blocks"]
        return {own_name(name, residuals): Source(prefix + name) for name in own}

    def canonical(self, component: str, name: str) -> str:
        return name

    def stored(self, name: str) -> bool:
        return True

    def harmless(self, checkpoint: Checkpoint, name: str) -> bool:
        if name.endswith((UNREAD, *_STATES)):
            return True
        prefix = checkpoint.prefixes[DENOISER]
        if prefix == _AVERAGED and name.startswith(_AVERAGE):
            return True
        return name.startswith(prefix) and name.removeprefix(prefix).startswith(_COUNTERS)

    def moving_averages(self, checkpoint: Checkpoint) -> dict[str, str]:
        """Cosmos' trainer keeps them as `net_ema.` beside `net.`, those of the conditioner too."""
        if checkpoint.prefixes[DENOISER] != _AVERAGED:
            return {}
        own = [*self.sources(DENOISER, checkpoint).values()]
        own += self.sources(CONDITIONER, checkpoint).values()
        return {_AVERAGE + source.name.removeprefix(_AVERAGED): source.name for source in own}

    def denoiser_sources(self, config: Mapping[str, Any]) -> dict[str, Source]:
        return denoiser_sources(config)
