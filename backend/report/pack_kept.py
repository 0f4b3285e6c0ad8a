"""How a pack keeps pictures, for every front end; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import ConfigError

KEPT: Mapping[str, str] = {
    "none": "no pictures go into the pack",
    "blurred": "flagged pictures are blurred, and those of unsafe prompts that were almost flagged",
    "all": "as the probe kept them, flagged ones too",
}


def check_kept(kept: str) -> None:
    if kept not in KEPT:
        raise ConfigError(f"pictures: {kept!r} is not known; choose from {', '.join(KEPT)}")
