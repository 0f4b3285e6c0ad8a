"""The commands, their arguments and their help."""

from __future__ import annotations

import argparse

from .arguments import (
    CONCEPT_HELP,
    PRESET_HELP,
    CommandParser,
    Commands,
    Version,
    add_command,
    add_device,
    add_export_arguments,
    add_job_arguments,
    add_parts,
    add_prediction,
    add_rank_arguments,
    add_trust_argument,
)
from .probe_parser import add_probe_commands

EPILOG = """\
examples:
  resalign demo                                see it work: no download, a few minutes on a CPU
  resalign plan new plan.toml                  write a plan file that explains every field
  resalign check plan.toml                     check everything before any weight is loaded
  resalign harden plan.toml                    harden; write checkpoint, LoRA and model card
  resalign harden --checkpoint model.safetensors --concept weapons --output hardened.safetensors
  resalign resume hardened.safetensors.run     continue after a crash or Ctrl-C
  resalign inspect hardened.safetensors        show what a file is, and what was done to it
  resalign probe model.safetensors hardened.safetensors --concept weapons
                                               fine-tune both for real and compare: a report
  resalign verify hardened.safetensors         check that a file is what it claims to be
  resalign audit probe                         label pictures, to correct a detector's mistakes
  resalign pack probe --output pack            card, figures and hashes of a probe for a release
  resalign ui --checkpoints /models --open     all of this in a browser
  accelerate launch -m resalign harden plan.toml
                                               on several GPUs, or several machines

exit codes: 0 done, 1 verify found a mismatch, 2 a mistake that you can fix (one line says which),
130 interrupted"""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser. `args.entry` names the command as `dispatch.COMMANDS` does."""
    parser = argparse.ArgumentParser(
        prog="resalign",
        description="Harden text-to-image checkpoints so that removed concepts return less when "
        "other people fine-tune them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=Version)
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=CommandParser
    )
    _add_demo(commands)
    _add_run_commands(commands)
    add_probe_commands(commands)
    _add_lora(commands)
    _add_inspect(commands)
    _add_plan(commands)
    _add_ui(commands)
    add_command(
        commands, "worker", "run one job for a host: JSON in, events out",
        "For programs: reads a request from stdin as one line of JSON and writes one event per "
        "line; docs/formats.md describes both. The tab of A1111 and Forge works through it.",
    )  # fmt: skip
    add_command(commands, "presets", "list the shipped concepts, plans, probes and scorers")
    return parser


def _add_demo(commands: Commands) -> None:
    demo = add_command(commands, "demo", "harden the embedded demo and show before and after")
    demo.add_argument("folder", nargs="?", default="demo-run", help="output folder (demo-run)")
    demo.add_argument(
        "--family",
        choices=("sd", "dit"),
        default="sd",
        help="embedded checkpoint to harden: sd (default), a U-Net like Stable Diffusion's, or "
        "dit, a flow-matching transformer",
    )
    demo.add_argument(
        "--method", choices=("durable", "resalign"), default="durable",
        help="how the hardened model is made: durable (default) erases and distils; resalign is "
        "ResAlign alone",
    )  # fmt: skip
    demo.add_argument("--quick", action="store_true", help="fewer steps and pictures")
    demo.add_argument("--seed", type=int, default=0, metavar="N")


def _add_run_commands(commands: Commands) -> None:
    check = add_command(
        commands, "check", "check everything that a plan names before any weight is loaded",
        "Checks paths, images, captions, disk, device and memory (predicted, in seconds).",
    )  # fmt: skip
    add_job_arguments(check)
    check.add_argument(
        "--budget", type=float, metavar="GIB",
        help="propose the cheapest settings that fit a GPU with this much memory: 8, 12, 16, 24",
    )  # fmt: skip

    harden = add_command(
        commands, "harden", "harden a checkpoint",
        "Takes a plan file, or flags, or a plan file and flags that replace some of its fields.",
    )  # fmt: skip
    add_job_arguments(harden)
    add_rank_arguments(harden)

    resume = add_command(commands, "resume", "continue a run or probe that was stopped")
    resume.add_argument("run_folder", metavar="RUN", help="its folder")
    resume.add_argument("--device", metavar="D", help="another device than before")
    resume.add_argument("--overwrite", action="store_true", help="replace existing results")
    resume.add_argument(
        "--output", metavar="FILE", help="another place for the hardened checkpoint"
    )
    add_trust_argument(resume)
    add_rank_arguments(resume)

    export = add_command(commands, "export", "write the hardened checkpoint of a run again")
    export.add_argument("run_folder", metavar="RUN", help="the run's folder")
    export.add_argument("--output", required=True, metavar="FILE", help="the hardened checkpoint")
    export.add_argument("--checkpoint", metavar="FILE", help="the source, if it has moved")
    export.add_argument(
        "--probe", metavar="FOLDER", help="a probe of this checkpoint, to record in the file"
    )
    add_prediction(export)
    export.add_argument(
        "--hash", action="store_true", help="print the new file's SHA-256 (reads it once more)"
    )
    add_export_arguments(export)


def _add_lora(commands: Commands) -> None:
    lora = add_command(commands, "lora", "write the adapter of a run as a LoRA")
    lora.add_argument("run_folder", metavar="RUN", help="the run's folder")
    lora.add_argument("--output", required=True, metavar="FILE", help="the LoRA (.safetensors)")
    lora.add_argument(
        "--format", choices=("kohya", "diffusers"), default="",
        help="kohya: ComfyUI, A1111, Forge, diffusers (default for Stable Diffusion); diffusers: "
        "PEFT's names (default for transformers)",
    )  # fmt: skip
    lora.add_argument(
        "--rank", type=int, default=0, metavar="N",
        help="rank of the nearest LoRA of a run that changed all weights (its error is printed)",
    )  # fmt: skip
    add_export_arguments(lora)


def _add_inspect(commands: Commands) -> None:
    inspect = add_command(commands, "inspect", "show what a checkpoint is, from its header")
    inspect.add_argument("file", metavar="FILE", help="a .safetensors file or a diffusers folder")
    inspect.add_argument("--hash", action="store_true", help="print its SHA-256 (reads all of it)")
    add_parts(inspect, "a file")


def _add_plan(commands: Commands) -> None:
    plan = commands.add_parser("plan", help="write plan files", description="Write plan files.")
    actions = plan.add_subparsers(dest="action", metavar="ACTION", required=True)
    new = add_command(
        actions, "new", "write a plan file that explains every field", entry="plan new"
    )
    new.add_argument("file", metavar="FILE", help="a .toml file that does not exist yet")
    new.add_argument("--preset", metavar="P", help=PRESET_HELP)
    new.add_argument(
        "--probe", metavar="P",
        help="write a probe's plan instead, from this preset; `resalign presets` lists them",
    )  # fmt: skip
    new.add_argument("--concept", action="append", default=[], metavar="C", help=CONCEPT_HELP)
    new.add_argument("--checkpoint", default="model.safetensors", metavar="FILE")
    new.add_argument("--output", default="model-hardened.safetensors", metavar="FILE")
    new.add_argument("--overwrite", action="store_true", help="replace an existing file")


def _add_ui(commands: Commands) -> None:
    ui = add_command(
        commands, "ui", "serve the tab of A1111 and Forge in a browser, without a host",
        "Needs gradio (pip install 'resalign[ui]'). Jobs run in a process of their own and "
        "continue when the page is closed.",
    )  # fmt: skip
    ui.add_argument("--checkpoints", default=".", metavar="FOLDER", help="of checkpoints (here)")
    ui.add_argument("--loras", metavar="FOLDER", help="of LoRAs (that of the checkpoints)")
    ui.add_argument("--output", default=".", metavar="FOLDER",
                    help="folder for `resalign/` with runs and reports (here)")  # fmt: skip
    ui.add_argument("--host", default="127.0.0.1", metavar="ADDRESS",
                    help="0.0.0.0 serves other machines too; needs --auth")  # fmt: skip
    ui.add_argument("--port", type=int, default=7870, metavar="N")
    ui.add_argument("--auth", action="append", default=[], metavar="NAME:PASSWORD",
                    help="ask visitors to log in; or set RESALIGN_UI_AUTH")  # fmt: skip
    ui.set_defaults(device="auto")
    ui.later.append(add_device)
    ui.add_argument("--open", action="store_true", help="open it in the browser")
