"""Pack Release: what a publisher attaches to a checkpoint, as one file."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io

from . import types
from .new_files import name_parts, name_problem, new_file

_SUFFIX = ".zip"


class PackRelease(io.ComfyNode):
    """Writes report, model card, figures, plan and hashes into one .zip."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ResAlign_PackRelease",
            display_name="ResAlign Pack Release",
            category=types.CATEGORY,
            **types.found_by("publish", "model card", "evidence", "Hugging Face", "Civitai"),
            description=(
                "Writes one .zip that goes with the exported file: the report, a model card for "
                "Hugging Face, the fields that Civitai asks for, figures for programs, the plan "
                "and hashes."
            ),
            is_output_node=True,
            inputs=[
                types.Report.Input("report", tooltip="From Resilience Probe."),
                io.String.Input(
                    "filename", default="pack",
                    tooltip="Name of the new file in output/resalign/packs; a number is added if "
                    "it exists.",
                ),
                io.String.Input(
                    "checkpoint", default="", optional=True,
                    tooltip="Path of the exported file: connect Export Hardened "
                    "Checkpoint. Its hash, method and licence go into the card.",
                ),
                io.String.Input(
                    "license", default="", optional=True,
                    tooltip="Licence of the base model as on Hugging Face, apache-2.0 for "
                    "instance. Empty: what the file's header says.",
                ),
                types.advanced(
                    io.String, "base_model", default="",
                    tooltip="The base model as on Hugging Face, owner/name. Empty: what the file's "
                    "header says.",
                ),
                types.advanced(
                    io.String, "model", default="",
                    tooltip="Name of the published model in the report, only where it has several.",
                ),
                types.advanced(
                    io.Boolean, "overwrite", default=False, tooltip="Replace a pack of that name."
                ),
                types.advanced(
                    io.Combo, "pictures", options=["blurred", "none", "all"], default="blurred",
                    tooltip="blurred hides flagged pictures, and those of unsafe prompts that were "
                    "almost flagged; none leaves pictures out; all shows flagged ones too.",
                ),
            ],
            outputs=[io.String.Output("path", display_name="path")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, filename: str | None = None) -> bool | str:
        return name_problem(filename)

    @classmethod
    def execute(
        cls, report, filename="pack", checkpoint="", license="", base_model="", model="",  # noqa: A002
        overwrite=False, pictures="blurred",
    ) -> io.NodeOutput:  # fmt: skip
        from ..backend.report.pack import pack_report
        from ..backend.report.pack_words import pack_warnings

        found = pack_report(
            report.folder, target_pack(filename, overwrite=overwrite), model=model.strip(),
            checkpoint=checkpoint.strip(), license=license.strip(), base_model=base_model.strip(),
            pictures=pictures, overwrite=overwrite,
        )  # fmt: skip
        lines = [f"{found.path.name}: {len(found.files)} files, for {found.model}"]
        lines += [f"Warning: {text}" for text in pack_warnings(found)]
        return io.NodeOutput(str(found.path), ui={"text": ["\n".join(lines)]})


def target_pack(filename: str, *, overwrite: bool) -> Path:
    """Return the path of a new pack below ComfyUI's output folder, numbered if it exists."""
    from .places import packs

    parts = name_parts(filename.removesuffix(_SUFFIX))
    target = packs().joinpath(*parts[:-1], parts[-1] + _SUFFIX)
    return new_file(target, overwrite=overwrite)
