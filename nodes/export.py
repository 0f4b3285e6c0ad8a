"""Export Hardened Checkpoint and Save Hardening LoRA: write the result of a run to files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..backend.numerics.byte_sizes import format_bytes
from . import types
from .ahead import ABSENT, connected, unconnected
from .new_files import name_parts, name_problem, new_file, shown
from .provenance import EXPORT, FROM_RUN, LOADED_MODEL, SOURCE_FILE
from .sources import CHECKPOINTS, DENOISERS

if TYPE_CHECKING:
    from ..backend.progress import Progress

_MODELS, _OUTPUT = "models", "output"
_SUFFIX = ".safetensors"


class ExportHardenedCheckpoint(io.ComfyNode):
    """The checkpoint with the adapter merged in; everything else keeps its bytes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        from .sources import model_files

        files = [FROM_RUN, *model_files()]
        return io.Schema(
            node_id=EXPORT,
            display_name="Export Hardened Checkpoint",
            category=types.CATEGORY,
            **types.found_by("save checkpoint", "save model"),
            description=(
                "Writes the source checkpoint with the hardening merged in. Only tensors that "
                "change are rewritten, all in their own types. A model card is written too."
            ),
            is_output_node=True,
            inputs=[
                types.Run.Input("run", tooltip="From Harden Model."),
                io.String.Input(
                    "filename", default="hardened",
                    tooltip="Name of the new file; a number is added if it exists.",
                ),
                io.Combo.Input(
                    "source", options=files, default=FROM_RUN,
                    tooltip="The checkpoint file that was hardened, if the run does not know it.",
                ),
                io.Combo.Input(
                    "destination", options=[_MODELS, _OUTPUT],
                    tooltip="models: models/checkpoints, or models/diffusion_models for a source "
                    "that holds the denoiser alone (FLUX.2 klein, Anima, Z-Image), so that its "
                    "loader lists the new file. output: folders of these names beside your "
                    "pictures.",
                ),
                io.Boolean.Input(
                    "overwrite", default=False, tooltip="Replace a file of that name."
                ),
                io.Combo.Input(
                    "write_from", options=[SOURCE_FILE, LOADED_MODEL], default=SOURCE_FILE,
                    tooltip="source file: exact. loaded model: the MODEL, CLIP and VAE connected "
                    "below, in their loaded precision; for a MODEL with LoRAs or without a file.",
                ),
                io.Model.Input(
                    "model", optional=True,
                    tooltip="For 'loaded model': the hardened MODEL from Harden Model.",
                ),
                io.Clip.Input("clip", optional=True, tooltip="For 'loaded model': its CLIP."),
                io.Vae.Input("vae", optional=True, tooltip="For 'loaded model': its VAE."),
                types.Report.Input(
                    "report", optional=True,
                    tooltip="From Resilience Probe: its figures go into the file and the card.",
                ),
            ],
            outputs=[io.String.Output("path", display_name="path")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def validate_inputs(
        cls, filename: str | None = None, destination: str | None = None,
        write_from: str | None = None, model: Any = ABSENT, clip: Any = ABSENT, vae: Any = ABSENT,
    ) -> bool | str:  # fmt: skip
        """Check the name, and that what is to be written is connected: ComfyUI gives None for a
        connected input. `destination` is named here so that ComfyUI takes the values of older
        workflows, such as models/checkpoints."""
        if write_from not in (None, SOURCE_FILE, LOADED_MODEL):
            return f"write_from is {write_from!r}; choose {SOURCE_FILE} or {LOADED_MODEL}"
        given = {"write_from": write_from, "model": model, "clip": clip, "vae": vae}
        if why := unconnected(connected(given)):
            return why
        if destination is not None and not destination.startswith((_MODELS, _OUTPUT)):
            return f"destination is {destination}: choose {_MODELS} or {_OUTPUT}"
        return name_problem(filename)

    @classmethod
    def execute(
        cls, run, filename="hardened", source=FROM_RUN, destination=_MODELS, overwrite=False,
        write_from=SOURCE_FILE, model=None, clip=None, vae=None, report=None,
    ) -> io.NodeOutput:  # fmt: skip
        loaded = write_from == LOADED_MODEL
        kind = CHECKPOINTS if loaded else folder_kind(_chosen(source) or run.source)
        target = target_file(kind, destination, filename, overwrite=overwrite)
        probe = probe_record(report, run) if report is not None else None
        doubts = said_of(run)
        if loaded:
            text = write_loaded(target, run, probe, model, clip, vae)
        else:
            text = write_source(
                target, run, probe, source, overwrite=overwrite, node_id=cls.hidden.unique_id
            )
        return io.NodeOutput(str(target), ui={"text": ["\n".join([*doubts, text])]})


class SaveHardeningLora(io.ComfyNode):
    """Write the adapter as a LoRA file that ComfyUI, A1111 and Forge read completely."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ResAlign_SaveHardeningLora",
            display_name="Save Hardening LoRA",
            category=types.CATEGORY,
            **types.found_by("save lora", "export lora"),
            description=(
                "Writes the hardening as a LoRA, to try or combine it. Publish the exported "
                "checkpoint instead: whoever leaves the LoRA out has the original."
            ),
            is_output_node=True,
            inputs=[
                types.Run.Input("run", tooltip="From Harden Model."),
                io.String.Input(
                    "filename", default="hardening_lora",
                    tooltip="Name of the new file; a number is added if it exists.",
                ),
                io.Combo.Input(
                    "destination", options=[f"{_MODELS}/loras", f"{_OUTPUT}/loras"],
                    tooltip="models: it appears in Load LoRA. output: beside your pictures.",
                ),
                io.Boolean.Input(
                    "overwrite", default=False, tooltip="Replace a file of that name."
                ),
            ],
            outputs=[io.String.Output("path", display_name="path")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, filename: str | None = None) -> bool | str:
        return name_problem(filename)

    @classmethod
    def execute(
        cls, run, filename="hardening_lora", destination=_MODELS, overwrite=False
    ) -> io.NodeOutput:
        from ..backend.adapter.formats import save_lora

        target = target_file("loras", destination, filename, overwrite=overwrite)
        save_lora(run.adapter, target, family=run.family, overwrite=overwrite)
        size = format_bytes(target.stat().st_size)
        lines = [
            *said_of(run, "LoRA"),
            f"{shown(target)}: {len(run.adapter.modules)} modules, {size}",
            "no card beside it: publish the exported checkpoint, since whoever leaves a LoRA out "
            "has the original",
        ]
        return io.NodeOutput(str(target), ui={"text": ["\n".join(lines)]})


def folder_kind(source: Path | None) -> str:
    """Return the kind of folder that a rewritten source belongs into: one that has no text encoder
    or VAE is read by Load Diffusion Model."""
    from ..backend.checkpoint.detect import detect
    from ..backend.errors import ResAlignError

    if source is None:
        return CHECKPOINTS
    try:
        info = detect(source, otherwise="epsilon", alone=True)
    except ResAlignError:  # the export says what is wrong with it
        return CHECKPOINTS
    return CHECKPOINTS if set(info.components) <= set(info.configs) else DENOISERS


def target_file(kind: str, destination: str, filename: str, *, overwrite: bool) -> Path:
    """Return the path of a new file in ComfyUI's folder of its kind, numbered if it exists.

    filename: may name subfolders; a path that leads outside raises an ExportError.
    """
    import folder_paths

    if destination.startswith(_MODELS):
        known = [Path(folder) for folder in folder_paths.get_folder_paths(kind)]
        folder = known[0]
        if folder.name == "unet":  # the old name of diffusion_models, which ComfyUI still lists
            folder = next((one for one in known if one.name == kind), folder)
    else:
        folder = Path(folder_paths.get_output_directory()) / kind
    parts = name_parts(filename)
    target = folder.joinpath(*parts[:-1], parts[-1] + _SUFFIX)
    return new_file(target, overwrite=overwrite, beside=".md")


def said_of(run: types.HardenedRun, what: str = "checkpoint") -> list[str]:
    """Return what its reader must know of a file before its name: that the run was a test, or that
    it removed nothing. what: was written."""
    from ..backend.jobs.verdict import removed_nothing
    from ..backend.plan.methods import TEST_RUN, is_test_run

    lines = []
    if is_test_run(run.plan):
        lines.append(f"Warning: this {what} comes from {TEST_RUN}")
    if removed_nothing(run.plan, [record.harm for record in run.records]):
        lines.append(f"Warning: nothing was removed in its run: this {what} makes no model safe")
    return lines


def home(target: Path) -> str:
    """Return which folder a path of `shown` begins in: a machine may have several of ComfyUI."""
    import folder_paths

    base = Path(folder_paths.base_path)
    return f"; both in ComfyUI's folder {base.name}" if target.is_relative_to(base) else ""


def write_source(
    target: Path,
    run: types.HardenedRun,
    probe: dict[str, Any] | None,
    source: str,
    *,
    overwrite: bool,
    node_id: str | None = None,
) -> str:
    """Rewrite the source file, after checking that it is the one that was hardened."""
    from ..backend.checkpoint.detect import detect_as
    from ..backend.errors import ExportError
    from ..backend.jobs.export import export_adapter
    from ..backend.run.sealed import read_json
    from .samples import check_samples

    if run.patched:
        raise ExportError(
            "the MODEL that was hardened had LoRAs or merges on it, which its file lacks: choose "
            f"'{LOADED_MODEL}' in write_from, or harden the MODEL without them"
        )
    path = _chosen(source) or run.source
    if path is None:
        raise ExportError(
            "the run does not know the file it hardened: choose it in `source`, or connect model, "
            f"clip and vae and choose '{LOADED_MODEL}' in write_from"
        )
    about = read_json(run.folder / "source.json")
    check_samples(path, about["samples"])
    done, card = export_adapter(
        detect_as(path, run.prediction, alone=True), run.adapter, target, plan=run.plan,
        records=run.records, probe=probe, overwrite=overwrite, on_progress=_Bar(node_id),
    )  # fmt: skip
    lines = [
        f"{shown(target)}: {done.touched} tensors changed, {done.untouched} left as they were",
        f"beside it {card.name}, the model card{home(target)}",
        *([] if probe is not None else [
            "neither says what a probe found: connect `report`, and run again with overwrite"]),
        f"sha256 of its tensors {done.tensor_sha256}", *done.warnings,
    ]  # fmt: skip
    return "\n".join(lines)


def write_loaded(
    target: Path, run: types.HardenedRun, probe: Any, model: Any, clip: Any, vae: Any
) -> str:
    """Let ComfyUI save what is connected, in the precision it was loaded in."""
    import comfy.sd

    from ..backend.checkpoint.export.job import now
    from ..backend.checkpoint.export.stream import fill_tensor_hash
    from ..backend.checkpoint.metadata import NO_HASH, hardened_metadata
    from ..backend.errors import ExportError
    from ..backend.report.card import provenance_of
    from . import bridge
    from .provenance import check_hardened

    given = {"write_from": LOADED_MODEL, "model": model, "clip": clip, "vae": vae}
    if why := unconnected({name: part for name, part in given.items() if part is not None}):
        raise ExportError(why)
    check_hardened(model, clip, run)
    metadata = hardened_metadata(
        {}, provenance_of(run.plan, run.records, probe=probe), family=bridge.family_of(model),
        layout="ldm", prediction_type=bridge.prediction_of(model),
        resolution=bridge.resolution_of(model), title=target.stem, date=now(),
        tensor_sha256=NO_HASH,
    )  # fmt: skip
    partial = target.with_name(target.name + ".resalign-partial")
    try:
        comfy.sd.save_checkpoint(str(partial), model, clip, vae, None, metadata=metadata)
        fill_tensor_hash(partial)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return (
        f"{shown(target)}: written from the loaded model in its loaded precision, "
        f"{format_bytes(target.stat().st_size)}\nno card beside it"
    )


def probe_record(report: types.ReportValue, run: types.HardenedRun) -> dict[str, Any]:
    """Return the record of a finished probe of the original and of the model that the run made."""
    from ..backend.errors import ExportError
    from ..backend.probe.recorded import probe_record as record
    from .provenance import check_report

    if len(report.result.models) < 2:
        raise ExportError("the report is of a single model: probe before and after hardening")
    check_report(report, run)
    return record(report.result, (report.result.compared or report.result.models)[-1].name)


class _Bar:
    """Shows the backend's progress on the node's bar; stops when the user cancels."""

    def __init__(self, node_id: str | None) -> None:
        from comfy.utils import ProgressBar

        self._bar = ProgressBar(1000, node_id=node_id)

    def __call__(self, progress: Progress, /) -> None:
        from .live import check_interrupt

        check_interrupt()
        share = progress.share
        if share is None:
            share = progress.step / max(1, progress.total)
        self._bar.update_absolute(int(1000 * share), 1000)


def _chosen(source: str) -> Path | None:
    if source == FROM_RUN:
        return None
    from .sources import model_file

    return model_file(source)
