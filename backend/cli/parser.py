"""The commands, their arguments and their help."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .console import Console

Run = Callable[[argparse.Namespace, "Console"], int]

EPILOG = """\
examples:
  resalign demo                                see it work: no download, a few minutes on a CPU
  resalign plan new plan.toml                  a plan file to edit, every field explained
  resalign check plan.toml                     look at everything before any weight is loaded
  resalign harden plan.toml                    harden, and write checkpoint, LoRA and report
  resalign harden --checkpoint model.safetensors --concept weapons --output hardened.safetensors
  resalign resume hardened.safetensors.run     go on after a crash or Ctrl-C
  resalign inspect hardened.safetensors        what a file is, and what was done to it
  resalign probe model.safetensors hardened.safetensors --concept weapons
                                               fine-tune both for real, and compare: a report
  resalign verify hardened.safetensors         is the file what it says it is?
  resalign ui --checkpoints /models --open     all of this in a browser
  accelerate launch -m resalign harden plan.toml
                                               on several GPUs, or several machines

exit codes: 0 done, 1 verify found a mismatch, 2 a mistake that you can mend (one line says which),
130 interrupted"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="resalign",
        description="Harden text-to-image checkpoints so that removed concepts stay removed, also "
        "after other people fine-tune them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    demo = _command(commands, "demo", _demo, "harden the embedded demo and show before and after")
    demo.add_argument("folder", nargs="?", default="demo-run", help="where it writes (demo-run)")
    demo.add_argument("--quick", action="store_true", help="fewer steps and pictures")
    demo.add_argument("--seed", type=int, default=0, metavar="N")

    check = _command(
        commands, "check", _check, "look at all that a plan names before any weight is loaded",
        "checks paths, images, captions, disk, memory (predicted, in seconds) and device",
    )  # fmt: skip
    _job_arguments(check)
    check.add_argument(
        "--budget",
        type=float,
        metavar="GIB",
        help="propose the cheapest settings that fit a GPU of so much memory: 8, 12, 16, 24",
    )

    harden = _command(
        commands, "harden", _harden, "harden a checkpoint",
        "A plan file, or flags, or a plan file some of whose fields the flags replace.",
    )  # fmt: skip
    _job_arguments(harden)
    _rank_arguments(harden)

    resume = _command(commands, "resume", _resume, "go on with a run or probe that was stopped")
    resume.add_argument("run_folder", metavar="RUN", help="its folder")
    resume.add_argument("--device", metavar="D", help="another device than before")
    resume.add_argument("--overwrite", action="store_true", help="replace existing results")
    _rank_arguments(resume)

    export = _command(commands, "export", _export, "write the hardened checkpoint of a run again")
    export.add_argument("run_folder", metavar="RUN", help="the run's folder")
    export.add_argument("--output", required=True, metavar="FILE", help="the hardened checkpoint")
    export.add_argument("--checkpoint", metavar="FILE", help="the source, where it has moved")
    export.add_argument(
        "--probe", metavar="FOLDER", help="a probe of this checkpoint, to be recorded in the file"
    )
    export.add_argument(
        "--hash", action="store_true", help="the new file's sha256 too (reads it once more)"
    )
    _export_arguments(export)

    _probe_commands(commands)

    lora = _command(commands, "lora", _lora, "write the adapter of a run as a LoRA")
    lora.add_argument("run_folder", metavar="RUN", help="the run's folder")
    lora.add_argument("--output", required=True, metavar="FILE", help="the LoRA (.safetensors)")
    lora.add_argument(
        "--format", choices=("kohya", "diffusers"), default="kohya",
        help="kohya: ComfyUI, A1111, Forge, diffusers (default); diffusers: PEFT's names",
    )  # fmt: skip
    _export_arguments(lora)

    inspect = _command(commands, "inspect", _inspect, "what a checkpoint is, from its header alone")
    inspect.add_argument("file", metavar="FILE", help="a .safetensors file or a diffusers folder")
    inspect.add_argument("--hash", action="store_true", help="its sha256 too (reads all of it)")

    plan = commands.add_parser("plan", help="write plan files", description="Write plan files.")
    actions = plan.add_subparsers(dest="action", metavar="ACTION", required=True)
    new = _command(actions, "new", _plan_new, "write a plan file with every field explained")
    new.add_argument("file", metavar="FILE", help="a .toml file that does not exist yet")
    new.add_argument("--preset", default="balanced", metavar="P", help=_PRESET_HELP)
    new.add_argument(
        "--probe", metavar="P", help="a probe's plan instead, from quick, standard or paper"
    )
    new.add_argument("--concept", action="append", default=[], metavar="C", help=_CONCEPT_HELP)
    new.add_argument("--checkpoint", default="model.safetensors", metavar="FILE")
    new.add_argument("--output", default="model-hardened.safetensors", metavar="FILE")
    new.add_argument("--overwrite", action="store_true", help="replace an existing file")

    ui = _command(
        commands, "ui", _ui, "the tab of A1111 and Forge on its own, in a browser",
        "Needs gradio (pip install 'resalign[ui]'). Jobs run in a process of their own and go on "
        "when the page is closed.",
    )  # fmt: skip
    ui.add_argument("--checkpoints", default=".", metavar="FOLDER", help="of checkpoints (here)")
    ui.add_argument("--loras", metavar="FOLDER", help="of LoRAs (that of the checkpoints)")
    ui.add_argument("--output", default=".", metavar="FOLDER",
                    help="where `resalign/` with runs and reports is kept (here)")  # fmt: skip
    ui.add_argument("--host", default="127.0.0.1", metavar="ADDRESS",
                    help="serve other machines too: 0.0.0.0; needs --auth")  # fmt: skip
    ui.add_argument("--port", type=int, default=7870, metavar="N")
    ui.add_argument("--auth", action="append", default=[], metavar="NAME:PASSWORD",
                    help="ask visitors to log in; or set RESALIGN_UI_AUTH")  # fmt: skip
    ui.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    ui.add_argument("--open", action="store_true", help="open it in the browser")

    _command(
        commands, "worker", _worker, "run one job for a host: JSON in, events out",
        "For programs: reads a request from stdin as one line of JSON and writes one event per "
        "line; docs/formats.md describes both. The A1111 and Forge tab works through it.",
    )  # fmt: skip

    _command(commands, "presets", _presets, "list the concepts, plans, probes and scorers")
    return parser


