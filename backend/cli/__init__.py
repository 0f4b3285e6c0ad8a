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
from .system import CLOSED, close_output, is_environment, open_streams, system_error


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; see `parser.EPILOG`."""
    shown = open_streams()
    args = build_parser().parse_args(argv)
    rank, count = place_in_environment()
    if rank and args.entry not in SHARED:
        return 0  # the first process does it
    console = Console(json=args.json)
    if not shown:
        console.error("standard output is closed: results are not shown")
    restore = stop_on_signals(several=count > 1)
    try:
        return load_command(args.entry)(args, console)
    except ResAlignError as error:
        if reports_end(console, error):
            console.error(str(error))
        return 2
    except BrokenPipeError:  # whoever read our output has gone, as `| head` does
        return CLOSED
    except (OSError, RuntimeError) as error:
        if not is_environment(error):
            raise
        console.error(system_error(error))
        return 2
    except KeyboardInterrupt as interrupt:
        if reports_end(console, interrupt):
            console.error(str(interrupt) or "interrupted")
        return 130
    finally:
        close_output(console)
        restore()
