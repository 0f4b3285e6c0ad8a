"""Lets the host stop its server while pages follow a job, which may take hours.

A1111's Reload UI stops the server first and notifies extensions afterwards. gradio 3.41 waits for
all streams, and forever for one that ends with another update: its queue does not notice a closed
page. So followers end without an update; if one was sending at that moment, the server is forced
to stop.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from .actions import Actions

_INTERVAL = 0.2  # seconds between two checks whether the server is about to stop
_PATIENCE = 6.0  # seconds that followers have to end


def watch(server: Any, actions: Actions) -> threading.Thread:
    """Watch gradio's server (a uvicorn.Server with its `thread`) until it has stopped."""
    thread = threading.Thread(target=_watch, args=(server, actions), daemon=True)
    thread.start()
    return thread


def _watch(server: Any, actions: Actions) -> None:
    while not server.should_exit:
        time.sleep(_INTERVAL)
    actions.closing = True
    server.thread.join(_PATIENCE)
    # Also if all have ended, or long ago: the connection of one may be what the server waits for
    if server.thread.is_alive() and actions.followed:
        server.force_exit = True
