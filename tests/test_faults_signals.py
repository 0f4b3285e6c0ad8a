"""SIGINT, SIGTERM and SIGHUP in each phase: exit code 130, one line, and nothing is lost."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from fakes_faults import (
    RUN,
    begin,
    errors_in,
    evaluations,
    finished_run,
    moved,
    results,
    without_outputs,
)

from resalign.backend.checkpoint import load
from resalign.backend.cli import main
from resalign.backend.cli.console import Console

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP] if os.name != "nt" else []
PHASES = ("loading", "generating", "hardening", "exporting", "probing", "reporting")
_STAGES = {"generating": "synthesising", "hardening": "harden", "exporting": "export",
           "probing": "probing"}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a finished run and what it wrote."""
    return finished_run(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def probed(place) -> dict:
    assert main(["probe", str(place / "probe.toml")]) == 0
    return evaluations(place)


def sends(monkeypatch, phase: str, number: int) -> None:
    """Send a signal to this process when a phase is reached, once."""
    sent: list[int] = []

    def send() -> None:
        if not sent:
            sent.append(number)
            os.kill(os.getpid(), number)

    if phase in _STAGES:
        plain = Console.progress

        def progress(self, progress, /):
            plain(self, progress)
            if progress.stage == _STAGES[phase]:
                send()

        monkeypatch.setattr(Console, "progress", progress)
        return
    module, name = {
        "loading": (load, "_fill"),
        "reporting": (__import__("resalign.backend.jobs.probe", fromlist=["x"]), "write_report"),
    }[phase]
    real = getattr(module, name)

    def called(*args, **options):
        send()
        return real(*args, **options)

    monkeypatch.setattr(module, name, called)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.reliability
def test_a_signal_in_each_phase(
    place, probed, tmp_path, monkeypatch, capsys, phase, number
):  # fmt: skip
    probing = phase in ("probing", "reporting")
    if phase == "exporting" or probing:
        folder = moved(place, tmp_path / "here")
        command = ["probe", str(folder / "probe.toml")]
        if probing:
            __import__("shutil").rmtree(folder / "probe")
        else:
            without_outputs(folder)
            command = ["resume", str(folder / RUN)]
    else:
        folder = begin(tmp_path / "here", place / "original.safetensors")
        command = ["harden", str(folder / "harden.toml")]
    before = [signal.getsignal(each) for each in SIGNALS]
    sends(monkeypatch, phase, number)
    assert main(command) == 130
    said = capsys.readouterr().err
    again = folder / "probe" if probing else folder / RUN
    (line,) = errors_in(said)
    assert f"continue with: resalign resume {again}" in line and "Traceback" not in said
    assert [signal.getsignal(each) for each in SIGNALS] == before
    monkeypatch.undo()
    assert main(["resume", str(again)]) == 0
    if probing:
        assert evaluations(folder) == probed and (again / "report.html").exists()
    else:
        assert results(folder) == results(place)
