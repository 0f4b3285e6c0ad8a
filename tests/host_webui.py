"""Real A1111, Forge, reForge and Forge Neo, started on the CPU with a data folder of their own.

A1111_DIR, FORGE_DIR, REFORGE_DIR and FORGE_NEO_DIR are their folders, with what their launcher
clones in `repositories`; A1111_PYTHON and so on interpreters with their requirements.
Nothing is written to them. Making the worker's environment needs a package index, or
RESALIGN_WEBUI_ENV, which keeps it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from host_checkpoints import write_full_checkpoint

from resalign.backend.demo.plans import CHECKPOINT
from resalign.backend.families.clip.networks import TOKENIZER_FOLDER

FAMILY = TOKENIZER_FOLDER.parents[1] / "sd1"
COMMON = ("--skip-prepare-environment", "--skip-torch-cuda-test", "--api")
FLAGS = {
    "a1111": (*COMMON, "--use-cpu", "all", "--no-half", "--no-download-sd-model",
              "--skip-load-model-at-start"),
    "forge": (*COMMON, "--always-cpu"),
    "reforge": (*COMMON, "--always-cpu", "--no-download-sd-model"),
    "forge_neo": (*COMMON, "--cpu"),
}  # fmt: skip
KINDS = tuple(FLAGS)
# Forge Neo waits for a key where its settings are not those of this version of it.
SETTINGS = {"forge_neo": {"VERSION_UID": "PY313"}}
OUTPUTS = {"forge_neo": "output"}
CLIP = "models--openai--clip-vit-large-patch14"  # A1111 reads its configuration from the hub
EXTENSION = "ResAlign-hardening"  # any name will do
WHOLE = "random_sd15.safetensors"  # what the host itself can draw with
MINE = "mine.safetensors"  # the demo checkpoint as a file of the user's


def host_paths(kind: str) -> tuple[Path, str]:
    """The folder and the interpreter, or a skip that says what to set."""
    name = kind.upper()
    folder, python = os.environ.get(f"{name}_DIR"), os.environ.get(f"{name}_PYTHON")
    if not folder or not python:
        pytest.skip(f"{name}_DIR and {name}_PYTHON are not set: no {kind} to test in")
    return Path(folder), python


class WebUI:
    """One host with a data folder; started and stopped as often as a test likes."""

    def __init__(self, kind: str, folder: Path, root: Path) -> None:
        self.kind, self.folder, self.data = kind, folder, folder / "data"
        self.output = self.data / OUTPUTS.get(kind, "outputs") / "resalign"
        self.host, self.python = host_paths(kind)
        self.models = self.data / "models" / "Stable-diffusion"
        self.loras = self.data / "models" / "Lora"
        self.models.mkdir(parents=True)
        self.loras.mkdir()
        (self.data / "extensions").mkdir()
        (self.data / "extensions" / EXTENSION).symlink_to(root)
        shutil.copy(CHECKPOINT, self.models / MINE)
        # What it would otherwise load when a page is opened: the first of the list.
        # Its previews would fetch a network of their own (reForge).
        settings = {"sd_model_checkpoint": WHOLE, "live_previews_enable": False,
                    **SETTINGS.get(kind, {})}  # fmt: skip
        (self.data / "config.json").write_text(json.dumps(settings))
        self._write_clip()
        kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        self.environment = {
            **kept, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
            "GRADIO_ANALYTICS_ENABLED": "False", "COMMANDLINE_ARGS": "",
            "RESALIGN_WEBUI_ENV": os.environ.get("RESALIGN_WEBUI_ENV", str(folder / "webui-env")),
        }  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / "host.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def add_whole_checkpoint(self) -> None:
        """2.1 GB: RANDOM_SD15 may name one that another test has written."""
        given = os.environ.get("RANDOM_SD15")
        if given:
            (self.models / WHOLE).symlink_to(given)
        else:
            write_full_checkpoint(self.models / WHOLE)

    def run_installer(self) -> str:
        """Have the host run our installer, by its own function.

        Not those of all its extensions: what Forge itself brings would change its packages.
        """
        extension = self.data / "extensions" / EXTENSION
        code = (
            "from modules import launch_utils; "
            f"launch_utils.run_extension_installer({str(extension)!r})"
        )
        result = subprocess.run(
            [self.python, "-c", code, "--data-dir", str(self.data)], cwd=self.host, text=True,
            capture_output=True, env=self.environment, timeout=900,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        return result.stdout

    def freeze(self) -> list[str]:
        result = subprocess.run(
            [self.python, "-m", "pip", "freeze", "--all"], capture_output=True, text=True,
            check=True, timeout=300,
        )  # fmt: skip
        return sorted(result.stdout.splitlines())

    def start(self, *flags: str, wait: float = 300) -> None:
        """Until its page is served."""
        assert self.process is None
        command = [self.python, "launch.py", *FLAGS[self.kind], "--port", str(self.port),
                   "--data-dir", str(self.data), *flags]  # fmt: skip
        # With a --data-dir its page may not load its own scripts.
        if self.kind in ("forge", "forge_neo"):
            command += ["--gradio-allowed-path", str(self.host)]
        before = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.host, env=self.environment, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        end = time.monotonic() + wait
        while time.monotonic() < end:
            said = self.log.read_bytes()[before:].decode(errors="replace")
            assert self.process.poll() is None, said[-3000:]
            if "Startup time:" in said:  # A1111 with --api dies of a request that comes sooner
                return
            time.sleep(0.5)
        raise AssertionError(f"not up in {wait} s: {said[-3000:]}")

    def stop(self, how: int = signal.SIGTERM) -> None:
        """It alone: what it has started must notice by itself."""
        if self.process is None:
            return
        self.process.send_signal(how)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def get(self, path: str, timeout: float = 60) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=timeout) as answer:
            return json.load(answer)

    def post(self, path: str, value: Any, timeout: float = 600) -> Any:
        request = urllib.request.Request(
            self.url + path, json.dumps(value).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from None

    def draw(self) -> str:
        """A picture of 64 pixels by the host's own model, as base64."""
        answer = self.post("/sdapi/v1/txt2img", {
            "prompt": "a cat", "steps": 2, "width": 64, "height": 64, "seed": 1,
            "override_settings": {"sd_model_checkpoint": WHOLE}, "do_not_save_samples": True,
        })  # fmt: skip
        (picture,) = answer["images"]
        return picture

    def checkpoints(self) -> set[str]:
        """As the host lists them."""
        return {Path(entry["filename"]).name for entry in self.get("/sdapi/v1/sd-models")}

    def workers(self) -> list[int]:
        """Process ids of workers, whoever started them."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                ours = any(word.endswith(b"backend/worker/__main__.py") for word in words)
                if ours and str(self.folder).encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
        return found

    def _write_clip(self) -> None:
        """The hub's cache as if A1111 had fetched the text encoder's configuration."""
        snapshot = self.folder / "hf" / "hub" / CLIP / "snapshots" / "0"
        snapshot.mkdir(parents=True)
        (snapshot.parent.parent / "refs").mkdir()
        (snapshot.parent.parent / "refs" / "main").write_text("0")
        for source, name in (
            (FAMILY / "text_encoder.json", "config.json"),
            (FAMILY / "tokenizer.json", "tokenizer_config.json"),
            (TOKENIZER_FOLDER / "vocab.json", "vocab.json"),
            (TOKENIZER_FOLDER / "merges.txt", "merges.txt"),
        ):
            shutil.copy(source, snapshot / name)
