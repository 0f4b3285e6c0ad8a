"""Lets the host stop its server while pages follow a job, which may take hours.

A1111's Reload UI stops the server first, and tells extensions only then. gradio 3.41 waits for
all that streams, and for ever if it ends by another update: its queue cannot tell a page that is
cut off. So followers end without one; should one have been sending just then, the server is made
to stop.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from .actions import Actions

_LOOK = 0.2  # seconds between two looks whether the server is to stop
_PATIENCE = 6.0  # seconds for followers to end by themselves


def watch(server: Any, actions: Actions) -> threading.Thread:
    """Watch gradio's server (a uvicorn.Server with its `thread`) until it has stopped."""
    thread = threading.Thread(target=_watch, args=(server, actions), daemon=True)
    thread.start()
    return thread


def _watch(server: Any, actions: Actions) -> None:
    while not server.should_exit:
        time.sleep(_LOOK)
    actions.closing = True
    server.thread.join(_PATIENCE)
    # Also if all have ended, or long ago: the connection of one may be what the server waits for
    if server.thread.is_alive() and actions.followed:
        server.force_exit = True
