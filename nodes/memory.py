"""Memory Plan: predicts the device memory that hardening needs, and finds settings that fit."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..backend.numerics.byte_sizes import GIB
from . import types

if TYPE_CHECKING:
    from ..backend.memory.plan import MemoryPlan as Found
    from ..backend.plan.hardening import HardeningPlan

STOP, GO_ON = "stop", "go on"


class MemoryPlan(io.ComfyNode):
    """Runs the plan's code on tensors without storage to predict the peak."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ResAlign_MemoryPlan",
            display_name="ResAlign Memory Plan",
            category=types.CATEGORY,
            **types.found_by("vram", "out of memory", "fit memory"),
            description=(
                "Predicts the peak of the device's memory in Harden Model, and returns the "
                "settings with the cheapest changes that make it fit. Takes seconds on one "
                "processor core, a minute or two for SDXL; nothing is loaded."
            ),
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The MODEL to harden; its weights are not read."),
                types.Settings.Input(
                    "settings", optional=True,
                    tooltip="From Hardening Settings. If not connected: the durable preset, or "
                    "balanced where Fine-Tuning Settings are connected.",
                ),
                types.Concepts.Input(
                    "concepts", optional=True,
                    tooltip="As for Harden Model: pictures that are read or generated take memory.",
                ),
                types.FineTuning.Input(
                    "fine_tuning", optional=True, tooltip="As for Harden Model, if it has one."
                ),
                types.Images.Input(
                    "retain", optional=True, tooltip="As for Harden Model, if it has one."
                ),
                io.Float.Input(
                    "budget", default=0.0, min=0.0, max=1000.0, step=0.5,
                    display_name="budget (0 = all)",
                    tooltip="GiB to fit into; 0 is all that the device has (on the CPU: no limit, "
                    "the prediction alone).",
                ),
                io.Combo.Input(
                    "when_nothing_fits", options=[STOP, GO_ON], default=STOP,
                    tooltip="Stop before any work is done, or continue with the smallest settings.",
                ),
            ],
            outputs=[
                types.Settings.Output(
                    "settings_out", display_name="settings",
                    tooltip="For Harden Model: the settings with the changes that make them fit.",
                ),
                io.String.Output("report", display_name="report"),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, settings=None, concepts=None, fine_tuning=None, retain=None, budget=0.0,
        when_nothing_fits=STOP,
    ) -> io.NodeOutput:  # fmt: skip
        from ..backend.errors import ConfigError
        from ..backend.jobs.family_defaults import drawn_as
        from ..backend.memory.words import table
        from ..backend.model.precision import with_precision
        from ..backend.plan.concept import Concept
        from . import bridge, live
        from .plan import build_plan, preset_without_settings

        bridge.check_model(model)
        plan = build_plan(concepts or (Concept("any", ("any",)),), settings, fine_tuning, retain)
        plan = with_precision(drawn_as(bridge.family_of(model), plan), device_name())
        shown = live.Live(cls.hidden, "memory")

        def show_try(changes: str) -> None:
            live.check_interrupt()
            shown.note(f"predicting: {changes} ...")

        try:
            found = predicted(model, plan, budget or device_gib(), show_try)
            if found.fits is False and when_nothing_fits == STOP:
                raise ConfigError("; ".join(found.words[1:]))
        except BaseException as error:
            shown.ended_by(error, "stopped")
            raise
        lines = [*table(found), "", *found.words[1:], "Predicted, not measured on a GPU."]
        shown.finish(lines[-2])
        given = settings or types.SettingsValue(preset_without_settings(fine_tuning))
        fitting = types.SettingsValue(given.preset, {**given.changes, **changed(plan, found)})
        text = "\n".join(lines)
        return io.NodeOutput(fitting, text, ui={"text": [text]})


def predicted(
    model: Any, plan: HardeningPlan, budget: float | None, on_try: Callable[[str], None]
) -> Found:
    """Predict the memory of this MODEL, with text encoders in float32 as the bridge builds them;
    without those that stay ComfyUI's, which it unloads.

    budget: GiB; None only predicts.
    """
    import torch

    from ..backend.memory.plan import plan_memory
    from . import bridge

    family = bridge.family_of(model)
    configs = family.published() | {family.denoiser: bridge.denoiser_config(model)}
    if bridge.encodes_text(model):
        own = (family.denoiser, *family.host.within, family.vae)
        configs = {name: configs[name] for name in own}
    with torch.inference_mode(False), torch.enable_grad():
        return plan_memory(
            plan, family, configs=configs,
            resolution=bridge.resolution_of(model), stored_in_half=False, budget=budget,
            quantized=find_spec("bitsandbytes") is not None, on_try=on_try,
        )  # fmt: skip


def device_gib() -> float | None:
    """Return all memory of ComfyUI's device; None if it is not a CUDA device."""
    import torch
    from comfy import model_management

    device = torch.device(model_management.get_torch_device())
    return model_management.get_total_memory(device) / GIB if device.type == "cuda" else None


def decided(
    model: Any, plan: HardeningPlan, note: Callable[[str], None]
) -> tuple[HardeningPlan, Found | None]:
    """Return the plan as ComfyUI's device has it, and its memory, predicted on a GPU alone.

    Takes seconds of a run of minutes.
    """
    from ..backend.jobs.opening import decide
    from . import live

    def predict(candidate: HardeningPlan) -> Found:
        live.check_interrupt()
        note("predicting the memory")
        return predicted(model, candidate, None, lambda changes: None)

    return decide(plan, device_name(), predict)


def device_name() -> str:
    """Return ComfyUI's device as torch names it: `cuda:0`, `mps`, `cpu`."""
    import torch
    from comfy import model_management

    return str(torch.device(model_management.get_torch_device()))


def warned(found: Found | None) -> list[str]:
    """Return a line for the widget where a run may not fit the device."""
    room = device_gib()
    if found is None or room is None or found.total <= room * GIB:
        return []
    return ["This may not fit: connect Memory Plan, which finds settings that do."]


def changed(plan: HardeningPlan, found: Found) -> dict[str, Any]:
    """Return the plan's fields that were changed to fit."""
    names = {name.partition(".")[0] for name in found.changes}
    return {name: getattr(found.plan, name) for name in sorted(names)}
