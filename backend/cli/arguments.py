"""Arguments and texts that several commands share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction  # the group of subparsers, which has no public name
else:
    Commands = Any

PRESET_HELP = "start from balanced (default), quick or paper: see `resalign presets`"
CONCEPT_HELP = "a shipped concept, or a file of your own; may be repeated"
DEVICE_HELP = "auto, cpu, cuda, cuda:1, mps"


def add_command(
    commands: Commands, name: str, help: str, more: str = "", *, entry: str = ""
) -> argparse.ArgumentParser:
    """Add a command. entry: its name in `dispatch.COMMANDS`, where that is not `name`."""
    parser = commands.add_parser(
        name, help=help, description=f"{help[0].upper()}{help[1:]}. {more}".strip()
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per line on stdout")
    parser.set_defaults(entry=entry or name)
    return parser


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", nargs="?", metavar="PLAN", help="a plan file (.toml, .json)")
    parser.add_argument("--checkpoint", metavar="FILE", help="the .safetensors or folder to harden")
    parser.add_argument("--output", metavar="FILE", help="the hardened checkpoint")
    parser.add_argument("--concept", action="append", default=[], metavar="C", help=CONCEPT_HELP)
    parser.add_argument("--preset", metavar="P", help=PRESET_HELP)
    parser.add_argument("--forget", metavar="FOLDER", help="images of the concepts")
    parser.add_argument("--retain", metavar="FOLDER", help="images of what must stay")
    parser.add_argument(
        "--steps", type=int, metavar="N", help="outer steps; the warm-up keeps its share of them"
    )
    parser.add_argument("--seed", type=int, metavar="N")
    parser.add_argument(
        "--resolution", type=int, metavar="PIXELS", help="0: the checkpoint's native resolution"
    )
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"))
    parser.add_argument(
        "--gradient-checkpointing", action="store_true", default=None, help="less memory, slower"
    )
    parser.add_argument("--device", metavar="D", help=DEVICE_HELP)
    parser.add_argument("--lora", metavar="FILE", help="write the adapter as a LoRA to this file")
    parser.add_argument("--run-folder", metavar="FOLDER", help="records and state (OUTPUT.run)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing results")


def add_rank_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rank-timeout", type=float, metavar="SECONDS",
        help="with several processes: how long to wait for one that lives but is late (1800)",
    )  # fmt: skip


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument(
        "--unfinished", action="store_true", help="accept a run that has steps left"
    )


class Version(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from ... import __version__

        print(f"resalign {__version__}")
        parser.exit()