def _probe_commands(commands: argparse._SubParsersAction) -> None:
    probe = _command(
        commands, "probe", _probe, "fine-tune checkpoints for real and measure what comes back",
        "A plan file, or the original and the checkpoints to compare with it. Started again, or "
        "with `resalign resume`, it goes on where it stopped.",
    )  # fmt: skip
    probe.add_argument(
        "checkpoints", nargs="*", metavar="PLAN | ORIGINAL CHECKPOINT...",
        help="a plan file (.toml, .json), or checkpoints, the original first; a finished run's "
        "folder stands for what it would export",
    )  # fmt: skip
    probe.add_argument("--concept", action="append", default=[], metavar="C", help=_CONCEPT_HELP)
    probe.add_argument(
        "--preset", metavar="P", help="quick (default), standard, paper, or none: no training"
    )
    probe.add_argument("--output", metavar="FOLDER", help="evaluations, pictures, report (probe)")
    probe.add_argument(
        "--scorer", action="append", default=[], metavar="NAME[=WEIGHTS]",
        help="what scores the images (denoising); may be repeated, the first gives the headline",
    )  # fmt: skip
    probe.add_argument(
        "--lora", action="append", default=[], metavar="FILE[:STRENGTH],...",
        help="put LoRAs of your own on all of them; may be repeated",
    )  # fmt: skip
    probe.add_argument(
        "--merge", action="append", default=[], metavar="FILE[:WEIGHT]",
        help="mix with another checkpoint, or with `original`; may be repeated",
    )  # fmt: skip
    probe.add_argument("--data", metavar="FOLDER", help="what the attacks train on")
    probe.add_argument("--forget", metavar="FOLDER", help="images of the concepts")
    probe.add_argument("--retain", metavar="FOLDER", help="images of what must stay")
    for kind, what in (
        ("unsafe", "that ask for the concept"), ("neighbour", "for harmless things like it"),
        ("retain", "for other things"),
    ):  # fmt: skip
        probe.add_argument(
            f"--{kind}-prompts", metavar="FILE", help=f"prompts {what} (.txt, or .csv as of I2P)"
        )
    probe.add_argument("--seeds", metavar="N,N", help="each fine-tuning once per seed")
    probe.add_argument("--device", metavar="D", help="auto, cpu, cuda, cuda:1, mps")
    probe.add_argument("--open", action="store_true", help="show the report in a browser")
    _rank_arguments(probe)

    report = _command(commands, "report", _report, "write the report of a probe as it stands")
    report.add_argument("run_folder", metavar="FOLDER", help="of the probe")
    report.add_argument("--open", action="store_true", help="show it in a browser")

    compare = _command(commands, "compare", _compare, "several reports side by side, ranked")
    compare.add_argument("reports", nargs="+", metavar="REPORT", help="report.json, or its folder")
    compare.add_argument("--output", default="comparison", metavar="FOLDER")
    compare.add_argument("--open", action="store_true", help="show it in a browser")

    verify = _command(
        commands, "verify", _verify, "is a hardened file what it says it is?",
        "Compares hashes and untouched tensors with its header and its source, and does the "
        "recorded probe again.",
    )  # fmt: skip
    verify.add_argument("file", metavar="FILE", help="the hardened checkpoint")
    verify.add_argument("--source", metavar="FILE", help="the original (by default beside it)")
    verify.add_argument("--no-probe", action="store_true", help="hashes and tensors alone")
    verify.add_argument("--device", metavar="D", help="auto, cpu, cuda, cuda:1, mps")


