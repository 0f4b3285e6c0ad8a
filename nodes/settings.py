"""Fine-Tuning Settings and Hardening Settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..backend.plan.settings import FAST, OWN, PRESETS, fine_tuning_pool, setting_changes
from .plan import training_folder
from .types import (
    CATEGORY,
    FineTuning,
    FineTuningValue,
    Images,
    Settings,
    SettingsValue,
    advanced,
    chosen,
    preset_input,
)

if TYPE_CHECKING:
    from ..backend.plan.images import ImageSet


class FineTuningSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        preset, last = preset_input(
            "preset",
            {"balanced": [], "quick": [], "paper": [], "none": [], "custom": _users()},
            tooltip="Simulated users: balanced is the recommended start, quick a small "
            "test, paper the published pool, none plain unlearning, custom your own.",
        )
        return io.Schema(
            node_id="ResAlign_FineTuningSettings",
            display_name="Fine-Tuning Settings",
            category=CATEGORY,
            description="How the simulated users fine-tune, against whom the model is hardened.",
            inputs=[
                *preset,
                Images.Input(
                    "images", optional=True,
                    tooltip="What the simulated users train on; without it, the retain set.",
                ),
                *last,
            ],
            outputs=[
                FineTuning.Output(display_name="fine_tuning", tooltip="For Harden Model.")
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, preset: Any = "balanced", images: ImageSet | None = None, **others: Any
    ) -> io.NodeOutput:
        choice, values = chosen("preset", preset, others)
        pool = fine_tuning_pool(choice, values, training_folder(images))
        return io.NodeOutput(FineTuningValue(*pool))


def _users() -> list[Any]:
    """What the custom choice of Fine-Tuning Settings shows."""
    return [
        io.Boolean.Input("lora", default=True, tooltip="Some users train a LoRA."),
        io.Boolean.Input("full", default=False, tooltip="Some users train all weights."),
        io.Boolean.Input("dreambooth", default=False, tooltip="Some users train by DreamBooth."),
        io.String.Input(
            "learning_rates", default="1e-4, 1e-5",
            tooltip="Learning rates, separated by commas; usual are 1e-6 to 1e-3.",
        ),
        io.String.Input(
            "steps", default="5, 20", tooltip="Training steps of a user, separated by commas."
        ),
        io.Boolean.Input("adamw", default=True, tooltip="Some users train with AdamW."),
        io.Boolean.Input("sgd", default=False, tooltip="Some users train with SGD."),
        io.String.Input("ranks", default="4", tooltip="Ranks of LoRAs, separated by commas."),
        io.Int.Input("batch", default=1, min=1, max=64, tooltip="Images in a training step."),
        io.Float.Input(
            "concept_share", default=0.2, min=0.0, max=1.0, step=0.05,
            tooltip="Share of their images that shows the concept; 0 is benign users alone.",
        ),
        io.Int.Input(
            "configurations_per_step", default=1, min=1, max=64,
            tooltip="J: users simulated for each outer step; time grows with it.",
        ),
    ]  # fmt: skip


class HardeningSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        preset, last = preset_input(
            "preset",
            {name: _method() if name == "custom" else [] for name in PRESETS},
            tooltip="fast only shows that everything works, balanced is the recommended "
            "start, thorough takes twice its steps, paper is the published method, custom "
            f"is balanced with more to choose; {FAST}.",
        )
        return io.Schema(
            node_id="ResAlign_HardeningSettings",
            display_name="Hardening Settings",
            category=CATEGORY,
            description="How long and by which method a model is hardened.",
            inputs=[
                *preset,
                io.Int.Input(
                    "random_seed", default=0, min=0, max=2**63 - 1,
                    tooltip="Of all that is random; the same seed gives the same result.",
                ),
                io.Int.Input(
                    "resolution", default=0, min=0, max=2048, step=64,
                    tooltip="Side of the training images in pixels; 0 is the model's own.",
                ),
                io.Int.Input(
                    "rank", default=0, min=0, max=256,
                    tooltip="Rank of the LoRA that hardens the model; 0 is the preset's (edit 16, "
                    "the others 4).",
                ),
                io.Int.Input(
                    "outer_steps", default=0, min=0, max=10_000,
                    tooltip="Updates of that LoRA; 0 is the preset's number.",
                ),
                *_knobs(),
                *last,
            ],
            outputs=[Settings.Output(display_name="settings", tooltip="For Harden Model.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, preset: Any = "balanced", **others: Any) -> io.NodeOutput:
        # Not called `seed` on the node: the front end draws a new one of that name at every run.
        others["seed"] = others.pop("random_seed", 0)
        choice, values = chosen("preset", preset, others)
        return io.NodeOutput(SettingsValue(*setting_changes(choice, {**others, **values})))


def _knobs() -> list[Any]:
    """Advanced inputs; each keeps the preset's own value unless it is set."""
    return [
        advanced(
            io.Combo, "simulate", options=[OWN, "shared", "adapter", "full"], default=OWN,
            tooltip="What a simulated user trains: the hardening LoRA itself, a LoRA of its own, "
            "or all weights.",
        ),
        advanced(
            io.Combo, "solver", options=[OWN, "first_order", "richardson", "cg", "minres"],
            default=OWN, tooltip="How the implicit gradient is solved for.",
        ),
        advanced(
            io.Combo, "products", options=[OWN, "finite_difference", "exact"], default=OWN,
            tooltip="How Hessian-vector products are formed; exact needs more memory.",
        ),
        advanced(
            io.Float, "resilience_weight", default=0.0, min=0.0, max=100.0, step=0.05,
            tooltip="λ: weight of what fine-tuning brings back; 0 is the preset's.",
        ),
        advanced(
            io.Float, "retain_weight", default=0.0, min=0.0, max=100.0, step=0.1,
            tooltip="μ: weight of what must stay; 0 is the preset's.",
        ),
        advanced(
            io.Float, "gamma", default=0.0, min=0.0, max=1000.0, step=0.05,
            tooltip="γ: proximal radius of the solve; 0 is the preset's.",
        ),
        advanced(
            io.Float, "learning_rate", default=0.0, min=0.0, max=0.1, step=0.00001, round=False,
            tooltip="Of the hardening LoRA; 0 is the preset's (usually 2e-4).",
        ),
        advanced(
            io.Combo, "precision", options=[OWN, "fp32", "bf16", "fp16"], default=OWN,
            tooltip="Arithmetic of the U-Net; bf16 halves its memory.",
        ),
        advanced(
            io.Boolean, "gradient_checkpointing", default=False,
            tooltip="Less memory for more time.",
        ),
    ]  # fmt: skip


def _method() -> list[Any]:
    """What the custom choice of Hardening Settings shows."""
    return [
        io.Combo.Input(
            "harm_loss", options=["ascent", "redirect"], default="ascent",
            tooltip="Drive the model away from the concept, or towards its anchor prompt.",
        ),
        io.Float.Input(
            "harm_cap", default=0.5, min=0.01, max=100.0, step=0.05,
            tooltip="Where the ascent saturates; 5 to 10 times the model's usual error.",
        ),
        io.Int.Input(
            "forget_batch", default=4, min=1, max=64, tooltip="Images of the concept in a step."
        ),
        io.Int.Input(
            "retain_batch", default=4, min=1, max=64, tooltip="Images of what must stay in a step."
        ),
        io.Boolean.Input(
            "regulator", default=True,
            tooltip="Lengthen and shorten the simulated runs so that they stay worth hardening "
            "against.",
        ),
        io.Boolean.Input(
            "proximal", default=False,
            tooltip="Hold simulated users near the start, as the implicit gradient assumes.",
        ),
    ]  # fmt: skip
