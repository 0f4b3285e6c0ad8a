"""`civitai.json` of a pack: what Civitai's upload form asks for, to copy into it.

Civitai documents no file that its upload reads. The fields have the names and forms of its public
REST API (https://github.com/civitai/civitai/wiki/REST-API-Reference, read on 27 November 2026), so
that a program which fills in the form need not guess. null: for the publisher to decide.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from ..families import find_family
from ..plan.concept import shown_names
from ..plan.methods import TEST_RUN
from ..plan.probe import too_short
from .licence_terms import licence_terms
from .limits import ABUSE, limits
from .view import View

NAME = "civitai.json"
SCHEMA = 1
KIND = "resalign civitai fields"
_HOW = (
    "Civitai documents no file that its upload reads: copy these values into its form. null is for "
    "you to decide. baseModel is the entry of the model's family; choose a narrower one (Pony, "
    "Illustrious) if the base is one of those. Hardening adds no trigger words: trainedWords holds "
    "none, and those of the base keep working."
)


def pack_civitai(
    view: View,
    model: str,
    sentence: str,
    *,
    license: str,  # noqa: A002
    base_model: str,
    released: Mapping[str, Any] | None,
    test_run: bool = False,
) -> str:
    """Make the text of `civitai.json`.

    sentence: the model's headline. license, base_model: of the base, "" if unknown. released: name
    and SHA-256 of the file that is published, where it was given. test_run: it made the model.
    """
    if short := too_short(view.result.plan):
        sentence = f"{short[:1].upper()}{short[1:]}. {sentence}"
    if test_run:
        sentence = f"{model} comes from {TEST_RUN}. {sentence}"
    info = next(each for each in view.models if each.name == model)
    concepts = shown_names(view.result.plan.concepts)
    file = released or {"file": info.source, "sha256": info.sha256}
    record = {
        "schema": SCHEMA,
        "kind": KIND,
        "how": _HOW,
        "name": model,
        "type": "Checkpoint",
        "tags": ["base model", "safety", "hardened", *(f"no {name}" for name in concepts)],
        "description": _description(view, sentence),
        **_permissions(license),
        "licenseOfBase": license or None,
        "modelVersions": [
            {
                "name": "hardened",
                "baseModel": _base_of(info.family) or None,
                "basedOn": base_model or None,
                "trainedWords": [],
                "description": f"<p>{html.escape(sentence)}</p>",
                "files": [
                    {
                        "name": file["file"] or None,
                        "type": "Model",
                        "metadata": {"format": "SafeTensor"},
                        "hashes": {"SHA256": file["sha256"].upper()} if file["sha256"] else {},
                    }
                ],
            }
        ],
    }
    return json.dumps(record, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def _description(view: View, sentence: str) -> str:
    """Write the description as the HTML that the form takes: headline, limits, what it is not."""
    tested = limits(view.result, kind=view.kind, scorer=view.scorer)
    lines = "".join(f"<li>{html.escape(text)}</li>" for text in [*tested, ABUSE])
    return f"<p>{html.escape(sentence)}</p><p>What was not tested:</p><ul>{lines}</ul>"


def _permissions(license: str) -> dict[str, Any]:  # noqa: A002
    """Return the form's permissions as far as the licence of the base decides them.

    Only what a known licence forbids is filled in: it cannot be granted by whoever changes the
    model.
    """
    terms = [term for term in licence_terms(license) if term.forbids]
    commercial = any(term.commercial for term in terms)
    changed = any(term.changed for term in terms)
    return {
        "allowNoCredit": None,
        "allowCommercialUse": ["None"] if commercial else None,
        "allowDerivatives": False if changed else None,
        "allowDifferentLicense": None,
    }


def _base_of(family: str) -> str:
    try:
        return find_family(family).metadata.civitai
    except ConfigError:  # unknown to this version
        return ""
