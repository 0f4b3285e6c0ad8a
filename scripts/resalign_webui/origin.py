"""Refuses requests that another web page sends: without a login a browser delivers those too.

A page of any site can post to a server on the visitor's own machine (cross-site request forgery),
and a domain whose name is changed to 127.0.0.1 while its page is open even counts as the same
origin (DNS rebinding). So every event and route looks at the headers that only a browser sets.
Programs send none of them and are served as before.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import wraps
from inspect import isgeneratorfunction
from typing import Any
from urllib.parse import urlsplit

HOSTS_VARIABLE = "RESALIGN_HOSTS"  # set by the owner: names under which a proxy serves the page
_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
# Headers of the HTTP request that is being answered. gradio 3.41 takes an event's request from the
# body of a call, which a foreign page writes; `record` notes the real one.
_received: ContextVar[Mapping[str, str] | None] = ContextVar("resalign_received", default=None)


def refusal(headers: Mapping[str, str], *, local: bool, logged_in: bool = False) -> str:
    """Return why a request is refused; empty if it is not.

    headers: names in lower case. local: only this machine is served, so a Host that is a domain is
    a foreign one. logged_in: the visitor has a cookie of this Host's, which a rebound name lacks.
    """
    host = headers.get("host", "")
    known = _owned()
    if local and not logged_in and _name(host) not in known and not _is_own_name(_name(host)):
        return (
            f"ResAlign refuses the address {_name(host)[:80]!r}: this server is for its own "
            f"machine. Open it as 127.0.0.1, or name that address in {HOSTS_VARIABLE} if a proxy "
            "of yours serves it"
        )
    site, origin = headers.get("sec-fetch-site", ""), headers.get("origin", "")
    if _name(origin.partition("://")[2]) in known or site == "same-origin":
        return ""
    if site == "cross-site" or (origin and not _is_same(origin, host)):
        return (
            f"ResAlign refuses a request of another page ({origin[:80] or 'another site'}): use "
            f"the tab itself; if a proxy of yours serves it, name its address in {HOSTS_VARIABLE}"
        )
    return ""


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


def _owned() -> set[str]:
    named = os.environ.get(HOSTS_VARIABLE, "").split(",")
    return {_name(name.strip()) for name in named if name.strip()}


def _name(host: str) -> str:
    """Return a Host without its port, in lower case."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return host.lower()


def _is_own_name(name: str) -> bool:
    """Return whether a name cannot be another site's: an address, or localhost."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_same(origin: str, host: str) -> bool:
    """Return whether an Origin is a page of this Host: equal name and port."""
    try:
        page = urlsplit(origin)
        here = urlsplit(f"{page.scheme}://{host}")
        ports = (one.port or _PORTS.get(page.scheme) for one in (page, here))
        return bool(page.hostname) and page.hostname == here.hostname and len(set(ports)) == 1
    except ValueError:
        return False
