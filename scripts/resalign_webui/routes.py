"""Routes for the page: the state of a job, and the files of a report. Read-only, without paths.

Hosts do not require a login for routes of extensions, so it is checked here, as gradio does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from . import origin
from .actions import Jobs
from .host import Host, probes_folder
from .jobs import BESIDE_THE_HOST, RESUMED
from .runs import AUDIT, REPORT, read_probes

# A report is one page with embedded style, script and pictures, and so is the sheet on which a
# person labels them; both fetch nothing. Beside them lie pictures without blur and the plan with
# its paths, which are not served.
POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; sandbox allow-scripts allow-popups"
)
SAVING = f"{POLICY} allow-downloads"  # the sheet saves its labels as a file
_SHOWN = ("status", "kind", "step", "total", "revision")


def told_of(state: Mapping[str, Any], host: Host) -> dict[str, Any]:
    """Return what our script needs of a job's state.

    waits: whether the host's pictures wait for it. resumed: jobs that Resume continues.
    """
    job = state.get("job")
    running = state.get("status") == "running"
    return {
        **{name: state.get(name) for name in _SHOWN},
        "waits": running and job not in BESIDE_THE_HOST,
        "resumed": list(RESUMED),
        "host": host.name,
    }


def report_url(probe: str, file: str) -> str:
    """Return the address of a report's file, relative to the page."""
    return f"resalign/report/{quote(probe, safe='')}/{quote(file)}"


def report_file(host: Host, probe: str, file: str) -> Path | None:
    """Return the report or the audit sheet of a probe; None for any other file."""
    known = {entry.name: entry.folder for entry in read_probes(probes_folder(host))}
    if probe not in known or file not in (REPORT, AUDIT):
        return None
    folder = known[probe].resolve()
    path = (folder / file).resolve()
    return path if path.is_relative_to(folder) and path.is_file() else None


def allowed(app: Any, request: Any) -> bool:
    """Return whether the visitor has logged in, if the host requires it."""
    if not getattr(app, "auth", None) and not getattr(app, "auth_dependency", None):
        return True
    tokens = getattr(app, "tokens", {})
    return any(
        value in tokens
        for name, value in request.cookies.items()
        if name.startswith("access-token")
    )


def register(app: Any, host: Host, jobs: Jobs) -> None:
    """Add the routes in front of the app's own; replace those of an earlier load."""
    from starlette.responses import FileResponse, JSONResponse, Response
    from starlette.routing import Route

    def refused(request: Any) -> Any:
        if not allowed(app, request):
            return Response(status_code=401)
        headers = {name.lower(): value for name, value in request.headers.items()}
        secured = bool(getattr(app, "auth", None) or getattr(app, "auth_dependency", None))
        why = origin.refusal(headers, local=not host.remote(), logged_in=secured)
        return Response(why, status_code=403, media_type="text/plain") if why else None

    async def state(request: Any) -> Any:
        if (answer := refused(request)) is not None:
            return answer
        return JSONResponse(told_of(jobs.state() or {}, host))

    async def report(request: Any) -> Any:
        if (answer := refused(request)) is not None:
            return answer
        path = report_file(host, request.path_params["probe"], request.path_params["file"])
        if path is None:
            return Response("there is no such report", status_code=404, media_type="text/plain")
        policy = SAVING if path.name == AUDIT else POLICY
        headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"}
        return FileResponse(path, media_type="text/html; charset=utf-8", headers=headers)

    for path, endpoint in (
        ("/resalign/report/{probe}/{file:path}", report),
        ("/resalign/state", state),
    ):
        app.router.routes[:] = [
            route for route in app.router.routes if getattr(route, "path", "") != path
        ]
        app.router.routes.insert(0, Route(path, endpoint, methods=["GET"]))
    origin.record(app)
