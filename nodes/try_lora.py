"""Try My LoRA: any LoRA on both MODELs, sampled by ComfyUI, side by side."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from comfy_api.latest import io

from . import types

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
                io.Int.Input(
                    "seed", default=0, min=0, max=2**63 - 1, tooltip="Seed of the noise, for both."
                ),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Steps of the sampler."),
                io.Float.Input(
                    "cfg", default=7.0, min=0.0, max=50.0, step=0.1, tooltip="Guidance scale."
                ),
                io.Int.Input(
                    "width", default=512, min=64, max=4096, step=8, tooltip="In pixels."
                ),
                io.Int.Input(
                    "height", default=512, min=64, max=4096, step=8, tooltip="In pixels."
                ),
                io.Int.Input("count", default=1, min=1, max=64, tooltip="Pictures of each model."),
                types.advanced(
                    io.Boolean, "show_pictures", default=False,
                    tooltip="Return the pictures as they are; otherwise all three outputs are "
                    "blurred, as no scorer has checked them.",
                ),
            ],
            outputs=[
                io.Image.Output("before_images", display_name="before"),
                io.Image.Output("after_images", display_name="after"),
                io.Image.Output("side_by_side", display_name="side_by_side"),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, lora: str) -> bool | str:
        return True if lora != NONE else "put a LoRA into models/loras, then press R"

    @classmethod
    def execute(
        cls, before, after, clip, vae, lora, strength=1.0, prompt="", negative="", seed=0,
        steps=20, cfg=7.0, width=512, height=512, count=1, show_pictures=False,
    ) -> io.NodeOutput:  # fmt: skip
        import torch

        from ..backend.jobs.live_state import blurred
        from ..backend.jobs.try_lora import contact_sheet
        from .pictures import from_image, to_image

        columns, said = called(before, after)
        tensors = read_lora(lora)
        pictures = [
            from_image(
                generate(
                    model, clip, vae, tensors, lora, strength, (prompt, negative), seed, steps,
                    cfg, (width, height), count,
                )
            )
            for model in (before, after)
        ]  # fmt: skip
        rows = [
            (f"seed {seed}, picture {number}", pair)
            for number, pair in enumerate(zip(*pictures, strict=True), start=1)
        ]
        sheet = contact_sheet(rows, show=show_pictures, columns=columns)
        outputs = [
            torch.cat([to_image(p if show_pictures else blurred(p)) for p in column])
            for column in pictures
        ]
        return io.NodeOutput(*outputs, to_image(sheet), ui={"text": [said]})


def called(before: Any, after: Any) -> tuple[tuple[str, str], str]:
    """Return the columns' titles and a line on what was compared; nothing is called hardened
    that is not known to be so."""
    import torch

    from . import bridge
    from .provenance import is_hardened

    with torch.inference_mode(False):
        if bridge.is_same(before, after):
            said = (
                "Warning: `before` and `after` are the same MODEL, so the pictures are too: is "
                "Harden Model bypassed?"
            )
            return ("before + LoRA", "after = before"), said
        hardened = [is_hardened(model) for model in (before, after)]
    if hardened == [False, True]:
        return ("original + LoRA", "hardened + LoRA"), "original and hardened, each with the LoRA"
    said = (
        "Warning: `before` is hardened: connect the original there"
        if hardened[0]
        else "Warning: `after` is not known to be hardened: connect the MODEL of Harden Model, or "
        "of Load Checkpoint with an exported file"
    )
    return ("before + LoRA", "after + LoRA"), said


def read_lora(name: str) -> Any:
    """Load the tensors of a file in models/loras."""
    import comfy.utils
    import folder_paths

    path = folder_paths.get_full_path_or_raise("loras", name)
    return comfy.utils.load_torch_file(path, safe_load=True)


def generate(
    model: Any,
    clip: Any,
    vae: Any,
    lora: Any,
    name: str,
    strength: float,
    texts: tuple[str, str],
    seed: int,
    steps: int,
    cfg: float,
    size: tuple[int, int],
    count: int,
) -> Any:
    """Return the IMAGE of one MODEL with the LoRA, as core's nodes generate it (Euler, normal)."""
    import comfy.sd
    import torch

    from ..backend.errors import CheckpointError
    from . import bridge

    patched, texted = comfy.sd.load_lora_for_models(model, clip, lora, strength, strength)
    if patched.patches == model.patches and texted.patcher.patches == clip.patcher.patches:
        raise CheckpointError(
            f"{name} matches no module of this MODEL: it is a LoRA for another family of models"
        )
    positive, negative = (
        texted.encode_from_tokens_scheduled(texted.tokenize(text)) for text in texts
    )
    width, height = size
    space = bridge.family_of(model).latents.space({})
    latent = {"samples": torch.zeros(count, *space.shape(height, width))}
    host = import_module("nodes")  # ComfyUI's own module, not this package
    (sampled,) = host.common_ksampler(
        patched, seed, steps, cfg, "euler", "normal", positive, negative, latent
    )
    return vae.decode(sampled["samples"])
