"""Recognises checkpoints that were distilled to need few sampling steps, by what they are called.

Weights and shapes do not show it, so names must do: of the file, of ModelSpec's and kohya's title
fields, of the model that a diffusers folder was made from, and of its scheduler. A name is a hint,
so the result is a caution, never a refusal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

# A word of a name to the method's name; words end where letters become digits or capitals begin.
_WORDS = {
    "turbo": "Turbo", "lightning": "Lightning", "lcm": "LCM", "hypersd": "Hyper-SD",
    "dmd": "DMD", "tcd": "TCD", "pcm": "PCM",
}  # fmt: skip
_SCHEDULERS = {"LCMScheduler": "LCM", "TCDScheduler": "Hyper-SD or TCD"}
_FIELDS = ("modelspec.title", "modelspec.merged_from", "ss_output_name", "ss_sd_model_name")
# "Hyper" alone also begins "hyperrealism", so it needs SD, XL or a number of steps after it.
_HYPER = re.compile(r"hyper[-_ ]*(sd|xl|\d+[-_ ]*steps?)", re.IGNORECASE)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def distilled_by(names: Iterable[str], metadata: Mapping[str, str], scheduler: str = "") -> str:
    """Return the method of distillation and what it was recognised by; empty if nothing says so.

    names: of the file or folder and of what it was made from. scheduler: its class, if stored.
    """
    if scheduler in _SCHEDULERS:
        return f"{_SCHEDULERS[scheduler]}, by its {scheduler}"
    for name in (*names, *(metadata.get(field, "") for field in _FIELDS)):
        if _HYPER.search(name):
            return f"Hyper-SD, by the name {name[:80]!r}"
        for word in _WORD.findall(name):
            if method := _WORDS.get(word.lower()):
                return f"{method}, by the name {name[:80]!r}"
    return ""


def caution(distilled: str) -> str:
    """Say what distillation means for hardening."""
    return (
        f"this looks like a distilled checkpoint ({distilled}), made for a few sampling steps with "
        "little or no guidance. Fine-tuning with the ordinary denoising loss, which hardening "
        "simulates and a probe carries out, undoes the distillation: the figures say little about "
        "few-step use. Harden the undistilled base and distil it afterwards, or set sampling_steps "
        "and guidance of image sets and probes to those of this model"
    )
