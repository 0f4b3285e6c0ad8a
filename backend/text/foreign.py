"""Tells requests that another web page sends: without a login a browser delivers those too.

A page of any site can post to a server on the visitor's own machine (cross-site request forgery),
and a domain whose name is changed to 127.0.0.1 while its page is open even counts as the same
origin (DNS rebinding). So a server looks at the headers that only a browser sets. Programs send
none of them and are served as before.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from urllib.parse import urlsplit

HOSTS_VARIABLE = "RESALIGN_HOSTS"  # set by the owner: names under which a proxy serves the page
_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_PROXIED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")


def foreign_host(headers: Mapping[str, str]) -> str:
    """Return why a request to a server of this machine alone is refused; empty if it is not.

    Its Host is a domain, which may be a rebound one. headers: names in lower case.
    """
    name = _name(headers.get("host", ""))
    if name in _owned() or _is_own_name(name):
        return ""
    return (
        f"ResAlign refuses the address {name[:80]!r}: this server is for its own machine. Open it "
        f"as 127.0.0.1, or name that address in {HOSTS_VARIABLE} if a proxy of yours serves it"
    )


def foreign_page(headers: Mapping[str, str]) -> str:
    """Return why a request of another site's page is refused; empty if it is no such request."""
    site, origin = headers.get("sec-fetch-site", ""), headers.get("origin", "")
    if _name(origin.partition("://")[2]) in _owned() or site == "same-origin":
        return ""
    if site == "cross-site" or (origin and not _is_same(origin, headers.get("host", ""))):
        return (
            f"ResAlign refuses a request of another page ({origin[:80] or 'another site'}): use "
            "this server's own page; if a proxy of yours serves it, name its address in "
            f"{HOSTS_VARIABLE}"
        )
    return ""


def is_here(peer: str | None) -> bool:
    """Return whether the other end of a connection is this machine, or a proxy on it."""
    try:
        address = ipaddress.ip_address((peer or "").partition("%")[0])
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def is_own_browser(peer: str | None, headers: Mapping[str, str]) -> bool:
    """Return whether a request comes from this machine: from it, to it, and through no proxy."""
    name = _name(headers.get("host", ""))
    own = name == "localhost" or name.endswith(".localhost") or is_here(name)
    return own and is_here(peer) and not any(header in headers for header in _PROXIED)


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
