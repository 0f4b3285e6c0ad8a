"""The arguments of probe, report, compare, pack and verify."""

from __future__ import annotations

import argparse

from .arguments import (
    CONCEPT_HELP,
    Commands,
    add_command,
    add_device,
    add_parts,
    add_prediction,
    add_prompt_files,
    add_rank_arguments,
    add_trust_argument,
)


def add_probe_commands(commands: Commands) -> None:
    _add_probe(commands)

    report = add_command(commands, "report", "write the report of a probe as it stands")
    report.add_argument("run_folder", metavar="FOLDER", help="of the probe")
    report.add_argument(
        "--least-quality", type=float, metavar="SHARE",
        help="share of the original's benign quality below which a model is broken (the plan's)",
    )  # fmt: skip
    report.add_argument(
        "--least-effect", type=float, metavar="SHARE",
        help="change of the original below which an attack had no effect (the plan's)",
    )  # fmt: skip
    report.add_argument("--open", action="store_true", help="show it in a browser")

    _add_audit(commands)

    compare = add_command(commands, "compare", "rank several reports side by side")
    compare.add_argument("reports", nargs="+", metavar="REPORT", help="report.json, or its folder")
    compare.add_argument("--output", default="comparison", metavar="FOLDER")
    compare.add_argument("--open", action="store_true", help="show it in a browser")

    _add_pack(commands)

    verify = add_command(
        commands, "verify", "check that a hardened file is what it claims to be",
        "Compares hashes and untouched tensors with its header and its source, and repeats the "
        "recorded probe.",
    )  # fmt: skip
    verify.add_argument("file", metavar="FILE", help="the hardened checkpoint")
    verify.add_argument("--source", metavar="FILE", help="the original (by default beside it)")
    verify.add_argument("--no-probe", action="store_true", help="check hashes and tensors only")
    verify.add_argument(
        "--budget", type=float, default=60.0, metavar="MINUTES",
        help="stop repeating the recorded probe after this time (60)",
    )  # fmt: skip
    add_parts(verify, "either file")
    verify.later.append(add_device)


def _add_audit(commands: Commands) -> None:
    audit = add_command(
        commands, "audit", "let a person check a probe's detector, and correct its rates",
        "Writes a page on which a person labels pictures without knowing whose they are. With "
        "--labels, corrects the report's rates by the misses and false alarms that were found.",
    )  # fmt: skip
    audit.add_argument("report", metavar="REPORT", help="the probe's folder, or its report.json")
    audit.add_argument("--labels", metavar="FILE", help="what the page saved")
    audit.add_argument("--pictures", type=int, metavar="N", help="how many to label (50)")
    audit.add_argument("--seed", type=int, metavar="N", help="of the random choice (0)")
    audit.add_argument("--overwrite", action="store_true", help="begin again, without old labels")
    audit.add_argument("--open", action="store_true", help="show the page in a browser")


def _add_pack(commands: Commands) -> None:
    from ..report.pack_kept import KEPT

    pack = add_command(
        commands, "pack", "pack a report for a release: card, results, hashes, plan",
        "Writes the report with a model card, results for programs, the exact plan and the "
        "SHA-256 of every file. With --check, checks a pack instead.",
    )  # fmt: skip
    pack.add_argument(
        "report", metavar="REPORT",
        help="the probe's folder, or its report.json; with --check, a pack's folder or .zip",
    )  # fmt: skip
    pack.add_argument("--output", metavar="FOLDER", help="a new folder, or a .zip")
    pack.add_argument(
        "--check", action="store_true",
        help="check a pack of anybody's: hashes, pictures, and whether everything follows from "
        "its scores; says what that shows and what not",
    )  # fmt: skip
    pack.add_argument("--model", metavar="NAME", help="the published one, where there are several")
    pack.add_argument(
        "--checkpoint", metavar="FILE",
        help="the published file, for its hash and what its header says of method and licence",
    )  # fmt: skip
    pack.add_argument(
        "--sign", metavar="KEY",
        help="sign the pack with this private key (PEM), by the package model-signing",
    )  # fmt: skip
    pack.add_argument("--license", metavar="ID", help="of the base (what the header says)")
    pack.add_argument("--base-model", metavar="ID", help="of the base, as on Hugging Face")
    pack.add_argument(
        "--pictures", choices=tuple(KEPT), default="blurred",
        help="; ".join(f"{name}: {meaning}" for name, meaning in KEPT.items()) + " (blurred)",
    )  # fmt: skip
    pack.add_argument("--overwrite", action="store_true", help="replace an existing pack")


