"""Commands that are really killed (SIGKILL), or die at a chosen file operation, and then resumed.

Four kinds: `harden` with ResAlign, `harden` of all weights in two stages, `probe` and `export`.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from pathlib import Path

import pytest
from fakes_faults import (
    OUTPUTS,
    RUN,
    begin,
    evaluations,
    finished_run,
    killed_after,
    moved,
    original_fixture,
    results,
    seconds_of,
    without_outputs,
)
from faulty_disk import Killed, faulty_disk

from resalign.backend.cli import main

KINDS = ("harden", "durable", "probe", "export")
pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.timeout(3600),
]


class Kind:
    """A command: its folder, how it begins, how it continues, and what it leaves."""

    def __init__(self, name: str, original: Path, place: Path) -> None:
        self.name, self.original, self.place = name, original, place

    def folder(self, path: Path) -> Path:
        if self.name in ("harden", "durable"):
            return begin(path, self.original, durable=self.name == "durable")
        folder = moved(self.place, path)
        return without_outputs(folder) if self.name == "export" else folder

    def command(self, folder: Path) -> list[str]:
        if self.name == "probe":
            return ["probe", str(folder / "probe.toml")]
        if self.name == "export":
            return ["export", str(folder / RUN), "--output", str(folder / "hardened.safetensors")]
        return ["harden", str(folder / "harden.toml")]

    def finish(self, folder: Path) -> int:
        """Continue as a user would, who follows what the program says."""
        run = folder / RUN
        if self.name == "export" and (folder / "hardened.safetensors").exists():
            assert main(self.command(folder)) == 2  # "allow overwriting"
            return main([*self.command(folder), "--overwrite"])
        if self.name == "probe" and (folder / "probe" / "plan.json").exists():
            return main(["resume", str(folder / "probe")])
        begun = (run / "plan.json").exists() and (run / "job.json").exists()
        if self.name in ("harden", "durable") and begun:
            return main(["resume", str(run)])
        return main(self.command(folder))

    def result(self, folder: Path) -> dict:
        if self.name == "probe":
            return evaluations(folder)
        there = [name for name in OUTPUTS if (folder / name).exists()]
        return {**results(folder), "there": there}


original = original_fixture()


@pytest.fixture(scope="module")
def place(tmp_path_factory, original) -> Path:
    """A folder with a finished run and what it wrote."""
    return finished_run(tmp_path_factory.mktemp("place"), original)


@pytest.fixture
def kind(request, original, place) -> Kind:
    return Kind(request.param, original, place)


@pytest.fixture
def whole(kind, tmp_path) -> dict:
    folder = kind.folder(tmp_path / "whole")
    assert main(kind.command(folder)) == 0
    return kind.result(folder)


def ends_equal(kind: Kind, folder: Path, whole: dict, at: object) -> None:
    assert kind.finish(folder) == 0, at
    assert kind.result(folder) == whole, at
    left = [path for path in folder.rglob("*") if path.suffix in (".tmp", ".resalign-partial")]
    assert not left, (at, left)
    shutil.rmtree(folder)


@pytest.mark.reliability
@pytest.mark.parametrize("kind", KINDS, indirect=True)
def test_fifty_processes_are_killed_at_random(kind, whole, tmp_path, capsys):
    """RESALIGN_KILLS sets another number."""
    count = int(os.environ.get("RESALIGN_KILLS", "50"))
    seconds = seconds_of(kind.command(kind.folder(tmp_path / "timed")))
    chance, kills, late = random.Random(kind.name), 0, 0
    while kills < count:
        folder = kind.folder(tmp_path / f"kill{kills}")
        moment = chance.uniform(0, seconds)
        if killed_after(kind.command(folder), moment):
            kills += 1
            ends_equal(kind, folder, whole, moment)
        else:
            late += 1
            shutil.rmtree(folder)
    with capsys.disabled():
        print(f"{kind.name}: {kills} SIGKILLs within {seconds:.2f} s, all equal ({late} too late)")


def dies_at(monkeypatch, folder: Path, command: list[str], at: int) -> bool:
    with faulty_disk(monkeypatch, folder, at, "kill") as disk, contextlib.suppress(Killed):
        main(command)
    return disk.broken


@pytest.mark.reliability
@pytest.mark.parametrize("kind", KINDS, indirect=True)
def test_a_command_that_dies_at_every_file_operation_ends_equal(
    monkeypatch, kind, whole, tmp_path, capsys
):
    at = 1
    folder = kind.folder(tmp_path / "1")
    while dies_at(monkeypatch, folder, kind.command(folder), at):
        ends_equal(kind, folder, whole, at)
        at += 1
        folder = kind.folder(tmp_path / str(at))
    with capsys.disabled():
        print(f"{kind.name}: dies at each of {at - 1} file operations, all equal")


@pytest.mark.parametrize("kind", KINDS, indirect=True)
@pytest.mark.slow
def test_a_process_killed_in_the_middle_ends_equal(kind, whole, tmp_path):
    seconds = seconds_of(kind.command(kind.folder(tmp_path / "timed")))
    folder = kind.folder(tmp_path / "killed")
    assert killed_after(kind.command(folder), seconds / 2)
    ends_equal(kind, folder, whole, "the middle")
