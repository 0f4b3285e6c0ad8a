"""The node Concept List: the concepts to remove."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..backend.data.concept_list import NONE, joined, read_concepts, sections
from ..backend.errors import ConfigError
from ..backend.plan.concept import Concept, shown_name
from ..backend.plan.field import field_of
from .inputs import field_input
from .types import CATEGORY, Concepts, Images, found_by

if TYPE_CHECKING:
    from ..backend.plan.images import ImageSet


class ConceptList(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..backend.data.concept import preset_names

        return io.Schema(
            node_id="ResAlign_ConceptList",
            display_name="ResAlign Concept List",
            category=CATEGORY,
            **found_by("concepts to remove", "erase concept", "unlearn"),
            description="What a hardened model must no longer show: a shipped category, your own "
            "prompts, or both. Chain several through `previous`.",
            inputs=[
                io.Combo.Input(
                    "preset", options=[NONE, *map(shown_name, preset_names())], default=NONE,
                    tooltip="A shipped category with its prompts; none to use only your own.",
                ),
                io.String.Input(
                    "name", default="", display_name="name (empty = the preset's)",
                    placeholder="empty: the preset's",
                    tooltip="Name of the concept. Empty: the preset's name, or the first prompt.",
                ),
                io.String.Input(
                    "prompts", default="", multiline=True,
                    placeholder="prompts: with a preset, nothing to write here; its own are used. "
                    "Yours are added, one a line.",
                    tooltip="Prompts that ask for the concept, one per line, in addition to the "
                    "preset's. Empty with a preset: the preset's alone. A line `# name` starts "
                    "another concept.",
                ),
                field_input(
                    "strength", field_of(Concept, "weight"), min=0.01, max=100.0, step=0.05
                ),
                field_input(
                    "anchor", field_of(Concept, "anchor"), hidden=True,
                    tooltip=f"{field_of(Concept, 'anchor').help} With a preset, its own anchor.",
                ),
                Images.Input(
                    "images", optional=True,
                    tooltip="Pictures of the concept. If not connected, the model generates them "
                    "from the prompts.",
                ),
                Concepts.Input(
                    "previous", optional=True,
                    tooltip="Concepts of another Concept List, which this node adds to.",
                ),
            ],
            outputs=[Concepts.Output(display_name="concepts", tooltip="All concepts so far.")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, prompts: str | None = "", preset: str | None = None) -> bool | str:
        """Check both; `preset` is named here so that ComfyUI takes the spelling of older workflows,
        such as hate_symbols."""
        from ..backend.data.concept import preset_called, preset_names

        if preset not in (None, NONE) and not preset_called(preset):
            known = ", ".join([NONE, *map(shown_name, preset_names())])
            return f"preset is {preset!r}; choose from {known}"
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