def _add_keep_pictures(parser: argparse.ArgumentParser) -> None:
    from ..plan.field import field_of
    from ..plan.probe import ProbePlan

    choices = field_of(ProbePlan, "keep_pictures").choices
    parser.add_argument(
        "--keep-pictures", choices=tuple(choices),
        help="; ".join(f"{name}: {meaning}" for name, meaning in choices.items())
        + " (the plan's, or blurred)",
    )  # fmt: skip


def _add_probe(commands: Commands) -> None:
    probe = add_command(
        commands, "probe", "fine-tune checkpoints for real and measure what comes back",
        "Takes a plan file, or the original and the checkpoints to compare with it. Started "
        "again, or with `resalign resume`, it continues where it stopped.",
    )  # fmt: skip
    probe.add_argument(
        "checkpoints", nargs="*", metavar="PLAN | ORIGINAL CHECKPOINT...",
        help="a plan file (.toml, .json), or checkpoints, the original first; a finished run's "
        "folder stands for what it would export",
    )  # fmt: skip
    add_prediction(probe, "the original")
    add_parts(probe, "a checkpoint's file")
    probe.add_argument("--concept", action="append", default=[], metavar="C", help=CONCEPT_HELP)
    probe.add_argument(
        "--preset",
        metavar="P",
        help="attacks to start from (quick; fast is a test run; see `resalign presets`), or none",
    )
    probe.add_argument("--output", metavar="FOLDER", help="scores, pictures, report (probe)")
    probe.add_argument(
        "--scorer", action="append", default=[], metavar="NAME[=WEIGHTS]",
        help="what flags images (denoising); may be repeated, the first gives the headline",
    )  # fmt: skip
    probe.add_argument(
        "--lora", action="append", default=[], metavar="FILE[:STRENGTH],...",
        help="apply LoRAs of your own to every checkpoint; may be repeated",
    )  # fmt: skip
    probe.add_argument(
        "--merge", action="append", default=[], metavar="FILE[:WEIGHT]",
        help="merge with another checkpoint, or with `original`; may be repeated",
    )  # fmt: skip
    probe.add_argument(
        "--sibling", action="append", default=[], metavar="FILE",
        help="train a LoRA of the concept on another checkpoint of the family, or on `original`, "
        "and put it on every checkpoint; may be repeated",
    )  # fmt: skip
    probe.add_argument(
        "--style", action="append", default=[], metavar="FOLDER",
        help="train on your harmless images too, and measure how well each checkpoint learns them",
    )  # fmt: skip
    probe.add_argument(
        "--oracle", metavar="FILE",
        help="a checkpoint that never saw the concept: how far is each other one on the way to it?",
    )  # fmt: skip
    probe.add_argument(
        "--plain", metavar="FILE",
        help="where that way begins: plain unlearning, or another method (the original)",
    )  # fmt: skip
    probe.add_argument("--data", metavar="FOLDER", help="images that the attacks train on")
    probe.add_argument("--forget", metavar="FOLDER", help="images of the concepts")
    probe.add_argument("--retain", metavar="FOLDER", help="images of what must stay")
    probe.later.append(add_prompt_files)
    probe.later.append(_add_keep_pictures)
    probe.add_argument("--seeds", metavar="N,N", help="repeat each fine-tuning once per seed")
    probe.later.append(add_device)
    probe.add_argument("--open", action="store_true", help="show the report in a browser")
    add_trust_argument(probe)
    add_rank_arguments(probe)
