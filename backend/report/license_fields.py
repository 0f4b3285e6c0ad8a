"""The licence in a card's front matter, in the form that Hugging Face accepts."""

from __future__ import annotations

import json
import re

# Identifiers that Hugging Face knows; any other licence is `other`, with its name.
_KNOWN = {
    "agpl-3.0", "apache-2.0", "bigscience-openrail-m", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "cc-by-sa-4.0", "cc0-1.0", "creativeml-openrail-m", "gpl-3.0", "mit",
    "openrail", "openrail++",
}  # fmt: skip


def license_fields(text: str) -> list[str]:
    """Return the lines of YAML for a licence as a header or a publisher names it."""
    known = text.strip().lower()
    if not known:
        return []
    slug = re.sub(r"[^a-z0-9.+]+", "-", known).strip("-")
    for name in (known, slug):
        if name in _KNOWN:
            return [f"license: {name}"]
    return ["license: other", f"license_name: {json.dumps(slug or 'unnamed')}"]
