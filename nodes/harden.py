"""Harden Model: builds a plan from its inputs, runs it, and puts the adapter on the MODEL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from . import types
from .own_process import (
    BACKGROUND,
    DEVICES,
    INSIDE,
    PLACES,
    SAME,
    checked_source,
    choice_problem,
    device_for,
    fingerprint,
    run_in_worker,
)
from .provenance import AUTOMATIC

if TYPE_CHECKING:
    from ..backend.plan.hardening import HardeningPlan
    from ..backend.run.records import StepRecord


class HardenModel(io.ComfyNode):
    """Removes the concepts so that fine-tuning brings less of them back."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        from .sources import model_files

        checkpoints = [AUTOMATIC, *model_files()]
        return io.Schema(
            node_id="ResAlign_HardenModel",
            display_name="Harden Model",
            category=types.CATEGORY,
            **types.found_by("unlearn", "erase concept", "safety", "immunize"),
            description=(
                "Removes the concepts so that they return less when others fine-tune the model. "
                "Takes minutes to hours; run the workflow again to continue a stopped run."
            ),
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The MODEL to harden, with the LoRAs on it."),
                io.Clip.Input("clip", tooltip="Its text encoder. It is read, not changed."),
                io.Vae.Input("vae", tooltip="Its VAE, for image sets and previews."),
                types.Concepts.Input("concepts", tooltip="What to remove, from Concept List."),
                types.Settings.Input(
                    "settings", optional=True,
                    tooltip="From Hardening Settings. If not connected: the durable preset, or "
                    "balanced with Fine-Tuning Settings.",
                ),
                types.FineTuning.Input(
                    "fine_tuning", optional=True,
                    tooltip="The fine-tuning to resist, from Fine-Tuning Settings. If not "
                    "connected: the preset's.",
                ),
                types.Images.Input(
                    "retain", optional=True,
                    tooltip="Images of what must stay, from Image Set. If not connected: generated "
                    "from shipped prompts.",
                ),
                io.Combo.Input(
                    "checkpoint", options=checkpoints, default=AUTOMATIC,
                    tooltip="The file that the MODEL was loaded from. The export makes a new file "
                    "from it, and leaves it as it is. automatic asks the loader, or looks for it "
                    "in the graph.",
                ),
                io.Int.Input(
                    "preview_every", default=10, min=0, max=10_000,
                    display_name="preview_every (0 = never)",
                    tooltip="Outer steps between two previews; 0 for none.",
                ),
                io.String.Input(
                    "preview_prompt", default="",
                    tooltip="Prompt of the previews. Empty: the first prompt of the first concept.",
                ),
                types.advanced(
                    io.Boolean, "show_pictures", default=False,
                    tooltip="Show previews of the concept without blur.",
                ),
                types.advanced(
                    io.Combo, "process", options=[*PLACES], default=INSIDE,
                    tooltip="Own process: ComfyUI keeps running if the run crashes or fills the "
                    "memory. Background: the queue is free meanwhile; run the workflow again "
                    "for the result.",
                ),
                types.advanced(
                    io.Combo, "device", options=[*DEVICES], default=SAME,
                    tooltip="Where an own process computes, such as a second card.",
                ),
            ],
            outputs=[
                io.Model.Output("model_out", display_name="model"),
                io.LoraModel.Output("lora", display_name="lora"),
                io.LossMap.Output("losses", display_name="losses"),
                types.Run.Output("run", display_name="run"),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo, io.Hidden.prompt],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, process: str | None = None, device: str | None = None) -> bool | str:
        return choice_problem(process, device) or True

    @classmethod
    def fingerprint_inputs(cls, process: str = INSIDE, **others: Any) -> str:
        return fingerprint(process)

    @classmethod
    def execute(
        cls, model, clip, vae, concepts, settings=None, fine_tuning=None, retain=None,
        checkpoint=AUTOMATIC, preview_every=10, preview_prompt="", show_pictures=False,
        process=INSIDE, device=SAME,
    ) -> io.NodeOutput:  # fmt: skip
        import torch

        from ..backend.jobs.family_defaults import drawn_as
        from ..backend.plan.file import plan_hash
        from . import bridge, places
        from .ahead import check_ahead
        from .plan import build_plan, data_stamp
        from .provenance import check_source
        from .runs import place_of_run, stored_run

        bridge.check_model(model)
        bridge.check_parts(clip, vae)
        with torch.inference_mode(False):
            plan = build_plan(concepts, settings, fine_tuning, retain)
            plan = drawn_as(bridge.family_of(model), plan)
            stamps = data_stamp(plan, named=places.sets()), bridge.fingerprint(model, clip, vae)
            place = device_for(device)
            key_of = lambda one: places.key(plan_hash(one), *stamps)  # noqa: E731
            plan, folder = place_of_run(plan, key_of, place)
            named = None if checkpoint == AUTOMATIC else source_file(model, checkpoint)
            if named is not None:
                check_source(model, named)
            run = stored_run(folder, plan)
            if run is None:
                source = source_file(model, checkpoint, cls.hidden)
                check_ahead(model, source, cls.hidden)
                parts, previews = (model, clip, vae), (preview_every, preview_prompt, show_pictures)
                if not train(cls.hidden, parts, plan, folder, source, previews, process, place):
                    return still_at_work()
                run = stored_run(folder, plan)
                assert run is not None
            else:
                show_again(cls.hidden, run)
            if named is not None:
                run = replace(run, source=named)
            if not run.weights:  # of an earlier version; its folder's name proves the weights
                run = replace(run, weights=bridge.weights_of(model, clip))
            lora = bridge.lora_model(run.adapter, bridge.places_of(model))
            patched = bridge.with_adapter(model, lora)
            bridge.mark(patched, lora, run.weights["model"])
        return io.NodeOutput(
            patched, lora, loss_map(run.records), run, ui={"resalign_run": [summary(run)]}
        )


