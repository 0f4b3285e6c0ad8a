"""The commands about files and lists: demo, inspect, export, lora, plan, presets."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import RunError
from .console import Console

if TYPE_CHECKING:
    from ..run_folder import RunFolder


def demo(args: argparse.Namespace, console: Console) -> int:
    from ..demo.run import run_demo

    result = run_demo(
        Path(args.folder), quick=args.quick, seed=args.seed, on_progress=console.progress
    )
    console.result(str(result), "done", **result.to_json())
    return 0


def inspect(args: argparse.Namespace, console: Console) -> int:
    from ..checkpoint.inspect import inspect as inspect_file

    found = inspect_file(Path(args.file), hash=args.hash)
    console.result(str(found), "inspect", **found.to_json())
    return 0


def export(args: argparse.Namespace, console: Console) -> int:
    from .outputs import write_outputs

    run = _finished(args)
    if run.job is None and not args.checkpoint:
        raise RunError(f"{run.path} does not say which checkpoint it hardened: give --checkpoint")
    checkpoint = args.checkpoint or (run.job.checkpoint if run.job else "")
    write_outputs(
        run, checkpoint=Path(checkpoint), output=Path(args.output), lora=None, console=console,
        overwrite=args.overwrite,
    )  # fmt: skip
    return 0


def lora(args: argparse.Namespace, console: Console) -> int:
    from ..adapter.formats import save_lora

    run = _finished(args)
    adapter, _ = run.load_adapter()
    path = save_lora(adapter, Path(args.output), format=args.format, overwrite=args.overwrite)
    console.result(f"LoRA  {path}", "done", lora=str(path), format=args.format)
    return 0


def plan_new(args: argparse.Namespace, console: Console) -> int:
    from ..plan_template import EXAMPLE, write_template
    from .jobs import concepts_of

    concepts = concepts_of(args.concept) or (EXAMPLE,)
    path = write_template(
        args.file, args.preset, concepts=concepts, checkpoint=args.checkpoint, output=args.output,
        overwrite=args.overwrite,
    )  # fmt: skip
    text = f"{path} written: edit it, then `resalign check {path}` and `resalign harden {path}`"
    console.result(text, "done", plan=str(path))
    return 0


def presets(args: argparse.Namespace, console: Console) -> int:
    from ..data.concept import load_preset, preset_names
    from ..plan_presets import PLAN_PRESETS

    concepts = {name: load_preset(name).description for name in preset_names()}
    plans = {name: preset.summary for name, preset in PLAN_PRESETS.items()}
    width = max(map(len, [*concepts, *plans]))
    lines = ["Concepts (--concept):"]
    lines += [f"  {name:{width}}  {text}" for name, text in concepts.items()]
    lines += ["", "Plans (--preset):"]
    lines += [f"  {name:{width}}  {text}" for name, text in plans.items()]
    console.result("\n".join(lines), "presets", concepts=concepts, plans=plans)
    return 0


def _finished(args: argparse.Namespace) -> RunFolder:
    """The run, if all its steps are done or the user takes it as it is."""
    from ..run_folder import RunFolder

    run = RunFolder.open(args.run_folder, read_only=True)
    done, total = run.steps_saved, run.plan.outer_steps
    if done < total and not args.unfinished:
        raise RunError(
            f"{run.path} stopped after step {done} of {total}: `resalign resume {run.path}` goes "
            "on, --unfinished takes it as it is"
        )
    return run
