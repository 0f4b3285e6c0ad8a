"""The functions that `resalign_tab.py` binds to the host's callbacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import leaving, routes
from .a1111 import A1111, add_settings
from .actions import Actions, Jobs
from .host import work_folder

host = A1111()
_jobs: Jobs | None = None
_actions: list[Actions] = []


def manager(host: A1111, folder: Path) -> Jobs:
    from .jobs import JobManager

    return JobManager(host, folder)


def jobs() -> Jobs:
    """Return the job manager, created on first use, when the host's folders are known."""
    global _jobs
    if _jobs is None:
        _jobs = manager(host, work_folder(host))
    return _jobs


def settings() -> None:
    add_settings()


def tabs() -> list[tuple[Any, str, str]]:
    from . import layout

    actions = Actions(host, jobs(), routes.report_url)
    _actions[:] = [actions]
    return [(layout.build(actions), "ResAlign", "resalign")]


def started(demo: Any, app: Any) -> None:
    """Add our routes, unless the host serves no page."""
    if demo is None:
        return
    routes.register(app, host, jobs())
    if getattr(demo, "server", None) is not None:
        for actions in _actions:
            leaving.watch(demo.server, actions)


def close() -> None:
    """Stop the job and its worker: the host ends, or reloads its scripts."""
    global _jobs
    if _jobs is not None:
        _jobs.close()
        _jobs = None
