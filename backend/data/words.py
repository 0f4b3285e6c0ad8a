"""Prompts of random words: what anybody may ask for that no image shows.

Pictures of things protect those things alone. A prompt costs nothing but its encoding, so `distil`
shows the network many of them, on images of something else, and asks for the original's answer.
Words are those of CLIP's vocabulary, some 20,000 of English and of the internet.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ..families.base.conditioning import Conditioning
from ..families.clip.networks import TOKENIZER_FOLDER
from ..model.model import Model
from ..numerics.byte_sizes import GIB
from ..progress import Progress, ProgressCallback, silent
from ..text.refused import sexualises_minors
from .assembly import encode_texts
from .varied import naming, read_lists

CANDIDATES = 1100  # prompts that are encoded
NEAR = 0.1  # share of them that is left out as nearest to the concepts
_ROOM = GIB  # of main memory for the rest: wide texts are fewer
_FEWEST = 64
_CHUNK = 100
_PLACE = re.compile(r"\{(\w+)\}")
_WORD = re.compile(r"[a-z]{3,}")


@cache
def vocabulary() -> tuple[str, ...]:
    """Return the whole words of CLIP's vocabulary of four to twelve letters, in order."""
    entries = json.loads((TOKENIZER_FOLDER / "vocab.json").read_text(encoding="utf-8"))
    return tuple(sorted(w[:-4] for w in entries if re.fullmatch(r"[a-z]{4,12}</w>", w)))


def word_prompts(
    count: int, *, lists: Path | str = "", without: Iterable[str] = (),
    unlike: Iterable[str] = (), seed: int = 0,
) -> tuple[str, ...]:  # fmt: skip
    """Compose `count` prompts, half of them of one to six random words, and half of a template of
    the lists, one of whose entries gives way to a random word.

    lists, without: as of `varied_prompts`. unlike: prompts of the concepts. No random word is in
    one of these or in `without`, or begins as a word there does ("gun", "gunfire").
    """
    without = tuple(without)
    forbidden = naming(without)
    words = read_lists(lists)
    templates = words.pop("templates")
    chosen = random.Random(seed)
    stems = tuple(
        {word[:5] for text in (*without, *unlike) for word in _WORD.findall(text.lower())}
    )
    allowed = [word for word in vocabulary() if not word.startswith(stems)]

    def filled(template: str) -> str:
        places = _PLACE.findall(template)
        random_one = chosen.randrange(len(places)) if places else 0
        numbers = iter(range(len(places)))
        return _PLACE.sub(
            lambda name: chosen.choice(
                allowed if next(numbers) == random_one else words[name[1]]
            ), template,
        )  # fmt: skip

    prompts: list[str] = []
    while len(prompts) < count:
        if chosen.random() < 0.5:
            prompt = filled(chosen.choice(templates))
        else:
            prompt = " ".join(chosen.choices(allowed, k=chosen.randint(1, 6)))
        if not forbidden.search(prompt) and not sexualises_minors(prompt):
            prompts.append(prompt)
    return tuple(prompts)


def encode_words(
    model: Model,
    prompts: Sequence[str],
    concepts: Sequence[Conditioning],
    on_progress: ProgressCallback = silent,
) -> Conditioning:
    """Encode prompts, as many as memory is meant to hold, and return all but those that are most
    like the captions of the concepts. Nothing is kept on disk, where they would take a GB."""
    first = encode_texts(model, prompts[:1])
    size = sum(part.numel() * part.element_size() for part in first.parts.values())
    prompts = prompts[: max(_FEWEST, int(_ROOM / size))]
    parts = []
    for start in range(0, len(prompts), _CHUNK):
        parts.append(encode_texts(model, prompts[start : start + _CHUNK]))
        done = min(start + _CHUNK, len(prompts))
        on_progress(Progress(stage="encoding", step=done, total=len(prompts)))
    words = Conditioning.cat(parts)
    return words[farthest(words, concepts, round(len(words) * (1 - NEAR)))]


def farthest(prompts: Conditioning, concepts: Sequence[Conditioning], count: int) -> Tensor:
    """Return which `count` of the encoded prompts are least like any caption of the concepts.

    Likeness is the cosine of the embeddings, averaged over tokens, from the prompts' mean.
    Returns: indices in order, [count].
    """
    rows = _embedded(prompts)
    middle = rows.mean(0)
    rows = functional.normalize(rows - middle)
    others = torch.cat([_embedded(each) for each in concepts])
    likeness = rows @ functional.normalize(others - middle).T
    return likeness.amax(1).argsort(stable=True)[:count].sort().values


def _embedded(texts: Conditioning) -> Tensor:
    """Return the mean over tokens of each text's embeddings, [n, width]."""
    return max(texts.parts.values(), key=Tensor.numel).float().flatten(1, -2).mean(1)
