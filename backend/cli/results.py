"""Prints the files that a run ended in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .console import Console

if TYPE_CHECKING:
    from ..jobs.export import Outputs


def show_outputs(found: Outputs, console: Console) -> None:
    console.close()
    for warning in found.warnings:
        console.warning(warning)
    written = {
        "output": ("checkpoint", found.checkpoint),
        "lora": ("LoRA", found.lora),
        "card": ("model card", found.card),
        "curves": ("curves", found.curves),
        "run_folder": ("run folder", found.run),
    }
    paths = {key: (name, path) for key, (name, path) in written.items() if path is not None}
    lines = [f"{name:12}{path}" for name, path in paths.values()]
    lines.append(f"{found.touched} tensors changed, {found.untouched} left as they were")
    if found.sha256:
        lines.append(f"sha256 {found.sha256}")
    console.result(
        "\n".join(lines), "done", **{key: str(path) for key, (_, path) in paths.items()},
        touched=found.touched, untouched=found.untouched, tensor_sha256=found.tensor_sha256,
        sha256=found.sha256,
    )  # fmt: skip
