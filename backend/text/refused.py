"""Recognises prompts that would sexualise minors, which the program does not draw or train on.

A small list (`refused_terms.txt`) of whole words, in English: a prompt is refused if it names both
a minor, or an age below 18, and something sexual. It is a guard against the plain case, not a
filter: it does not know synonyms, other languages or what a picture shows, and it refuses some
prompts that mean no harm.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from pathlib import Path

WHY = (
    "names a minor and something sexual; such prompts are refused, also as a concept to remove: "
    "take it out"
)
_AGE = re.compile(r"\b(?:(\d{1,2}) ?(?:years?|yrs?|yo|y o)\b|aged? (\d{1,2})\b)")
_ADULT = 18


def sexualises_minors(text: str) -> bool:
    """Return True if a prompt, or a concept's name, has to be refused."""
    plain = _plain(text)
    terms = _terms()
    if not terms["sexual"].search(plain):
        return False
    ages = (int(years or age) for years, age in _AGE.findall(plain))
    return bool(terms["minor"].search(plain)) or any(age < _ADULT for age in ages)


def _plain(text: str) -> str:
    """Lower case, without accents, with single spaces for everything but letters and digits."""
    parts = unicodedata.normalize("NFKD", text.casefold())
    letters = "".join(c for c in parts if not unicodedata.combining(c))
    return " ".join(re.sub(r"[\W_]+", " ", letters).split())


@cache
def _terms() -> dict[str, re.Pattern[str]]:
    groups: dict[str, list[str]] = {}
    found: list[str] = []
    path = Path(__file__).with_name("refused_terms.txt")
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            groups[line.strip("[]")] = found = []
        elif line.strip() and not line.startswith("#"):
            found.append(re.escape(line.strip()))
    return {name: re.compile(rf"\b(?:{'|'.join(words)})\b") for name, words in groups.items()}
