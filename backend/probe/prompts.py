"""Prompts of a probe, as image requests with seeds.

A prompt set comes from a file, from the plan itself, or is the default of its kind:

- unsafe: for a concept that is a shipped preset, the list `prompts/NAME.txt` here, worded unlike
  the preset's own prompts, so that a probe does not ask what hardening has rehearsed (with
  `extended`, also `prompts/NAME.more.txt`: together 60 or more for each concept); for any
  other concept (also one of a preset's name with prompts of its own), the concept's prompts;
- neighbour: the presets' benign neighbours; retain: the shipped retain prompts.

A `.csv` needs a column `prompt`. Seeds are read from `seed`, `sd_seed` or `evaluation_seed`,
guidance from `guidance`, `sd_guidance_scale`, `guidance_scale` or `evaluation_guidance` (the
first that there is); these are the names of I2P (Schramowski et al., arXiv:2211.05105) and of
lists made after it. Other columns are not read.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import isfinite
from pathlib import Path

from ..data.concept import load_preset, near_neighbours, preset_names, retain_prompts
from ..data.text import lines_of, read_text
from ..errors import DataError
from ..plan.concept import Concept
from ..plan.measurement import PromptSet
from ..plan.probe import ProbePlan
from ..text.refused import WHY, sexualises_minors

SEED_COLUMNS = ("seed", "sd_seed", "evaluation_seed")
GUIDANCE_COLUMNS = ("guidance", "sd_guidance_scale", "guidance_scale", "evaluation_guidance")
_KINDS = {"neighbour": "similar harmless", "retain": "other"}  # as a reader calls them
_FOLDER = Path(__file__).parent / "prompts"
_STRIDE = 1_000_000  # between the seeds of a prompt's images; lists are shorter
_LARGEST_SEED = 2**62  # leaves room for the further images of a prompt
_LARGEST_GUIDANCE = 50.0


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt. seed, guidance: its own, where the list has them. number: from 0, its place in
    the whole list, before `limit`."""

    text: str
    seed: int | None = None
    guidance: float | None = None
    number: int = 0


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """Request for one image. guidance None: the plan's."""

    text: str
    seed: int
    guidance: float | None = None


def load_prompts(part: PromptSet, concepts: Sequence[Concept]) -> tuple[Prompt, ...]:
    """Return at most `part.limit` prompts of a set, evenly spread; none if there is no default.

    Raises:
        DataError: a file that cannot be read or has no prompts, a cell that is not a seed or a
            guidance, a concept without prompts. Names the file, line and column.
    """
    if part.file:
        found = list(_from_file(Path(part.file).expanduser(), part.kind))
    elif part.prompts:
        found = [Prompt(text.strip()) for text in part.prompts]
        if not all(prompt.text for prompt in found):
            raise DataError(f"prompts ({part.kind}): one of them is empty")
    else:
        # Further prompts come last: they change the number, and so the seed, of none before them.
        texts = [*_default(part.kind, concepts), *_further(part, concepts)]
        found = [Prompt(text) for text in dict.fromkeys(texts)]
    numbered = tuple(replace(prompt, number=number) for number, prompt in enumerate(found))
    return spread(numbered, part.limit)


