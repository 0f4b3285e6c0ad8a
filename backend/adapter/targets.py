"""Which modules of the denoiser an adapter changes, by name."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

from ..errors import ConfigError

_PATTERNS = {
    "attention": r"\.attn[12]\.to_(q|k|v|out\.0)$",
    "cross_attention_kv": r"\.attn2\.to_(k|v)$",
    "feed_forward": r"\.ff\.net\.(0\.proj|2)$",
    "convolution": r"\.resnets\.\d+\.(conv1|conv2|conv_shortcut)$|samplers\.0\.conv$",
}


def target_modules(denoiser: nn.Module, targets: Iterable[str]) -> tuple[str, ...]:
    """Names of all linear and convolution layers that the targets select, in network order."""
    pattern = re.compile("|".join(f"(?:{_PATTERNS[target]})" for target in targets))
    names = tuple(
        name
        for name, module in denoiser.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and pattern.search("." + name)
    )
    if not names:
        raise ConfigError(
            f"adapter: targets {', '.join(targets)} match no layer of this denoiser; "
            "use 'attention' with Stable Diffusion's U-Net"
        )
    return names
