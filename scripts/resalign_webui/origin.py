"""Refuses requests that another web page sends: without a login a browser delivers those too.

`backend/text/foreign.py` tells them by their headers, and every event and route of the tab asks it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import wraps
from inspect import isgeneratorfunction
from typing import Any

from ...backend.text.foreign import HOSTS_VARIABLE as HOSTS_VARIABLE
from ...backend.text.foreign import foreign_host, foreign_page

# Headers of the HTTP request that is being answered. gradio 3.41 takes an event's request from the
# body of a call, which a foreign page writes; `record` notes the real one.
_received: ContextVar[Mapping[str, str] | None] = ContextVar("resalign_received", default=None)


def refusal(headers: Mapping[str, str], *, local: bool, logged_in: bool = False) -> str:
    """Return why a request is refused; empty if it is not.

    headers: names in lower case. local: only this machine is served, so a Host that is a domain is
    a foreign one. logged_in: the visitor has a cookie of this Host's, which a rebound name lacks.
    """
    rebound = foreign_host(headers) if local and not logged_in else ""
    return rebound or foreign_page(headers)


def guarded(
    function: Callable[..., Any],
    local: Callable[[], bool],
    request: type,
    error: type[Exception],
) -> Any:
    """Wrap an event's function so that it gets gradio's request and refuses a foreign one.

    request: gradio's Request, by which gradio knows that the function wants it. error: gradio's
    Error, which the page shows.
    """

    def check(asked: Any) -> None:
        seen = [headers_of(asked)]
        if getattr(asked, "request", None) is None:  # of gradio 3.41, out of the call's body
            received = _received.get()
            if received is None:
                raise error("ResAlign: the host is still starting; reload the page")
            seen.append(dict(received))
        logged_in = bool(getattr(asked, "username", None))
        for headers in seen:
            if why := refusal(headers, local=local(), logged_in=logged_in):
                raise error(why)

    if isgeneratorfunction(function):

        def call(asked: Any, *values: Any) -> Any:
            check(asked)
            yield from function(*values)

    else:

        def call(asked: Any, *values: Any) -> Any:
            check(asked)
            return function(*values)

    made = wraps(function)(call)
    del made.__wrapped__  # gradio would read the signature of what is wrapped
    made.__annotations__ = {"asked": request}
    return made


def headers_of(asked: Any) -> dict[str, str]:
    """Return the headers of gradio's request, whose kind differs between its versions."""
    return {str(name).lower(): str(value) for name, value in asked.headers.items()}


def record(app: Any) -> None:
    """Note the headers of every call of gradio's API, for `guarded`. Again for each new app."""
    for route in app.router.routes:
        called = str(getattr(route, "path", "")).startswith(("/api/", "/run/"))
        if called and hasattr(route, "app") and not isinstance(route.app, Recording):
            route.app = Recording(route.app)


class Recording:
    """An ASGI application that notes the headers of the request it passes on."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        found = {name.decode("latin-1"): text.decode("latin-1") for name, text in scope["headers"]}
        token = _received.set(found)
        try:
            await self.inner(scope, receive, send)
        finally:
            _received.reset(token)
