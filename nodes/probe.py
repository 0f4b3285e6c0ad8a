"""Resilience Probe: fine-tunes MODELs for real and measures them before and after."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..backend.plan.attack import ORIGINAL
from ..backend.plan.document import explain
from ..backend.plan.probe_presets import PROBE_PRESETS
from ..backend.plan.probe_settings import (
    DETECTABLE,
    MOST_SEED,
    PROBE_INPUTS,
    SCORERS,
    TOO_SHORT,
    no_audit,
    probe_plan,
    steps_of_presets,
    too_few_steps,
)
from . import types
from .ahead import ABSENT, PROBE, connected, probe_problem
from .further import (
    NONE,
    audited,
    further_inputs,
    labels_stamp,
    sibling_of,
    style_folder,
)
from .inputs import field_input

if TYPE_CHECKING:
    from ..backend.checkpoint.info import CheckpointInfo
    from ..backend.plan.probe import ProbePlan
    from .subject import HostSubject


_STOPPED = (
    "stopped. Complete evaluations are kept: run the workflow again, with the same settings, to "
    "continue; with others the probe begins anew"
)


class ResilienceProbe(io.ComfyNode):
    """Fine-tunes copies of the models and measures what comes back."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PROBE,
            display_name="Resilience Probe",
            category=types.CATEGORY,
            **types.found_by("measure", "fine-tune attack", "evaluate"),
            description=(
                "Fine-tunes the original and the hardened model for real, in ways that hardening "
                "did not see, and measures how much of the concept each shows before and after."
            ),
            is_output_node=True,
            inputs=[
                io.Model.Input("before", tooltip="The original MODEL."),
                io.Clip.Input("clip", tooltip="The CLIP of both."),
                io.Vae.Input("vae", tooltip="The VAE of both."),
                io.Model.Input(
                    "after", optional=True,
                    tooltip="Another MODEL to compare with. Do not connect it together with a run.",
                ),
                types.Run.Input("run", optional=True, tooltip="From Harden Model."),
                types.Concepts.Input(
                    "concepts", optional=True,
                    tooltip="What to measure. If not connected: the concepts of the run.",
                ),
                types.Images.Input(
                    "attack_images", optional=True,
                    tooltip="Images to fine-tune on. If not connected: the preset's retain set.",
                ),
                io.Combo.Input(
                    "preset", options=list(PROBE_PRESETS), default="quick",
                    tooltip="How many attacks, seeds and images. fast is a test run, which only "
                    "shows that everything works, and quick is far more lenient than standard: do "
                    "not publish the figures of either.",
                ),
                io.Combo.Input(
                    "scorer", options=list(SCORERS), default=SCORERS[0],
                    tooltip="What is counted. denoising draws no picture of the concept: it counts "
                    f"what the model still predicts. {DETECTABLE}",
                ),
                field_input(
                    "steps", PROBE_INPUTS["steps"], keeps_preset=True,
                    tooltip=f"{explain(PROBE_INPUTS['steps'])} 0 keeps the preset's "
                    f"({steps_of_presets({name: name for name in PROBE_PRESETS})}). {TOO_SHORT}",
                ),
                field_input(
                    "images", PROBE_INPUTS["images"],
                    display_name="prompts of each kind (0 = auto)",
                    tooltip="Number of prompts of each kind to use at most, spread evenly over the "
                    "list. 0 keeps the preset's value.",
                ),
                field_input("resolution", PROBE_INPUTS["resolution"],
                            display_name="resolution (0 = auto)"),
                io.Int.Input(
                    "random_seed", display_name="seed", default=0, min=0, max=MOST_SEED,
                    tooltip="Seed of the fine-tuning; presets with several seeds count up from it.",
                ),
                field_input(
                    "sampling_steps", PROBE_INPUTS["sampling_steps"], keeps_preset=True, hidden=True
                ),
                types.advanced(
                    io.Boolean, "show_pictures", default=False,
                    tooltip="Show flagged pictures without blur, and keep them so on the disk.",
                ),
                *further_inputs(),
            ],
            outputs=[
                io.Image.Output("grid", display_name="grid"),
                io.Image.Output("curve", display_name="curve"),
                types.Report.Output("report", display_name="report"),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )  # fmt: skip

    @classmethod
    def validate_inputs(
        cls, after: Any = ABSENT, run: Any = ABSENT, concepts: Any = ABSENT,
        scorer: str | None = None, second_scorer: str | None = None,
        audit_pictures: int | None = None, audit_labels: str | None = None,
    ) -> bool | str:  # fmt: skip
        given = connected({"after": after, "run": run, "concepts": concepts})
        values = {"scorer": scorer, "second_scorer": second_scorer,
                  "audit_pictures": audit_pictures, "audit_labels": audit_labels}  # fmt: skip
        return probe_problem({**given, **values}) or True

    @classmethod
    def fingerprint_inputs(cls, audit_labels: str = "", **_: Any) -> str:
        return labels_stamp(audit_labels)

    @classmethod
    def execute(
        cls, before, clip, vae, after=None, run=None, concepts=None, attack_images=None,
        preset="quick", scorer="denoising", steps=0, images=0, resolution=0, random_seed=0,
        sampling_steps=0, show_pictures=False, second_scorer=NONE, sibling=NONE,
        audit_pictures=0, audit_labels="", style_images=None, oracle=None, plain=None,
    ) -> io.NodeOutput:  # fmt: skip
        import torch
        from comfy_api.latest import ui

        from ..backend.checkpoint.detect import detect_as
        from ..backend.errors import ConfigError
        from ..backend.jobs.family_defaults import drawn_as
        from ..backend.plan.file import to_json
        from ..backend.probe.results_io import by_short_probe, by_test_runs, same_models
        from . import bridge, places
        from .pictures import probe_grid, to_image
        from .plan import data_stamp
        from .provenance import other_model
        from .report import report_ui
        from .subject import HostSubject

        given = {"after": after, "run": run, "concepts": concepts}
        values = {"scorer": scorer, "second_scorer": second_scorer,
                  "audit_pictures": audit_pictures, "audit_labels": audit_labels}  # fmt: skip
        given = {name: value for name, value in given.items() if value is not None}
        if why := probe_problem({**given, **values}):
            raise ConfigError(f"Resilience Probe: {why}")
        for model in (before, after, oracle, plain):
            if model is not None:
                bridge.check_model(model)
        bridge.check_parts(clip, vae)
        with torch.inference_mode(False):
            if run is not None and (why := other_model(before, run)):
                raise ConfigError(
                    f"Resilience Probe: `before` is not the MODEL that the run hardened ({why}): "
                    "connect the MODEL that Harden Model was given, not its output"
                )
            source = bridge.source_of(before) or (run.source if run else None)
            if source is not None and bridge.is_patched(before):
                source = None  # the file does not contain the patches
            plan = plan_of(
                concepts, run, preset, scorer=scorer, steps=steps, images=images,
                seed=random_seed,
                resolution=resolution, sampling_steps=sampling_steps, data=attack_images,
                with_original=source is not None,
                show_pictures=show_pictures or bool(audit_pictures),
                second_scorer="" if second_scorer == NONE else second_scorer,
                sibling=sibling_of(sibling, source), style=style_folder(style_images),
            )  # fmt: skip
            said: list[str] = []
            if bridge.encodes_text(before):
                plan, said = without_text_training(plan)
            plan = drawn_as(bridge.family_of(before), plan)
            if audit_pictures and (why := no_audit(plan)):
                raise ConfigError(f"Resilience Probe: audit_pictures: {why}")
            subjects = [HostSubject("original", before, clip, vae, source=source)]
            if run is not None:
                subjects.append(
                    HostSubject("hardened", before, clip, vae, adapter=run.adapter, plan=run.plan)
                )
            if after is not None:
                subjects.append(HostSubject("after", after, clip, vae))
            for role, model in (("plain", plain), ("oracle", oracle)):
                if model is not None:
                    subjects.append(HostSubject(role, model, clip, vae, role=role))
            infos = [subject.info for subject in subjects]
            warnings = [*said, *same_models(infos), *by_test_runs(infos), *by_short_probe(plan)]
            warnings += filter(None, [too_few_steps(plan)])
            stored = to_json(plan)
            if not plan.test_run:  # a field that came later: older probes are found again
                del stored["test_run"]
            about = [json.dumps(stored, sort_keys=True)]
            about.append(data_stamp(plan, named=places.sets()))
            about += [subject.identity for subject in subjects]
            about += [subject.info.role for subject in subjects if subject.info.role]
            folder = places.probes() / places.key(*about)
            original = None
            if source is not None and (plan.merges or sibling == ORIGINAL):
                original = detect_as(source, bridge.decision_of(before), alone=True)
            result = run_probe(
                cls.hidden, subjects, plan, folder, original, show_pictures, warnings=warnings
            )
            result = audited(result, folder, audit_pictures, audit_labels)
            report = types.ReportValue(folder, result)
            grid = to_image(probe_grid(result, folder, show_pictures=show_pictures))
            curve = to_image(_curve(result, folder))
        shown = ui.PreviewImage(grid, cls=cls).as_dict()
        return io.NodeOutput(
            grid, curve, report, ui={**shown, "resalign_report": [report_ui(report)]}
        )


