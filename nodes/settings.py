"""The nodes Fine-Tuning Settings and Hardening Settings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..backend.plan.document import explain
from ..backend.plan.durations import NAMES, TIMES, in_order, preset_line
from ..backend.plan.presets import DEFAULT_PRESET
from ..backend.plan.settings import (
    CUSTOM_USERS,
    PRESETS,
    fine_tuning_pool,
    input_field,
    setting_changes,
    user_field,
)
from .inputs import field_input
from .plan import training_folder
from .types import (
    CATEGORY,
    FineTuning,
    FineTuningValue,
    Images,
    Settings,
    SettingsValue,
    chosen,
    found_by,
    preset_input,
)

if TYPE_CHECKING:
    from ..backend.plan.images import ImageSet

# How far an arrow of a float's widget moves; without one ComfyUI rounds to a tenth.
_STEPS: dict[str, dict[str, Any]] = {
    "resilience_weight": {"step": 0.05},
    "retain_weight": {"step": 0.1},
    "gamma": {"step": 0.05},
    "learning_rate": {"step": 0.00001, "round": False},
    "harm_cap": {"step": 0.05, "min": 0.01},
    "concept_share": {"step": 0.05},
    "erase_ratio": {"step": 0.5},
}
# Workflows store the values of widgets by position: new ones come after those before them.
_KNOBS = (
    "simulate", "solver", "products", "resilience_weight", "retain_weight", "gamma",
    "learning_rate", "precision", "gradient_checkpointing",
)  # fmt: skip
_LATER_KNOBS = (
    "varied_images", "erase_ratio", "distil_batch", "teacher", "teacher_waits", "optimiser_waits",
)  # fmt: skip


class FineTuningSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        preset, last = preset_input(
            "preset",
            {"balanced": [], "quick": [], "paper": [], "none": [], "custom": _users()},
            tooltip="Simulated users: balanced those of the preset of that name, quick a "
            "small test, paper the published pool, none plain unlearning, custom your own.",
        )
        return io.Schema(
            node_id="ResAlign_FineTuningSettings",
            display_name="ResAlign Fine-Tuning Settings",
            category=CATEGORY,
            **found_by("simulated users", "attack settings"),
            description="How the simulated users fine-tune against whom the model is hardened.",
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
    """Build the inputs that the custom choice of Fine-Tuning Settings shows."""
    return [_user_input(name, default) for name, default in CUSTOM_USERS.items()]


def _user_input(name: str, default: Any) -> Any:
    """A switch for a method or an optimiser, a list of numbers as text, or one number."""
    for choice in ("method", "optimiser"):
        meanings = user_field(choice).choices
        if name in meanings:
            tooltip = f"Include users with this {choice}: {meanings[name]}."
            return io.Boolean.Input(name, default=default, tooltip=tooltip)
    field = user_field(name)
    if isinstance(default, str):
        tooltip = f"{explain(field)} Several are separated by commas."
        return io.String.Input(name, default=default, tooltip=tooltip)
    return field_input(name, field, default=default, **_STEPS.get(name, {}))


# The first is the default: the recommended one, then from the shortest to the longest
_OFFERED = ("durable", *(name for name in in_order(PRESETS) if name != "durable"))


class HardeningSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        preset, last = preset_input(
            "preset",
            {name: _method() if name == "custom" else [] for name in _OFFERED},
            tooltip="\n".join(
                [
                    *(f"{name} ({NAMES[name]}): {preset_line(name)}." for name in _OFFERED),
                    TIMES,
                ]
            ),
        )
        return io.Schema(
            node_id="ResAlign_HardeningSettings",
            display_name="Hardening Settings",
            category=CATEGORY,
            **found_by("preset", "unlearning settings"),
            description="How long and by which method a model is hardened.",
            inputs=[
                *preset,
                # Not `seed`: the front end draws a new one of that name at every run, and another
                # seed is another run of hours.
                field_input("random_seed", input_field("seed"), display_name="seed"),
                field_input(
                    "resolution",
                    input_field("resolution"),
                    step=64,
                    display_name="resolution (0 = auto)",
                ),
                field_input("rank", input_field("rank"), keeps_preset=True, hidden=True),
                field_input(
                    "outer_steps",
                    input_field("outer_steps"),
                    keeps_preset=True,
                    display_name="steps (0 = auto)",
                ),
                *_knobs(_KNOBS),
                *_knobs(_LATER_KNOBS),
                *last,
            ],
            outputs=[Settings.Output(display_name="settings", tooltip="For Harden Model.")],
        )

    @classmethod
    def execute(cls, preset: Any = DEFAULT_PRESET, **others: Any) -> io.NodeOutput:
        others["seed"] = others.pop("random_seed", 0)
        choice, values = chosen("preset", preset, others)
        return io.NodeOutput(SettingsValue(*setting_changes(choice, {**others, **values})))


def _knobs(names: Iterable[str]) -> list[Any]:
    """Advanced inputs; each keeps the preset's own value unless it is set."""
    return [
        field_input(name, input_field(name), keeps_preset=True, hidden=True, **_STEPS.get(name, {}))
        for name in names
    ]


def _method() -> list[Any]:
    """Build the inputs that the custom choice of Hardening Settings shows."""
    names = ("harm_loss", "harm_cap", "forget_batch", "retain_batch", "regulator", "proximal")
    return [field_input(name, input_field(name), **_STEPS.get(name, {})) for name in names]
