"""Draw Concept: the concept's own prompt on both MODELs, side by side and blurred."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from . import both_models, types

if TYPE_CHECKING:
    from ..backend.plan.concept import Concept


class DrawConcept(io.ComfyNode):
    """Shows whether the hardened MODEL still draws what was to be removed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ResAlign_DrawConcept",
            display_name="ResAlign Draw Concept",
            category=types.CATEGORY,
            **types.found_by("compare concept", "before after"),
            description="Draws the first prompt of each concept with both models, from the same "
            "noise: is it gone?",
            inputs=[
                io.Model.Input("before", tooltip="The original MODEL."),
                io.Model.Input("after", tooltip="The hardened MODEL."),
                io.Clip.Input("clip", tooltip="The CLIP of both."),
                io.Vae.Input("vae", tooltip="The VAE of both."),
                types.Concepts.Input("concepts", tooltip="What was removed, from Concept List."),
                io.String.Input(
                    "prompt", default="", multiline=True,
                    tooltip="Another prompt to draw instead. Empty: the first of each concept.",
                ),
                *both_models.sampling_inputs(),
                both_models.show_input(),
            ],
            outputs=both_models.image_outputs(),
        )  # fmt: skip

    @classmethod
    def execute(
        cls, before, after, clip, vae, concepts, prompt="", seed=0, steps=20, cfg=7.0, width=512,
        height=512, show_pictures=False,
    ) -> io.NodeOutput:  # fmt: skip
        from .pictures import from_image

        columns, said = both_models.called(before, after, lora=False)
        prompts = asked(concepts, prompt)
        steps_of = both_models.one_bar(2 * len(prompts))

        def draw(model: Any, text: str) -> Any:
            size = (width, height)
            images = both_models.sample(
                model, clip, vae, (text, ""), seed, steps, cfg, size, on_step=next(steps_of)
            )
            return from_image(images)[0]

        pictures = [[draw(model, text) for text in prompts] for model in (before, after)]
        said = both_models.with_guidance(said, before, cfg)
        return both_models.compared(prompts, pictures, columns, said, show=show_pictures)


def asked(concepts: tuple[Concept, ...], prompt: str) -> list[str]:
    """Return the prompts to draw: the given one, or the first of each concept that has any."""
    from ..backend.errors import ConfigError

    found = [prompt.strip()] if prompt.strip() else [c.prompts[0] for c in concepts if c.prompts]
    if not found:
        raise ConfigError("the concepts have pictures only: write in `prompt` what asks for them")
    return found
