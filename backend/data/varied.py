"""Composes many varied prompts from lists of subjects, places, styles and attributes.

The lists are a TOML file that people can edit: `templates` name other lists in braces, as in
"{thing} on {place}". Each prompt takes a template and fills each brace with an entry, at random.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import DataError
from ..plan.toml_text import TOMLDecodeError, loads
from ..text.refused import WHY, sexualises_minors

SHIPPED = Path(__file__).parent / "varied.toml"
_NAME = re.compile(r"\{(\w+)\}")
_TRIES = 50  # for each prompt, before the lists count as exhausted


def varied_prompts(
    count: int, *, lists: Path | str = "", without: Iterable[str] = (), seed: int = 0
) -> tuple[str, ...]:
    """Compose `count` different prompts; fewer where the lists have no more.

    lists: the TOML file; empty for the one that comes with the package.
    without: words that no prompt may hold, such as the names of concepts.
    """
    path = Path(lists) if lists else SHIPPED
    words = _read(path)
    templates = words.pop("templates")
    banned = [re.escape(word) for word in without]
    forbidden = re.compile(rf"\b({'|'.join(banned)})s?\b", re.IGNORECASE) if banned else None
    chosen, found = random.Random(seed), dict[str, None]()
    for _ in range(_TRIES * count):
        if len(found) == count:
            break
        template = chosen.choice(templates)
        prompt = _NAME.sub(lambda name: chosen.choice(words[name[1]]), template)
        if sexualises_minors(prompt):
            raise DataError(f"{path.name}: a composed prompt {WHY}")
        if forbidden is None or not forbidden.search(prompt):
            found[prompt] = None
    if not found:
        raise DataError(f"{path.name}: no prompt is left besides the concepts: add to its lists")
    return tuple(found)


def _read(path: Path) -> dict[str, list[str]]:
    try:
        words = loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    except TOMLDecodeError as error:
        raise DataError(f"{path}: is not valid TOML ({error})") from None
    _check(path, words)
    return words


def _check(path: Path, words: Mapping[str, object]) -> None:
    for name, entries in words.items():
        texts = isinstance(entries, list) and all(isinstance(entry, str) for entry in entries)
        if not texts or not entries:
            raise DataError(f"{path.name}: {name} is not a list of texts")
    for template in words.get("templates", ()) or [""]:  # type: ignore[union-attr]
        if not template:
            raise DataError(f"{path.name}: `templates` is missing")
        for name in _NAME.findall(template):
            if name not in words or name == "templates":
                raise DataError(f"{path.name}: {template!r} names a list {name!r} that is missing")
