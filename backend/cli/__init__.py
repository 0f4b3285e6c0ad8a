"""The command line: parse, call one job, print.

Nothing heavy is imported before a command runs, so that `resalign --help` answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ResAlignError
from ..parallel.launch import place_in_environment
from .console import Console
from .dispatch import load_command
from .parser import build_parser
from .ranks import SHARED, reports_end, stop_on_signals


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; see `parser.EPILOG`."""
    args = build_parser().parse_args(argv)
    rank, count = place_in_environment()
    if rank and args.entry not in SHARED:
        return 0  # the first process does it
    console = Console(json=args.json)
    restore = stop_on_signals(several=count > 1)
    try:
        return load_command(args.entry)(args, console)
    except ResAlignError as error:
        if reports_end(console, error):
            console.error(str(error))
        return 2
    except KeyboardInterrupt as interrupt:
        if reports_end(console, interrupt):
            console.error(str(interrupt) or "interrupted")
        return 130
    finally:
        console.close()
        restore()
