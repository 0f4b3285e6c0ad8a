"""The command line: parse, one call of the backend, print.

Nothing heavy is imported before a command runs, so that `resalign --help` answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ResAlignError
from ..parallel.launch import place_in_environment
from .console import Console
from .parser import build_parser
from .ranks import TOGETHER, stop_on_signals, talks


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. 0: done; 2: a mistake of the user's, in one line; 130: interrupted."""
    args = build_parser().parse_args(argv)
    rank, count = place_in_environment()
    if rank and args.command not in TOGETHER:
        return 0  # one process does it
    console = Console(json=args.json)
    restore = stop_on_signals(several=count > 1)
    try:
        return args.run(args, console)
    except ResAlignError as error:
        if talks(console, error):
            console.error(str(error))
        return 2
    except KeyboardInterrupt as interrupt:
        if talks(console, interrupt):
            console.error(str(interrupt) or "interrupted")
        return 130
    finally:
        console.close()
        restore()
