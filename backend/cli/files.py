"""demo, inspect, export, lora, plan, presets: the commands about files and lists."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import parts_of
from .console import Console


def demo(args: argparse.Namespace, console: Console) -> int:
    from ..demo.run import run_demo

    result = run_demo(
        Path(args.folder), family=args.family, method=args.method, quick=args.quick,
        seed=args.seed, on_progress=console.progress,
    )  # fmt: skip
    console.result(str(result), "done", **result.to_json())
    return 0


def inspect(args: argparse.Namespace, console: Console) -> int:
    from ..checkpoint.inspect import inspect as inspect_file

    found = inspect_file(Path(args.file), hash=args.hash, parts=parts_of(args))
    console.result(str(found), "inspect", **found.to_json())
    return 0


def export(args: argparse.Namespace, console: Console) -> int:
    from ..jobs.export import export_job
    from .results import show_outputs

    try:
        found = export_job(
            args.run_folder, Path(args.output), checkpoint=args.checkpoint or "",
            probe=args.probe or "", prediction=args.prediction or "", overwrite=args.overwrite,
            unfinished=args.unfinished, hash_file=args.hash, on_progress=console.progress,
        )  # fmt: skip
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted: run the same command again to export") from None
    show_outputs(found, console)
    return 0


def lora(args: argparse.Namespace, console: Console) -> int:
    from ..jobs.export import lora_job

    found = lora_job(
        args.run_folder, Path(args.output), naming=args.format, rank=args.rank,
        overwrite=args.overwrite, unfinished=args.unfinished,
    )  # fmt: skip
    more = {} if found.error is None else {"rank": found.rank, "relative_error": found.error}
    console.result(
        f"LoRA  {found.sentence}", "done", lora=str(found.path), format=found.format, **more
    )
    return 0


def plan_new(args: argparse.Namespace, console: Console) -> int:
    from ..plan.presets import DEFAULT_PRESET
    from ..plan.template import EXAMPLE, write_probe_template, write_template
    from .harden_flags import concepts_of

    concepts = concepts_of(args.concept) or (EXAMPLE,)
    if args.probe:
        path = write_probe_template(
            args.file, args.probe, concepts=concepts, overwrite=args.overwrite
        )
        text = f"{path} written: edit it, then `resalign probe {path}`"
        console.result(text, "done", plan=str(path))
        return 0
    path = write_template(
        args.file, args.preset or DEFAULT_PRESET, concepts=concepts, checkpoint=args.checkpoint,
        output=args.output, overwrite=args.overwrite,
    )  # fmt: skip
    text = f"{path} written: edit it, then `resalign check {path}` and `resalign harden {path}`"
    console.result(text, "done", plan=str(path))
    return 0


def presets(args: argparse.Namespace, console: Console) -> int:
    from ..data.concept import load_preset, preset_names
    from ..plan.presets import PLAN_PRESETS
    from ..plan.probe_presets import PROBE_PRESETS
    from ..scorers.registry import scorer_names

    concepts = {name: load_preset(name).description for name in preset_names()}
    plans = {name: preset.summary for name, preset in PLAN_PRESETS.items()}
    probes = {name: preset.summary for name, preset in PROBE_PRESETS.items()}
    lists = {
        "Concepts (--concept)": concepts, "Plans (harden --preset)": plans,
        "Probes (probe --preset)": probes, "Scorers (probe --scorer)": scorer_names(),
    }  # fmt: skip
    width = max(len(name) for found in lists.values() for name in found)
    lines = []
    for title, found in lists.items():
        lines += ["", f"{title}:", *(f"  {name:{width}}  {text}" for name, text in found.items())]
    console.result(
        "\n".join(lines[1:]), "presets", concepts=concepts, plans=plans, probes=probes,
        scorers=scorer_names(),
    )  # fmt: skip
    return 0
