"""Conditions of a base model's licence for publishing a changed version of it.

Facts from the licences' own texts, looked up on 27 November 2026; no advice. Licences that are not
listed are carried over without a word on them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Term:
    """One condition of a licence. forbids: publishing the model at all, or some use of it.

    commercial: it forbids commercial use. changed: it forbids sharing changed versions.
    """

    text: str
    source: str
    forbids: bool
    commercial: bool = False
    changed: bool = False


_CC = "https://creativecommons.org/licenses/"
_NO_DERIVATIVES = (
    "It allows making adapted material, but not sharing it (section 2(a)(1)): a hardened "
    "checkpoint is a changed version of its base."
)
_NON_COMMERCIAL = "It allows sharing for non-commercial purposes only (section 2(a)(1))."
_RAIL = (
    "A changed version may come under other terms, but these must include at least the use-based "
    "restrictions of the original licence: publish those with the checkpoint."
)
_FLUX = (
    "It allows non-commercial and non-production use only, and sets terms for whoever distributes "
    "derivatives."
)
_CIRCLESTONE = (
    "It allows non-commercial use of the weights and of changed versions (its text names "
    "exceptions); these are published under the same licence, with its notices and those of the "
    "NVIDIA Open Model License."
)


def licence_terms(license: str) -> list[Term]:  # noqa: A002
    """Return what is known of a licence, by its identifier on Hugging Face."""
    known = license.strip().lower()
    if known.startswith("cc-by-"):
        parts = known.split("-")[1:]
        source = f"{_CC}{'-'.join(part for part in parts if part[0].isalpha())}/4.0/legalcode"
        found = [Term(_NO_DERIVATIVES, source, True, changed=True)] if "nd" in parts else []
        return found + (
            [Term(_NON_COMMERCIAL, source, True, commercial=True)] if "nc" in parts else []
        )
    if "openrail" in known:
        source = "https://huggingface.co/spaces/CompVis/stable-diffusion-license"
        return [Term(_RAIL, source, False)]
    if known.startswith("circlestone"):
        source = "https://huggingface.co/circlestone-labs/Anima/blob/main/LICENSE.md"
        return [Term(_CIRCLESTONE, source, True, commercial=True)]
    if known.startswith("flux") and "non-commercial" in known:
        source = "https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md"
        return [Term(_FLUX, source, True, commercial=True)]
    return []
