"""The command line: parse, one call of the backend, print.

Nothing heavy is imported before a command runs, so that `resalign --help` answers at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence

from ..errors import ResAlignError
from .console import Console
from .parser import build_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. 0: done; 2: a mistake of the user's, in one line; 130: interrupted."""
    args = build_parser().parse_args(argv)
    console = Console(json=args.json)
    restore = _stop_on_sigterm()
    try:
        return args.run(args, console)
    except ResAlignError as error:
        console.error(str(error))
        return 2
    except KeyboardInterrupt as interrupt:
        console.error(str(interrupt) or "interrupted")
        return 130
    finally:
        console.close()
        restore()


def _stop_on_sigterm():
    """Let SIGTERM end a run as Ctrl-C does. Returns what undoes it."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    return lambda: signal.signal(signal.SIGTERM, before)
