"""Keeps a training from replacing the files that the package ships, unless it is asked to."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--replace-shipped", action="store_true", help="let the last stages replace shipped files"
    )


def refuse_to_replace(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, *files: Path
) -> None:
    """Exit with an error before any stage begins if a file exists that a stage would replace."""
    existing = [file.name for file in files if file.exists()]
    if existing and not arguments.replace_shipped:
        parser.error(
            f"{' and '.join(existing)} of the package would be replaced at the end: give "
            "--replace-shipped, or leave that stage out of --stages"
        )
