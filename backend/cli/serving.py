"""ui, worker: serve the tab in a browser, or one job to a program.

`ui` is the one place where the backend knows a front end: a command needs something to start.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .console import Console


def ui(args: argparse.Namespace, console: Console) -> int:
    from ...scripts.resalign_webui import alone

    checkpoints = Path(args.checkpoints)
    alone.serve(
        checkpoints=checkpoints,
        loras=Path(args.loras) if args.loras else checkpoints,
        output=Path(args.output),
        address=args.host,
        port=args.port,
        auth=args.auth,
        device=args.device,
        open_browser=args.open,
        say=console.note,
    )
    return 0


def worker(args: argparse.Namespace, console: Console) -> int:
    from ..worker.serve import main

    return main()
