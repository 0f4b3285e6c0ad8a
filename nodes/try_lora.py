"""Try My LoRA: any LoRA on both MODELs, sampled by ComfyUI, side by side."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import both_models, types

NONE = "(no LoRA in models/loras)"


class TryMyLora(io.ComfyNode):
    """Compare one LoRA, prompt and noise on the original and on the hardened MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        import folder_paths

        return io.Schema(
            node_id="ResAlign_TryMyLora",
            display_name="Try My LoRA",
            category=types.CATEGORY,
            **types.found_by("compare lora", "before after"),
            description=(
                "Applies a LoRA to both models as Load LoRA does, and generates the same prompt "
                "from the same noise: does it still work, does it bring back what was removed?"
            ),
            inputs=[
                io.Model.Input("before", tooltip="The original MODEL."),
                io.Model.Input("after", tooltip="The hardened MODEL."),
                io.Clip.Input("clip", tooltip="The CLIP of both."),
                io.Vae.Input("vae", tooltip="The VAE of both."),
                io.Combo.Input(
                    "lora", options=folder_paths.get_filename_list("loras") or [NONE],
                    tooltip="A LoRA of models/loras, of any kind that ComfyUI loads.",
                ),
                io.Float.Input(
                    "strength", default=1.0, min=-10.0, max=10.0, step=0.05,
                    tooltip="Strength on the model and on its text encoder.",
                ),
                io.String.Input(
                    "prompt", default="", multiline=True,
                    tooltip="Prompt, with the LoRA's trigger words.",
                ),
                io.String.Input(
                    "negative", default="", multiline=True, tooltip="Negative prompt."
                ),
                *both_models.sampling_inputs(),
                io.Int.Input("count", default=1, min=1, max=64, tooltip="Pictures of each model."),
                both_models.show_input(),
            ],
            outputs=both_models.image_outputs(),
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, lora: str) -> bool | str:
        return True if lora != NONE else "put a LoRA into models/loras, then press R"

    @classmethod
    def execute(
        cls, before, after, clip, vae, lora, strength=1.0, prompt="", negative="", seed=0,
        steps=20, cfg=7.0, width=512, height=512, count=1, show_pictures=False,
    ) -> io.NodeOutput:  # fmt: skip
        from .pictures import from_image

        columns, said = both_models.called(before, after)
        tensors = read_lora(lora)
        pictures, steps_of = [], both_models.one_bar(2)
        for model in (before, after):
            patched, texted = with_lora(model, clip, tensors, lora, strength)
            pictures.append(
                from_image(
                    both_models.sample(
                        patched, texted, vae, (prompt, negative), seed, steps, cfg,
                        (width, height), count, on_step=next(steps_of),
                    )
                )
            )  # fmt: skip
        names = [f"seed {seed}, picture {number}" for number in range(1, count + 1)]
        said = both_models.with_guidance(said, before, cfg)
        return both_models.compared(names, pictures, columns, said, show=show_pictures)


def read_lora(name: str) -> Any:
    """Load the tensors of a file in models/loras."""
    import comfy.utils
    import folder_paths

    path = folder_paths.get_full_path_or_raise("loras", name)
    return comfy.utils.load_torch_file(path, safe_load=True)


def with_lora(model: Any, clip: Any, lora: Any, name: str, strength: float) -> tuple[Any, Any]:
    """Return MODEL and CLIP with the LoRA; raise a CheckpointError if it fits neither."""
    import comfy.sd

    from ..backend.errors import CheckpointError

    patched, texted = comfy.sd.load_lora_for_models(model, clip, lora, strength, strength)
    if patched.patches == model.patches and texted.patcher.patches == clip.patcher.patches:
        raise CheckpointError(
            f"{name} matches no module of this MODEL: it is a LoRA for another family of models"
        )
    return patched, texted
