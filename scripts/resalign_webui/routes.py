"""What the page may fetch: how a job stands, and the files of a report. Read-only, no paths.

Hosts do not ask for a log-in on routes of extensions, so it is asked for here, as gradio does it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

from .actions import Jobs
from .host import Host, probes_folder
from .runs import read_probes

TYPES = {
    ".html": "text/html; charset=utf-8", ".json": "application/json", ".png": "image/png",
    ".jpg": "image/jpeg", ".svg": "image/svg+xml", ".md": "text/plain; charset=utf-8",
}  # fmt: skip
# A report is one page with its style and script inside, and fetches nothing.
POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; sandbox allow-scripts allow-popups"
)
_SHOWN = ("status", "kind", "step", "total", "revision")


def report_url(probe: str, file: str) -> str:
    """Relative to the page, which may lie below a path of its own."""
    return f"resalign/report/{quote(probe, safe='')}/{quote(file)}"


def report_file(host: Host, probe: str, file: str) -> Path | None:
    """A file of one probe's folder; None for what is not there and what may not be seen."""
    known = {entry.name: entry.folder for entry in read_probes(probes_folder(host))}
    if probe not in known or Path(file).suffix.lower() not in TYPES:
        return None
    folder = known[probe].resolve()
    path = (folder / file).resolve()
    return path if path.is_relative_to(folder) and path.is_file() else None


def allowed(app: Any, request: Any) -> bool:
    """Has this visitor logged in, where the host asks for that?"""
    if not getattr(app, "auth", None) and not getattr(app, "auth_dependency", None):
        return True
    tokens = getattr(app, "tokens", {})
    return any(
        value in tokens
        for name, value in request.cookies.items()
        if name.startswith("access-token")
    )


def register(app: Any, host: Host, jobs: Jobs) -> None:
    """Add the routes in front of the app's own; those of an earlier load give way."""
    from starlette.responses import FileResponse, JSONResponse, Response
    from starlette.routing import Route

    async def state(request: Any) -> Any:
        if not allowed(app, request):
            return Response(status_code=401)
        found = jobs.state() or {}
        return JSONResponse({name: found.get(name) for name in _SHOWN})

    async def report(request: Any) -> Any:
        if not allowed(app, request):
            return Response(status_code=401)
        path = report_file(host, request.path_params["probe"], request.path_params["file"])
        if path is None:
            return Response("there is no such report", status_code=404, media_type="text/plain")
        headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
        return FileResponse(path, media_type=TYPES[path.suffix.lower()], headers=headers)

    for path, endpoint in (
        ("/resalign/report/{probe}/{file:path}", report),
        ("/resalign/state", state),
    ):
        app.router.routes[:] = [
            route for route in app.router.routes if getattr(route, "path", "") != path
        ]
        app.router.routes.insert(0, Route(path, endpoint, methods=["GET"]))