_PRESET_HELP = "start from balanced (default), quick or paper: see `resalign presets`"
_CONCEPT_HELP = "a concept that comes along, or a file of your own; may be repeated"


def _command(
    commands: argparse._SubParsersAction, name: str, run: Run, help: str, more: str = ""
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=help, description=f"{help[0].upper()}{help[1:]}. {more}".strip()
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per line on stdout")
    parser.set_defaults(run=run)
    return parser


def _job_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", nargs="?", metavar="PLAN", help="a plan file (.toml, .json)")
    parser.add_argument("--checkpoint", metavar="FILE", help="the .safetensors or folder to harden")
    parser.add_argument("--output", metavar="FILE", help="the hardened checkpoint")
    parser.add_argument("--concept", action="append", default=[], metavar="C", help=_CONCEPT_HELP)
    parser.add_argument("--preset", metavar="P", help=_PRESET_HELP)
    parser.add_argument("--forget", metavar="FOLDER", help="images of the concepts")
    parser.add_argument("--retain", metavar="FOLDER", help="images of what must stay")
    parser.add_argument(
        "--steps", type=int, metavar="N", help="outer steps; the warm-up keeps its share of them"
    )
    parser.add_argument("--seed", type=int, metavar="N")
    parser.add_argument("--resolution", type=int, metavar="PIXELS", help="0: the checkpoint's own")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"))
    parser.add_argument(
        "--gradient-checkpointing", action="store_true", default=None, help="less memory, slower"
    )
    parser.add_argument("--device", metavar="D", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--lora", metavar="FILE", help="the adapter as a LoRA")
    parser.add_argument("--run-folder", metavar="FOLDER", help="records and state (OUTPUT.run)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing results")


def _rank_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rank-timeout", type=float, metavar="SECONDS",
        help="with several processes: how long one that lives is waited for (1800)",
    )  # fmt: skip


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument(
        "--unfinished", action="store_true", help="as it is, although steps are left to do"
    )


class _Version(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from ... import __version__

        print(f"resalign {__version__}")
        parser.exit()


# Each command's module is imported when it runs.


def _demo(args: argparse.Namespace, console: Console) -> int:
    from .commands import demo

    return demo(args, console)


def _check(args: argparse.Namespace, console: Console) -> int:
    from .hardening import check

    return check(args, console)


def _harden(args: argparse.Namespace, console: Console) -> int:
    from .hardening import harden

    return harden(args, console)


def _resume(args: argparse.Namespace, console: Console) -> int:
    from .hardening import resume

    return resume(args, console)


def _export(args: argparse.Namespace, console: Console) -> int:
    from .commands import export

    return export(args, console)


def _lora(args: argparse.Namespace, console: Console) -> int:
    from .commands import lora

    return lora(args, console)


def _inspect(args: argparse.Namespace, console: Console) -> int:
    from .commands import inspect

    return inspect(args, console)


def _plan_new(args: argparse.Namespace, console: Console) -> int:
    from .commands import plan_new

    return plan_new(args, console)


def _presets(args: argparse.Namespace, console: Console) -> int:
    from .commands import presets

    return presets(args, console)


def _ui(args: argparse.Namespace, console: Console) -> int:
    from .serving import ui

    return ui(args, console)


def _worker(args: argparse.Namespace, console: Console) -> int:
    from ..worker.serve import main

    return main()


def _probe(args: argparse.Namespace, console: Console) -> int:
    from .probing import probe

    return probe(args, console)


def _report(args: argparse.Namespace, console: Console) -> int:
    from .probing import report

    return report(args, console)


def _compare(args: argparse.Namespace, console: Console) -> int:
    from .probing import compare

    return compare(args, console)


def _verify(args: argparse.Namespace, console: Console) -> int:
    from .verifying import verify

    return verify(args, console)
