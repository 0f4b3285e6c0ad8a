"""Serves the tab in one of its hosts' versions of gradio, for tests in a headless Chromium.

An environment for each version is made on demand. `RESALIGN_SCREENSHOTS` names a folder for
pictures to look at.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import webui_browser
from webui_environments import REQUIREMENTS, NoEnvironment, python_of

HOST = Path(__file__).parent / "webui_host.py"
ALONE = Path(__file__).parent / "webui_alone.py"


def browser_fixtures() -> tuple[Any, Any]:
    """`chromium`, a browser; `python`, the name and the interpreter of each version of gradio."""

    @pytest.fixture(scope="module")
    def chromium():
        reason = webui_browser.missing()
        if reason:
            pytest.skip(f"no browser test: {reason}")
        with webui_browser.browser() as made:
            yield made

    @pytest.fixture(scope="module", params=list(REQUIREMENTS))
    def python(request):
        try:
            return request.param, python_of(request.param)
        except NoEnvironment as error:
            pytest.skip(str(error))

    return chromium, python


@contextmanager
def served(python, folder, *arguments, script=HOST, port=0):
    """A host that serves the tab, at a free port or the given one.

    Yields its address, and what it says when it goes.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = port or free.getsockname()[1]
    environment = {
        **os.environ, "RESALIGN_PYTHON": sys.executable, "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1", "GRADIO_TEMP_DIR": str(folder / "gradio"),
    }  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [str(python), str(script), str(port), str(folder), *arguments], env=environment,
            text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
        )  # fmt: skip
    ended = {}
    try:
        for line in process.stdout:
            if line.startswith("{"):
                break
        else:
            pytest.fail((folder / "log").read_text()[-3000:])
        yield json.loads(line)["url"], ended
        if script == ALONE:
            process.send_signal(signal.SIGINT)
        said, _ = process.communicate("stop\n", timeout=60)
        if script == HOST:
            ended |= json.loads(said.splitlines()[-1])
    finally:
        process.kill()
        process.communicate()


def shot(tab, name):
    folder = os.environ.get("RESALIGN_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tab.shot(Path(folder) / f"{name}.png")


def answer(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        return urllib.request.urlopen(request, timeout=20).status
    except urllib.error.HTTPError as error:
        return error.code
