"""`resalign ui`: serves the tab without a host, with the installed gradio and given folders."""

from __future__ import annotations

import inspect
import ipaddress
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...backend.errors import ConfigError
from . import graphics
from .host import ALONE, SETTINGS, work_folder

AUTH_VARIABLE = "RESALIGN_UI_AUTH"


class Alone:
    """Implements `Host` for the tab without a host. Folders are scanned for every list."""

    name = ALONE
    every_family = True

    def __init__(
        self, *, checkpoints: Path, loras: Path, output: Path, remote: bool = False,
        device: str = "auto",
    ) -> None:  # fmt: skip
        self._checkpoints, self._loras, self._output = checkpoints, loras, output
        self._remote, self._settings = remote, {"device": device}

    def checkpoints(self) -> list[tuple[str, Path]]:
        return _files(self._checkpoints)

    def model_parts(self) -> list[tuple[str, Path]]:
        return self.checkpoints()

    def loras(self) -> list[tuple[str, Path]]:
        return _files(self._loras)

    def checkpoint_folder(self) -> Path:
        return self._checkpoints

    def lora_folder(self) -> Path:
        return self._loras

    def further_folders(self) -> list[Path]:
        return []

    def output_folder(self) -> Path:
        return self._output

    def remote(self) -> bool:
        return self._remote

    def worker_python(self) -> str:
        return os.environ.get("RESALIGN_PYTHON") or sys.executable

    def missing(self) -> str:
        return ""

    def build_worker(self) -> Iterator[str]:
        return iter(())

    def sees_gpu(self) -> bool:
        return graphics.seen()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        yield  # no other job exists

    def refresh_checkpoints(self) -> None:
        """Do nothing: no list is cached."""

    def exported(self, source: Path, output: Path) -> None:
        """Do nothing: no other file belongs beside it."""

    def setting(self, name: str) -> Any:
        return self._settings.get(name, SETTINGS[name][0])


def serve(
    *, checkpoints: Path, loras: Path, output: Path, address: str = "127.0.0.1", port: int = 7870,
    auth: Sequence[str] = (), device: str = "auto", open_browser: bool = False,
    say: Callable[[str], None] = print,
) -> None:  # fmt: skip
    """Serve the tab until interrupted.

    auth: `NAME:PASSWORD` entries, one of which a visitor must enter. Without an entry, only this
    machine is served.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    entries = logins([*auth, os.environ.get(AUTH_VARIABLE, "")])
    remote = not is_local(address)
    if remote and not entries:
        raise ConfigError(
            f"--host {address} would let anybody who reaches this machine start jobs: add --auth "
            f"NAME:PASSWORD (or set {AUTH_VARIABLE}), or omit --host"
        )
    for folder in (checkpoints, loras):
        if not folder.is_dir():
            raise ConfigError(f"folder {folder} does not exist: create it, or name another")
    check_port(address, port)
    try:
        import gradio as gr
    except ImportError:
        raise ConfigError(
            "gradio is not installed: pip install 'resalign[ui]', or pip install gradio"
        ) from None
    from . import layout, routes
    from .actions import Actions
    from .jobs import JobManager

    host = Alone(checkpoints=checkpoints.absolute(), loras=loras.absolute(),
                 output=output.absolute(), remote=remote, device=device)  # fmt: skip
    jobs = JobManager(host, work_folder(host))
    tab = layout.build(Actions(host, jobs, routes.report_url))
    look: dict[str, Any] = {"theme": theme(gr), "head": f"<script>{script()}</script>"}
    page = gr.Blocks(title="ResAlign", analytics_enabled=False, **_known(gr.Blocks.__init__, look))
    with page:
        tab.render()
    options: dict[str, Any] = {
        "server_name": address, "server_port": port, "auth": entries or None, "quiet": True,
        "prevent_thread_lock": True, "share": False, "inbrowser": open_browser, "show_api": False,
        "ssr_mode": False, "footer_links": [], **look,
    }  # fmt: skip
    app, url, _ = page.queue().launch(**_known(page.launch, options))
    routes.register(app, host, jobs)
    say(f"ResAlign is served at {url} (Ctrl-C ends it)")
    try:
        page.block_thread()
    finally:
        jobs.close()


def check_port(address: str, port: int) -> None:
    """Raise a ConfigError if another program listens on the port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as tried:
        if os.name != "nt":  # there it would allow two programs on one port
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((address, port))
        except OSError as error:
            raise ConfigError(
                f"port {port} on {address} cannot be used ({error.strerror}): end the program that "
                "uses it, or choose another with --port"
            ) from None


def logins(entries: Sequence[str]) -> list[tuple[str, str]]:
    """Split `NAME:PASSWORD` entries into pairs."""
    found = []
    for entry in filter(None, entries):
        name, colon, password = entry.partition(":")
        if not colon or not name or not password:
            raise ConfigError("--auth: give NAME:PASSWORD")
        found.append((name, password))
    return found


def is_local(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def theme(gr: Any) -> Any:
    """Return the default theme with the machine's fonts, so that nothing is fetched.

    White on its orange has a contrast of 2.8; on this one, of 5.2.
    """
    fonts = ["system-ui", "sans-serif"]
    made = gr.themes.Default(font=fonts, font_mono=["ui-monospace", "monospace"])
    button, over = "button_primary_background_fill", "button_primary_background_fill_hover"
    fills = {button: "#c2410c", over: "#9a3412"}
    return made.set(**fills, **{f"{name}_dark": fill for name, fill in fills.items()})


def script() -> str:
    """Return the page's script, which other hosts load themselves from `javascript/`."""
    path = Path(__file__).resolve().parents[2] / "javascript" / "resalign.js"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _files(folder: Path) -> list[tuple[str, Path]]:
    found = sorted(folder.rglob("*.safetensors"))
    return [(path.relative_to(folder).as_posix(), path) for path in found if path.is_file()]


def _known(function: Any, options: dict[str, Any]) -> dict[str, Any]:
    known = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in known}