def train(
    hidden: Any,
    parts: tuple[Any, Any, Any],
    plan: HardeningPlan,
    folder: Path,
    source: Path | None,
    previews: tuple[int, str, bool],
    process: str,
    device: str,
) -> bool:
    """Take the steps that are left where `process` says; return whether the run is finished.

    parts: MODEL, CLIP and VAE. device: of an own process.
    """
    from . import bridge
    from .runs import describe_source, run_plan

    if process == INSIDE:
        run_plan(hidden, *parts, plan, folder, source, previews)
        return True
    file, companions = checked_source(*parts, source, hidden)
    model, clip, _ = parts
    weights = {f"{name}.weight": weight for name, weight in bridge.base_matrices(model).items()}
    about = describe_source(model, clip, weights, file, bridge.decision_of(model))
    options = {
        "device": device, "prediction": bridge.decision_for(model, file), **companions,
        **dict(zip(("preview_every", "preview_prompt", "show_pictures"), previews, strict=True)),
    }  # fmt: skip
    background = process == BACKGROUND
    return run_in_worker(hidden, plan, folder, about, options, background=background)


def show_again(hidden: Any, run: types.HardenedRun) -> None:
    """Show a finished run in the node's widget."""
    from ..backend.jobs.verdict import of_run
    from .live import Live
    from .runs import NEXT_STEP

    harms = [record.harm for record in run.records]
    said, verdict = of_run(run.plan, NEXT_STEP, harms)
    shown = Live(hidden, "harden", run.plan.outer_steps)
    shown.plan(run.plan)
    shown.recall(run.records, f"kept from an earlier run: {said}", verdict)


def still_at_work() -> io.NodeOutput:
    """Return outputs that stop what depends on them, without an error."""
    from comfy_execution.graph_utils import ExecutionBlocker

    return io.NodeOutput(*[ExecutionBlocker(None)] * 4)


def source_file(model: Any, checkpoint: str, hidden: Any = None) -> Path | None:
    """Return the file that was chosen, or that the MODEL was loaded from, if it is known."""
    from . import sources

    if checkpoint != AUTOMATIC:
        return sources.model_file(checkpoint)
    return sources.source_file(model, hidden)


def loss_map(records: Sequence[StepRecord]) -> dict[str, list[float]]:
    """Return the harm loss of each step for core's LossGraphNode.

    That node divides by the range and the length of the curve. A single step is therefore
    repeated, and where all are equal the last is raised by a thousandth.
    """
    losses = [record.harm for record in records if math.isfinite(record.harm)] or [0.0]
    if len(losses) < 2:
        losses = losses * 2
    if max(losses) == min(losses):
        losses[-1] += max(abs(losses[-1]), 1.0) * 1e-3
    return {"loss": losses}


def summary(run: types.HardenedRun) -> dict[str, Any]:
    """Return what the node shows of a finished run."""
    from ..backend.jobs.verdict import of_run
    from ..backend.plan.concept import shown_names
    from .runs import NEXT_STEP

    last = run.records[-1].values() if run.records else {}
    return {
        "key": run.folder.name,
        "steps": len(run.records),
        "concepts": shown_names(run.plan.concepts),
        "last": {name: round(value, 4) for name, value in last.items()},
        "source": run.source.name if run.source else "",
        "patched": run.patched,
        "said": of_run(run.plan, NEXT_STEP, [record.harm for record in run.records])[0],
    }
