"""Composes many varied prompts from lists of subjects, places, styles and attributes.

The lists are a TOML file that people can edit: `templates` name other lists in braces, as in
"{thing} on {place}". Each prompt takes a template and fills each brace with an entry, at random but
from a shuffled deck, so that every entry comes about equally often: what is on no picture is lost.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import DataError
from ..plan.toml_text import TOMLDecodeError, loads
from ..text.refused import WHY, sexualises_minors

SHIPPED = Path(__file__).parent / "varied.toml"
MORE = Path(__file__).parent / "varied_more.toml"  # for `wide`
_NAME = re.compile(r"\{(\w+)\}")
_TRIES = 50  # for each prompt, before the lists count as exhausted


def varied_prompts(
    count: int,
    *,
    lists: Path | str = "",
    wide: bool = False,
    without: Iterable[str] = (),
    seed: int = 0,
) -> tuple[str, ...]:
    """Compose `count` different prompts; fewer where the lists have no more.

    lists: the TOML file; empty for the one that comes with the package. wide: with the package's
    further entries. without: words that no prompt may hold, such as the names of concepts.
    """
    path = Path(lists) if lists else SHIPPED
    words = read_lists(path)
    for name, entries in (_parsed(MORE) if wide else {}).items():
        words[name] = [*words.get(name, ()), *entries]
    templates = words.pop("templates")
    forbidden = naming(without)
    chosen, found = random.Random(seed), dict[str, None]()
    decks = {name: _dealt(entries, chosen) for name, entries in words.items()}
    for template in itertools.islice(_dealt(templates, chosen), _TRIES * count):
        if len(found) == count:
            break
        prompt = _NAME.sub(lambda name: next(decks[name[1]]), template)
        if sexualises_minors(prompt):
            raise DataError(f"{path.name}: a composed prompt {WHY}")
        if not forbidden.search(prompt):
            found[prompt] = None
    if not found:
        raise DataError(f"{path.name}: no prompt is left besides the concepts: add to its lists")
    return tuple(found)


def naming(words: Iterable[str]) -> re.Pattern[str]:
    """Return what finds one of the words in a prompt, also in the plural; nothing without words."""
    banned = "|".join(map(re.escape, words))
    return re.compile(rf"\b({banned})s?\b" if banned else r"(?!)", re.IGNORECASE)


def _dealt(entries: Sequence[str], chosen: random.Random) -> Iterator[str]:
    """Yield entries without end, from one shuffled deck after the other."""
    while True:
        deck = [*entries, *entries]  # twice, so that a template may name one entry two times
        chosen.shuffle(deck)
        yield from deck


def read_lists(lists: Path | str = "") -> dict[str, list[str]]:
    """Read the lists by name, `templates` among them; empty for the package's own."""
    path = Path(lists) if lists else SHIPPED
    words = _parsed(path)
    _check(path, words)
    return words


def _parsed(path: Path) -> dict[str, list[str]]:
    try:
        return loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    except TOMLDecodeError as error:
        raise DataError(f"{path}: is not valid TOML ({error})") from None


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