def plan_of(
    concepts: Any,
    run: types.HardenedRun | None,
    preset: str,
    **choices: Any,
) -> ProbePlan:
    """Build the plan from preset and node; without concepts, of those of the run."""
    from ..backend.errors import ConfigError

    concepts = concepts or (run.plan.concepts if run else None)
    if not concepts:
        raise ConfigError("Resilience Probe: connect concepts, or the run of Harden Model")
    return probe_plan(preset, concepts, hardened_by=run.plan if run else None, **choices)


def without_text_training(plan: ProbePlan) -> tuple[ProbePlan, list[str]]:
    """Return the plan without training of text encoders, which stay ComfyUI's, and what to say."""
    from dataclasses import replace

    names = [attack.name for attack in plan.fine_tunes if attack.text_encoder]
    kept = tuple(replace(attack, text_encoder=False) for attack in plan.fine_tunes)
    said = f"{', '.join(names)}: trains the denoiser alone, as the text encoder is ComfyUI's."
    return replace(plan, fine_tunes=kept), [said] if names else []


def run_probe(
    hidden: Any,
    subjects: list[HostSubject],
    plan: ProbePlan,
    folder: Path,
    original: CheckpointInfo | None,
    show_pictures: bool,
    *,
    warnings: Sequence[str] = (),
) -> Any:
    """Return the probe's result; evaluations that its folder already holds are not repeated.

    warnings: shown from the start, as a probe may take hours.
    """
    from ..backend.jobs.probe import probe_job
    from ..backend.probe.results_io import read_probe
    from ..backend.probe.verdict import of_probe
    from ..backend.progress import chain
    from .live import Live

    if (folder / "report.html").is_file():
        result = read_probe(folder)
        if result.complete:
            live = Live(hidden, "probe")
            live.show_lines([*warnings])
            live.recall_probe(folder)
            said, verdict = of_probe(result)
            live.recall((), said or "kept from an earlier probe", verdict)
            return result
    live = Live(hidden, "probe", show_pictures=show_pictures)
    live.recall_probe(folder)
    live.show_lines([*warnings])
    on_progress = chain(live, live.pictures_from(folder))
    try:
        found = probe_job(
            plan, folder=folder, subjects=subjects, original=original, on_progress=on_progress
        )
    except BaseException as error:
        live.ended_by(error, _STOPPED)
        raise
    said, verdict = of_probe(found.result, found.summary)
    live.finish(said or "measured", verdict)
    return found.result


def _curve(result: Any, folder: Path) -> Any:
    from PIL import Image

    from ..backend.report.build import curve_png

    with Image.open(curve_png(result, folder / "curve.png")) as image:
        return image.convert("RGB")
