"""Concept List: what is to be removed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..backend.errors import ConfigError
from .types import CATEGORY, Concepts, Images, advanced

if TYPE_CHECKING:
    from ..backend.config import Concept, ImageSet

NONE = "none"
_NAME = 60  # characters of a first prompt that become a name


class ConceptList(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..backend.data.concept import preset_names

        return io.Schema(
            node_id="ResAlign_ConceptList",
            display_name="Concept List",
            category=CATEGORY,
            description="What a hardened model must no longer show: a shipped category, prompts "
            "of your own, or both. Chain several through `previous`.",
            inputs=[
                io.Combo.Input(
                    "preset", options=[NONE, *preset_names()], default=NONE,
                    tooltip="A shipped category with its prompts; none for prompts of your own.",
                ),
                io.String.Input(
                    "name", default="",
                    tooltip="What to call the concept; empty takes the preset's name, or the "
                    "first prompt.",
                ),
                io.String.Input(
                    "prompts", default="", multiline=True,
                    tooltip="Ways to ask for the concept, one a line, added to the preset's. A "
                    "line `# name` starts a further concept.",
                ),
                io.Float.Input(
                    "strength", default=1.0, min=0.01, max=100.0, step=0.05,
                    tooltip="Share of this node's concepts relative to others in the list.",
                ),
                advanced(
                    io.String, "anchor", default="",
                    tooltip="What the concept should become, as a prompt; used by the redirect "
                    "loss. Empty takes the preset's.",
                ),
                Images.Input(
                    "images", optional=True,
                    tooltip="Pictures of the concept. Without them the model makes its own from "
                    "the prompts.",
                ),
                Concepts.Input(
                    "previous", optional=True,
                    tooltip="Concepts of another Concept List, which this one adds to.",
                ),
            ],
            outputs=[Concepts.Output(display_name="concepts", tooltip="All concepts so far.")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, prompts: str | None = "") -> bool | str:
        try:
            sections(prompts or "")
        except ConfigError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        preset: str = NONE,
        name: str = "",
        prompts: str = "",
        strength: float = 1.0,
        anchor: str = "",
        images: ImageSet | None = None,
        previous: tuple[Concept, ...] | None = None,
    ) -> io.NodeOutput:
        own = read_concepts(preset, name, prompts, strength=strength, anchor=anchor, images=images)
        return io.NodeOutput(joined(previous or (), own))


def read_concepts(
    preset: str,
    name: str,
    prompts: str,
    *,
    strength: float = 1.0,
    anchor: str = "",
    images: Any = None,
) -> tuple[Concept, ...]:
    """The concepts of one node. Images can only belong to one of them."""
    from ..backend.config import Concept
    from ..backend.data.concept import load_preset, preset_names

    first, *further = sections(prompts)
    lines = first[1]
    if preset == NONE and not lines and further:  # all the text stands below a `# name`
        (header, lines), *further = further
        name = name.strip() or header
        if not lines and header in preset_names():
            preset = header
    if preset == NONE and not lines and images is None:
        raise ConfigError(
            "Concept List is empty: choose a preset (nudity, for one), or write a prompt, or "
            "connect images of the concept"
        )
    if images is not None and further:
        raise ConfigError(
            "Concept List: images belong to one concept, and the prompts name several; give each "
            "a Concept List of its own and chain them through `previous`"
        )
    own = load_preset(preset) if preset != NONE else None
    every = tuple(dict.fromkeys((*(own.prompts if own else ()), *lines)))
    called = name.strip() or (own.name if own else every[0][:_NAME] if every else "images")
    kept = anchor.strip()
    found = [Concept(called, every, kept or (own.anchor if own else ""), images, strength)]
    for header, texts in further:
        shipped = load_preset(header) if not texts and header in preset_names() else None
        if not texts and shipped is None:
            raise ConfigError(
                f"concept {header}: write at least one prompt below `# {header}`; only names of "
                f"presets ({', '.join(preset_names())}) can stand alone"
            )
        becomes = kept or (shipped.anchor if shipped else "")
        asked = shipped.prompts if shipped else texts
        found.append(Concept(header, asked, becomes, None, strength))
    return joined((), tuple(found))


def sections(text: str) -> list[tuple[str, tuple[str, ...]]]:
    """Lines below each `# name`; the first entry, without a name, has those before any."""
    found: list[tuple[str, list[str]]] = [("", [])]
    for line in (line.strip() for line in text.splitlines()):
        if line.startswith("#"):
            header = line.lstrip("#").strip()
            if not header:
                raise ConfigError("Concept List: a line has a # and no name behind it; name it")
            found.append((header, []))
        elif line:
            found[-1][1].append(line)
    return [(header, tuple(dict.fromkeys(lines))) for header, lines in found]


def joined(before: tuple[Concept, ...], own: tuple[Concept, ...]) -> tuple[Concept, ...]:
    """Both lists; a name that comes twice is an error."""
    every = (*before, *own)
    names = [concept.name for concept in every]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"two concepts are called {name!r}: remove one, or give it another `name`"
            )
    return every
