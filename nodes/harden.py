"""Harden Model: a plan from what is connected, a run that survives, a MODEL with the adapter on."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from . import types

if TYPE_CHECKING:
    from ..backend.plan.hardening import HardeningPlan
    from ..backend.run.records import StepRecord

AUTOMATIC = "automatic"
SOURCE = "source.json"  # in the run folder: what the hardened MODEL was


class HardenModel(io.ComfyNode):
    """Removes the concepts so that fine-tuning does not bring them back."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        import folder_paths

        checkpoints = [AUTOMATIC, *folder_paths.get_filename_list("checkpoints")]
        return io.Schema(
            node_id="ResAlign_HardenModel",
            display_name="Harden Model",
            category=types.CATEGORY,
            description=(
                "Unlearns the concepts so that they stay unlearned when others fine-tune the "
                "model. Takes minutes to hours; an interrupted run goes on when queued again."
            ),
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The MODEL to harden, with the LoRAs on it."),
                io.Clip.Input("clip", tooltip="Its text encoder. It is read, not changed."),
                io.Vae.Input("vae", tooltip="Its VAE, for image sets and previews."),
                types.Concepts.Input("concepts", tooltip="What to remove, from Concept List."),
                types.Settings.Input(
                    "settings", optional=True,
                    tooltip="From Hardening Settings. Without: the balanced preset.",
                ),
                types.FineTuning.Input(
                    "fine_tuning", optional=True,
                    tooltip="Whom to resist, from Fine-Tuning Settings. Without: the preset's.",
                ),
                types.Images.Input(
                    "retain", optional=True,
                    tooltip="What must stay, from Image Set. Without: synthesised from prompts.",
                ),
                io.Combo.Input(
                    "checkpoint", options=checkpoints, default=AUTOMATIC,
                    tooltip="The file that the MODEL came from, which the export rewrites. "
                    "Automatic asks the loader, or looks for Load Checkpoint in the graph.",
                ),
                io.Int.Input(
                    "preview_every", default=10, min=0, max=10_000,
                    tooltip="Outer steps between two previews; 0 draws none.",
                ),
                io.String.Input(
                    "preview_prompt", default="",
                    tooltip="What to draw. Empty: the first prompt of the first concept.",
                ),
                types.advanced(
                    io.Boolean, "show_pictures", default=False,
                    tooltip="Show previews of the concept without blur.",
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
    def execute(
        cls, model, clip, vae, concepts, settings=None, fine_tuning=None, retain=None,
        checkpoint=AUTOMATIC, preview_every=10, preview_prompt="", show_pictures=False,
    ) -> io.NodeOutput:  # fmt: skip
        import torch

        from ..backend.plan.file import plan_hash
        from . import bridge, live, places, refuse
        from .plan import build_plan, data_stamp

        refuse.check_model(model)
        refuse.check_parts(clip, vae)
        with torch.inference_mode(False):
            plan = build_plan(concepts, settings, fine_tuning, retain)
            key = places.key(
                plan_hash(plan),
                data_stamp(plan, named=places.sets()),
                bridge.fingerprint(model, clip, vae),
            )
            run = stored_run(places.runs() / key, plan)
            if run is None:
                source = source_file(model, checkpoint, cls.hidden)
                previews = (preview_every, preview_prompt, show_pictures)
                work(cls.hidden, model, clip, vae, plan, places.runs() / key, source, previews)
                run = stored_run(places.runs() / key, plan)
                assert run is not None
            else:
                live.Live(cls.hidden, "harden", plan.outer_steps).recall(
                    run.records, f"{_steps(plan)}, kept from an earlier run"
                )
            if checkpoint != AUTOMATIC:
                run = replace(run, source=source_file(model, checkpoint, cls.hidden))
            lora = bridge.lora_model(run.adapter, run.key_map)
            patched = bridge.with_adapter(model, lora)
        return io.NodeOutput(
            patched, lora, loss_map(run.records), run, ui={"resalign_run": [summary(run)]}
        )


def work(
    hidden: Any,
    model: Any,
    clip: Any,
    vae: Any,
    plan: HardeningPlan,
    folder: Path,
    source: Path | None,
    previews: tuple[int, str, bool],
) -> None:
    """Run the plan, or what is left of it, in its folder; all that is kept is kept there."""
    from ..backend.hardening.run import harden
    from ..backend.memory.weights import weight_types
    from . import bridge
    from .live import Live
    from .memory import forecast
    from .preview import previewing
    from .samples import samples_of

    every, prompt, show = previews
    live = Live(hidden, "harden", plan.outer_steps, show_pictures=show)
    try:
        live.remark(forecast(model, plan, live.note))
        kind = weight_types(plan)["denoiser_dtype"]
        with bridge.to_backend(model, clip, vae, source=source, denoiser_dtype=kind) as loaded:
            folder.mkdir(parents=True, exist_ok=True)
            about = {
                "checkpoint": str(source) if source else "",
                "patched": bridge.is_patched(model),
                "family": loaded.family.name,
                "key_map": bridge.key_map(model),
            }
            drawing = previewing(live, loaded, plan, every, prompt)
            drawing.begin()
            weights = loaded.denoiser.state_dict()
            modules = [name for name in about["key_map"] if _is_matrix(weights, name)]
            about["samples"] = samples_of(weights, modules)
            del weights
            _write(folder / SOURCE, about)
            harden(loaded, plan, run_folder=folder, on_progress=drawing)
    except BaseException as error:
        step = live.state["step"] if live.state["stage"] == "harden" else 0
        live.ended_by(
            error, f"stopped after step {step} of {plan.outer_steps}; queue again to go on"
        )
        raise
    live.finish(f"hardened in {_steps(plan)}")


def stored_run(folder: Path, plan: HardeningPlan) -> types.HardenedRun | None:
    """The finished run of this plan, if it is there."""
    from ..backend.run.folder import RunFolder
    from ..backend.run.records import StepRecord

    if not (folder / "plan.json").is_file() or not (folder / SOURCE).is_file():
        return None
    run = RunFolder.open(folder, plan, read_only=True)
    if run.steps_saved < plan.outer_steps:
        return None
    about = json.loads((folder / SOURCE).read_text(encoding="utf-8"))
    adapter, _ = run.load_adapter()
    return types.HardenedRun(
        plan=plan,
        adapter=adapter,
        records=tuple(StepRecord.from_json(record) for record in run.records()),
        folder=folder,
        family=about["family"],
        key_map=about["key_map"],
        source=Path(about["checkpoint"]) if about["checkpoint"] else None,
        patched=about["patched"],
    )


def source_file(model: Any, checkpoint: str, hidden: Any = None) -> Path | None:
    """The file that the MODEL came from: the one chosen, else what its loader says, else the one
    that Load Checkpoint names where the node's `model` input leads to in the graph."""
    import folder_paths

    from . import bridge

    if checkpoint != AUTOMATIC:
        return Path(folder_paths.get_full_path_or_raise("checkpoints", checkpoint))
    name = loaded_name(getattr(hidden, "prompt", None), getattr(hidden, "unique_id", None))
    found = bridge.source_of(model) or (
        folder_paths.get_full_path("checkpoints", name) if name else None
    )
    return Path(found) if found else None


def loaded_name(prompt: Any, node: Any) -> str:
    """The `ckpt_name` at the beginning of a node's chain of `model` inputs; empty if there is none.

    prompt: the graph in the API format. Export compares weights with the file before it uses it.
    """
    seen: set[str] = set()
    while isinstance(prompt, dict) and str(node) in prompt and str(node) not in seen:
        seen.add(str(node))
        inputs = prompt[str(node)].get("inputs", {})
        if isinstance(inputs.get("ckpt_name"), str):
            return inputs["ckpt_name"]
        link = inputs.get("model")
        node = link[0] if isinstance(link, (list, tuple)) and link else None
    return ""


def loss_map(records: Sequence[StepRecord]) -> dict[str, list[float]]:
    """The harm loss of each step as core's LossGraphNode draws it.

    That node divides by the range and the length of the curve, so where there is one step, or all
    are equal, a second point or a last one a thousandth higher is added.
    """
    losses = [record.harm for record in records if math.isfinite(record.harm)] or [0.0]
    if len(losses) < 2:
        losses = losses * 2
    if max(losses) == min(losses):
        losses[-1] += max(abs(losses[-1]), 1.0) * 1e-3
    return {"loss": losses}


def summary(run: types.HardenedRun) -> dict[str, Any]:
    """What the node says of a finished run."""
    last = run.records[-1].values() if run.records else {}
    return {
        "key": run.folder.name,
        "steps": len(run.records),
        "concepts": [concept.name for concept in run.plan.concepts],
        "last": {name: round(value, 4) for name, value in last.items()},
        "source": run.source.name if run.source else "",
        "patched": run.patched,
    }


def _steps(plan: HardeningPlan) -> str:
    return f"{plan.outer_steps} step{'s' * (plan.outer_steps > 1)}"


def _is_matrix(weights: Any, module: str) -> bool:
    return module + ".weight" in weights and weights[module + ".weight"].dim() >= 2


def _write(path: Path, value: Any) -> None:
    from ..backend.run.folder import write_json

    write_json(path, value)
