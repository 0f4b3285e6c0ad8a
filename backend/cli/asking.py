"""Asks before something runs that the user did not type."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from ..text.shown import visible


def asker(args: argparse.Namespace) -> Callable[[str], bool]:
    """Return what answers a question: `--run-commands`, or the user at a terminal."""

    def ask(question: str) -> bool:
        if args.run_commands:
            return True
        if args.json or sys.stdin is None or not (sys.stdin.isatty() and sys.stderr.isatty()):
            return False
        print(f"resalign: {visible(question)}. Run it? [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    return ask
