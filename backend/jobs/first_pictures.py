"""The pictures of a run from before its first step, which a resume shows beside the latest.

They are kept in the run folder as a page shows them: small, and those of a concept blurred. Without
them a run is the same, so that a failure to keep them is no error.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ResAlignError
from ..run.files import replace_file
from ..text import json_text

FILE = "first_pictures.json"
_MOST = 4
_URL = re.compile(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+")
_LONGEST = 2000  # characters of a caption

log = logging.getLogger(__name__)


def keep(folder: Path, pictures: Sequence[Mapping[str, Any]]) -> None:
    """Write entries of `LiveState.state["pictures"]`, of which none may be bare."""
    try:
        replace_file(folder / FILE, json.dumps(list(pictures)[:_MOST]).encode())
    except (OSError, ResAlignError) as error:
        log.warning("the first pictures are not kept: %s", error)


def kept(folder: Path) -> list[dict[str, Any]]:
    """Return the entries that were kept; none where the file is missing or not ours."""
    try:
        found = json_text.read(folder / FILE)
        entries = [_entry(one) for one in found[:_MOST]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ResAlignError):
        return []
    return entries


def _entry(one: Mapping[str, Any]) -> dict[str, Any]:
    url, caption = one["url"], one["caption"]
    if not _URL.fullmatch(url) or not isinstance(caption, str) or len(caption) > _LONGEST:
        raise ValueError(f"{FILE}: an entry is not a picture")
    flagged = one["flagged"] is True
    return {"url": url, "caption": caption, "flagged": flagged, "bare": False, "step": 0}