def spread(prompts: tuple[Prompt, ...], limit: int) -> tuple[Prompt, ...]:
    """Select at most `limit` entries, evenly spread and in their order; 0 keeps all."""
    count = len(prompts)
    if not limit or limit >= count:
        return prompts
    return tuple(prompts[place * count // limit] for place in range(limit))


def expand(prompts: Iterable[Prompt], images: int, seed: int) -> list[ImageRequest]:
    """Build `images` requests for each prompt, one after the other.

    Image k of a prompt has the prompt's own seed + k, or else `seed` + its number + k · 1 000 000.
    So neither `limit` nor `images` changes the seeds of the images that stay.
    """
    return [
        ImageRequest(
            prompt.text,
            seed + prompt.number + k * _STRIDE if prompt.seed is None else prompt.seed + k,
            prompt.guidance,
        )
        for prompt in prompts
        for k in range(images)
    ]


def counted(requests: Mapping[str, Sequence[ImageRequest]]) -> str:
    """Say what the images of an evaluation are of: `24 unsafe prompts × 2 + 8 other prompts`."""
    said = []
    for kind, part in requests.items():
        texts = Counter(request.text for request in part)
        what = f"{len(texts)} {_KINDS.get(kind, kind)} prompt{'s' * (len(texts) != 1)}"
        each = set(texts.values())
        if len(each) > 1:  # a list may name a prompt more than once
            what += f": {len(part)}"
        elif each != {1}:
            what += "".join(f" × {images}" for images in each)
        said.append(what)
    return " + ".join(said)


def plan_requests(plan: ProbePlan) -> dict[str, tuple[ImageRequest, ...]]:
    """Build the request of every image that an evaluation draws, by kind of prompt."""
    found = {}
    for part in plan.prompts:
        prompts = load_prompts(part, plan.concepts)
        if prompts:
            found[part.kind] = tuple(expand(prompts, part.images, plan.generation.seed))
    return found


def evaluation_prompts(preset: str) -> tuple[str, ...]:
    """Return the shipped prompts for probing a concept of this name; empty if there are none."""
    return _shipped(preset) if preset in preset_names() else ()


def further_prompts(preset: str) -> tuple[str, ...]:
    """Return the shipped prompts that long probes of a concept add to `evaluation_prompts`."""
    return _shipped(f"{preset}.more") if preset in preset_names() else ()


@cache
def _shipped(preset: str) -> tuple[str, ...]:
    path = _FOLDER / f"{preset}.txt"
    return tuple(prompt.text for prompt in _lines(path.read_text(encoding="utf-8")))


def _default(kind: str, concepts: Sequence[Concept]) -> Iterator[str]:
    if kind == "retain":
        yield from retain_prompts()
        return
    for concept in concepts:
        if kind == "neighbour":
            yield from near_neighbours(concept.name)
        elif concept.name in preset_names() and _is_as_shipped(concept):
            yield from evaluation_prompts(concept.name)
        elif concept.prompts:
            yield from concept.prompts
        else:
            raise DataError(
                f"concept {concept.name}: has images but no prompts to draw it by; give the "
                "unsafe prompts of the probe as a file or as a list"
            )


def _further(part: PromptSet, concepts: Sequence[Concept]) -> Iterator[str]:
    """Yield the further shipped prompts that `extended` adds to the unsafe ones."""
    if part.kind == "unsafe" and part.extended:
        for concept in concepts:
            if concept.name in preset_names() and _is_as_shipped(concept):
                yield from further_prompts(concept.name)


def _is_as_shipped(concept: Concept) -> bool:
    """Return True if the concept's prompts are those of the shipped preset of its name."""
    return set(concept.prompts) <= set(load_preset(concept.name).prompts)


def _from_file(path: Path, kind: str) -> list[Prompt]:
    text = read_text(path)
    suffix = path.suffix.lower()
    if suffix not in (".txt", ".csv"):
        raise DataError(
            f"{path}: prompts are read from .txt (one per line) and .csv, not {suffix!r}"
        )
    found = list(_lines(text)) if suffix == ".txt" else list(_rows(text, path))
    if not found:
        raise DataError(f"{path}: has no prompts ({kind})")
    for number, prompt in enumerate(found, start=1):
        if sexualises_minors(prompt.text):
            raise DataError(f"{path}, prompt {number}: {WHY}")
    return found


def _lines(text: str) -> Iterator[Prompt]:
    for line in lines_of(text):
        if (stripped := line.strip()) and not stripped.startswith("#"):
            yield Prompt(stripped)


def _rows(text: str, path: Path) -> Iterator[Prompt]:
    head = text.lstrip().split("\n", 1)[0]
    delimiter = next((mark for mark in ",;\t" if mark in head), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] = []
    try:
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if not columns:
                columns = _header(row, path)
                continue
            yield _row(columns, row, f"{path}, line {reader.line_num}")
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: is not valid CSV ({error})") from error


def _header(row: list[str], path: Path) -> list[str]:
    columns = [cell.strip().lower() for cell in row]
    if "prompt" not in columns:
        raise DataError(f"{path}, line 1: has no column `prompt`; its columns are {', '.join(row)}")
    return columns


def _row(columns: list[str], row: list[str], where: str) -> Prompt:
    if len(row) > len(columns):
        raise DataError(
            f"{where}: has {len(row)} cells under {len(columns)} columns; put a prompt that has "
            "commas into double quotes"
        )
    cells = dict(zip(columns, (cell.strip() for cell in row), strict=False))
    if not cells.get("prompt"):
        raise DataError(f"{where}, column prompt: is empty")
    seed = _number(cells, SEED_COLUMNS, _LARGEST_SEED, where)
    if seed is not None and seed != int(seed):
        raise DataError(f"{where}: seed is {seed:g}, not a whole number")
    guidance = _number(cells, GUIDANCE_COLUMNS, _LARGEST_GUIDANCE, where)
    return Prompt(
        cells["prompt"],
        None if seed is None else int(seed),
        None if guidance is None else float(guidance),
    )


def _number(
    cells: dict[str, str], names: tuple[str, ...], largest: float, where: str
) -> int | float | None:
    """Return the number in the first of these columns that exists; None if the cell is empty."""
    name = next((name for name in names if name in cells), "")
    text = cells.get(name, "")
    if not text:
        return None
    try:
        number = int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError as error:
        raise DataError(f"{where}, column {name}: {text!r} is not a number") from error
    if not (isfinite(number) and 0 <= number <= largest):
        raise DataError(f"{where}, column {name}: {text} is not between 0 and {largest:g}")
    return number
