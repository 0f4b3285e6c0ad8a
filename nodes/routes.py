"""Routes for the page: the state of a running node, and the page of a report.

Read-only and confined, as ComfyUI has no login: of a probe's folder only the report and the audit
sheet are served, and of a state no picture of a concept without blur. The sheet, which shows
flagged pictures without blur, is served to this machine's own browser alone. Under a domain's name
nothing is served to this machine: the name may be another site's that points here (DNS rebinding).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

# Pages with embedded style, script and pictures, which fetch nothing: the report, and the sheet on
# which a person labels pictures.
REPORT, AUDIT = "report.html", "audit.html"
POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; sandbox allow-scripts allow-popups"
)
SAVING = f"{POLICY} allow-downloads"  # the sheet saves its labels as a file
_KEY = re.compile(r"[0-9a-f]{20}")
_registered = False


def state_of(node: str, workflow: str = "") -> dict[str, Any] | None:
    """Return the last state of a node, as `Live` keeps it; None if it has not run.

    Every template numbers its nodes from 1, so the workflow's id is part of the key. A prompt that
    was queued without a page has no id, and any page may show it.
    """
    from .live import STATES, without_bare

    found = STATES.get((workflow, node)) or STATES.get(("", node))
    return without_bare(found) if found else None


def report_file(key: str, name: str) -> Path | None:
    """Return a probe's report or audit sheet; None for any other file."""
    from .places import probes

    if not _KEY.fullmatch(key) or name not in (REPORT, AUDIT):
        return None
    path = (probes() / key).resolve() / name
    return path if path.is_file() and not path.is_symlink() else None


def refused(request: Any, name: str = "") -> str:
    """Return why a request is not answered; empty if it is. name: of the page of a probe."""
    from ..backend.text.foreign import foreign_host, foreign_page, is_here, is_own_browser

    headers = {str(key).lower(): str(value) for key, value in request.headers.items()}
    if is_here(request.remote) and (why := foreign_host(headers)):
        return why
    if name != AUDIT:
        return ""
    if not is_own_browser(request.remote, headers):
        return (
            "The audit sheet shows pictures without blur, so it opens only in a browser on the "
            "machine that ComfyUI runs on, at 127.0.0.1 or localhost."
        )
    return foreign_page(headers)


def register() -> None:
    """Add the routes to ComfyUI's server, once."""
    global _registered
    from server import PromptServer

    if _registered:
        return
    _registered = True
    routes = PromptServer.instance.routes

    @routes.get("/resalign/live/{node}")
    async def live(request: Any) -> Any:
        from aiohttp import web

        if why := refused(request):
            return web.Response(status=403, text=why)
        state = state_of(request.match_info["node"], request.query.get("workflow", ""))
        return web.json_response({"state": state})

    @routes.get("/resalign/report/{key}/{name:.+}")
    async def report(request: Any) -> Any:
        from aiohttp import web

        if why := refused(request, request.match_info["name"]):
            return web.Response(status=403, text=why)
        path = report_file(request.match_info["key"], request.match_info["name"])
        if path is None:
            return web.Response(status=404, text="there is no such report")
        headers = {
            "Content-Type": "text/html",
            "Content-Security-Policy": SAVING if path.name == AUDIT else POLICY,
            "X-Content-Type-Options": "nosniff",
        }  # fmt: skip
        return web.FileResponse(path, headers=headers)
