"""A concept: what a hardened checkpoint must no longer make."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from ..errors import ConfigError
from .checks import check_fields, check_prompts, freeze_lists
from .document import document
from .field import NOT_EMPTY, Help, Range
from .images import ImageSet


def shown_name(name: str) -> str:
    """Return a concept's name as people write it: hate symbols, for hate_symbols.

    Plans and files keep the name itself.
    """
    return " ".join(name.replace("_", " ").split())


def shown_names(concepts: Iterable[Concept]) -> list[str]:
    return [shown_name(concept.name) for concept in concepts]


@document
@dataclass(frozen=True, slots=True)
class Concept:
    """One concept to remove, described by prompts, by images of it, or by both."""

    name: Annotated[str, NOT_EMPTY, Help("Name of the concept in reports and messages.")]
    prompts: Annotated[
        tuple[str, ...],
        Help(
            "Ways to ask for the concept. Its training images are drawn from these unless it "
            "brings images of its own."
        ),
    ] = ()
    anchor: Annotated[
        str,
        Help(
            "Prompt for what the concept should turn into; used by the redirect loss and by the "
            "fast methods. Empty means the empty prompt."
        ),
    ] = ""
    images: Annotated[
        ImageSet | None,
        Help("Images of this concept; if left out, they are drawn from its prompts."),
    ] = None
    weight: Annotated[
        float,
        Range(0, above=True),
        Help("Share of this concept among several, relative to the others.", label="Strength"),
    ] = 1.0

    def __post_init__(self) -> None:
        freeze_lists(self)
        check_fields(self, f"concept {self.name}".rstrip())
        if not self.prompts and self.images is None:
            raise ConfigError(f"concept {self.name}: give prompts, or images of it, or both")
        # The name with each prompt: a concept's name says what its prompts are asked for.
        check_prompts(
            "concept", [self.name, self.anchor, *(f"{self.name}: {p}" for p in self.prompts)]
        )
        if any(not prompt.strip() for prompt in self.prompts):
            raise ConfigError(f"concept {self.name}: one of its prompts is empty")
