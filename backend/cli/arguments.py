"""Arguments and texts that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..plan.field import Field

    Commands = argparse._SubParsersAction  # the group of subparsers, which has no public name
else:
    Commands = Any

PRESET_HELP = "plan to start from (durable); `resalign presets` lists them"
CONCEPT_HELP = "a shipped concept, or a file of your own; may be repeated"


class CommandParser(argparse.ArgumentParser):
    """The parser of a command, which adds options for fields of a plan when the command is used.

    Their help comes from the plan's classes. Those take longer to load than all that `resalign
    --help` and `resalign inspect` need, so the functions below import them where they use them.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.later: list[Callable[[argparse.ArgumentParser], None]] = []

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # type: ignore[override]
        while self.later:
            self.later.pop(0)(self)
        return super().parse_known_args(args, namespace)


def add_command(
    commands: Commands, name: str, help: str, more: str = "", *, entry: str = ""
) -> CommandParser:
    """Add a command. entry: its name in `dispatch.COMMANDS`, where that is not `name`."""
    parser = commands.add_parser(
        name, help=help, description=f"{help[0].upper()}{help[1:]}. {more}".strip()
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per line on stdout")
    parser.set_defaults(entry=entry or name)
    return parser


def add_job_arguments(parser: CommandParser) -> None:
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
    parser.later.append(_add_plan_fields)
    parser.later.append(add_device)
    add_prediction(parser)
    add_parts(parser)
    parser.add_argument("--lora", metavar="FILE", help="write the adapter as a LoRA to this file")
    parser.add_argument("--run-folder", metavar="FOLDER", help="records and state (OUTPUT.run)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing results")


def add_rank_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rank-timeout", type=float, metavar="SECONDS",
        help="with several processes: how long to wait for one that does not answer (1800)",
    )  # fmt: skip


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run-commands", action="store_true",
        help="run the commands of `command` scorers without asking",
    )  # fmt: skip


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument(
        "--unfinished", action="store_true", help="accept a run that has steps left"
    )


def add_prediction(parser: argparse.ArgumentParser, whose: str = "the checkpoint") -> None:
    parser.add_argument(
        "--prediction", choices=("epsilon", "v", "v-zsnr"),
        help=f"what {whose} predicts, if its own statements contradict each other or are "
        "wrong (v-zsnr: v, with a schedule that ends in pure noise)",
    )  # fmt: skip


def add_parts(parser: argparse.ArgumentParser, whose: str = "the checkpoint's file") -> None:
    why = f"where {whose} has none (by default the fitting one near it)"
    parser.add_argument("--text-encoder", metavar="FILE", help=f"the text encoder, {why}")
    parser.add_argument("--vae", metavar="FILE", help="the VAE, likewise")


def parts_of(args: argparse.Namespace) -> dict[str, str]:
    """Return the options of `add_parts` as absolute paths by component; empty: not given."""
    given = {"text_encoder": args.text_encoder, "vae": args.vae}
    return {name: str(Path(file).absolute()) if file else "" for name, file in given.items()}


def add_device(parser: argparse.ArgumentParser) -> None:
    from ..plan.field import field_of
    from ..plan.job import Job

    parser.add_argument("--device", metavar="D", help=_phrase(field_of(Job, "device")))


def add_prompt_files(parser: argparse.ArgumentParser) -> None:
    """Add an option for a file of prompts of each kind."""
    from ..plan.field import field_of
    from ..plan.measurement import PromptSet

    for kind, meaning in field_of(PromptSet, "kind").choices.items():
        parser.add_argument(
            f"--{kind}-prompts", metavar="FILE",
            help=f"{kind} prompts (.txt, or .csv as of I2P): {meaning}",
        )  # fmt: skip


def _add_plan_fields(parser: argparse.ArgumentParser) -> None:
    """Add options that replace single fields of a hardening plan."""
    from ..plan.field import field_of
    from ..plan.hardening import HardeningPlan

    for name, metavar in (
        ("seed", "N"), ("resolution", "PIXELS"), ("precision", None),
        ("gradient_checkpointing", None),
    ):  # fmt: skip
        _add_field(parser, field_of(HardeningPlan, name), metavar)


def _add_field(parser: argparse.ArgumentParser, field: Field, metavar: str | None = None) -> None:
    """Add an option that replaces a field of the plan; its value is None where it is not given."""
    option = f"--{field.name.replace('_', '-')}"
    if field.kind is bool:
        parser.add_argument(option, action="store_true", default=None, help=_phrase(field))
    elif field.choices:
        parser.add_argument(option, choices=tuple(field.choices), help=_phrase(field))
    else:
        parser.add_argument(option, type=field.kind, metavar=metavar, help=_phrase(field))


def _phrase(field: Field) -> str:
    """Describe a field as argparse writes help: a lower-case phrase without a full stop."""
    from ..plan.document import explain

    text = explain(field).rstrip(".")
    return (text[:1].lower() + text[1:]).replace("%", "%%")


class Version(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from ... import __version__

        print(f"resalign {__version__}")
        parser.exit()
