"""Load Hardened Info: reads from a checkpoint's header what was done to it."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io

from . import types


class LoadHardenedInfo(io.ComfyNode):
    """Shows family, types and the record of the hardening, in milliseconds."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        from .sources import model_files

        return io.Schema(
            node_id="ResAlign_LoadHardenedInfo",
            display_name="Load Hardened Info",
            category=types.CATEGORY,
            **types.found_by("provenance", "metadata", "header", "inspect checkpoint"),
            description=(
                "Shows what a checkpoint is and what was done to it, from its header: concepts, "
                "plan, source and probe results. A header can be forged: see the help page."
            ),
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "checkpoint", options=model_files(),
                    tooltip="The checkpoint file to read about; it is not loaded.",
                )
            ],
            outputs=[io.String.Output("info", display_name="info")],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str) -> str:
        path = _path(checkpoint)
        return f"{path.stat().st_mtime_ns} {path.stat().st_size}" if path.is_file() else ""

    @classmethod
    def execute(cls, checkpoint: str) -> io.NodeOutput:
        from ..backend.checkpoint.inspect import inspect
        from .sources import host_folders

        text = str(inspect(_path(checkpoint), folders=host_folders()))
        return io.NodeOutput(text, ui={"text": [text]})


def _path(checkpoint: str) -> Path:
    from .sources import model_file

    return model_file(checkpoint)
