"""A real disk that is full: a small tmpfs below the output, the run folder, the cache, the probe.

The disk is filled in the middle of the work, as other programs do; the check before it would
otherwise refuse. Mounting needs root, so elsewhere these tests are skipped.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from fakes_faults import RUN, begin, errors_in, evaluations, finished_run, moved, results

from resalign.backend.cli import main
from resalign.backend.cli.console import Console

pytestmark = [pytest.mark.reliability, pytest.mark.timeout(1200)]


@pytest.fixture
def disk(tmp_path):
    """Mount 96 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(folder)], capture_output=True
    )
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a finished run and probe."""
    folder = finished_run(tmp_path_factory.mktemp("place"))
    assert main(["probe", str(folder / "probe.toml")]) == 0
    return folder


def fill(disk: Path) -> None:
    """Leave no byte free."""
    with open(disk / "filler", "ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


def fills_at(monkeypatch, disk: Path, stage: str, step: int) -> None:
    """Fill the disk at the first progress of a stage from a step on."""
    plain, filled = Console.progress, []

    def progress(self, progress, /):
        if progress.stage == stage and progress.step >= step and not filled:
            filled.append(stage)
            fill(disk)
        plain(self, progress)

    monkeypatch.setattr(Console, "progress", progress)


def one_line(capsys, *words: str) -> None:
    said = capsys.readouterr().err
    (line,) = errors_in(said)
    assert "Traceback" not in said
    for word in words:
        assert word in line, line


@pytest.mark.parametrize(
    ("what", "stage", "step"),
    [("run folder", "harden", 1), ("cache", "synthesising", 1), ("output", "export", 1)],
)
def test_a_disk_that_fills_up_is_one_line_and_resumes(
    place, tmp_path, monkeypatch, capsys, disk, what, stage, step
):
    folder = begin(tmp_path / "here", place / "original.safetensors")
    run, target, more = folder / RUN, folder, []
    if what == "run folder":
        run = disk / "run"
        more = ["--run-folder", str(run)]
    elif what == "cache":
        (run / "cache").parent.mkdir()
        (run / "cache").symlink_to(disk)
    else:
        target = disk
        more = ["--output", str(disk / "hardened.safetensors"), "--run-folder", str(run)]
    fills_at(monkeypatch, disk, stage, step)
    assert main(["harden", str(folder / "harden.toml"), *more]) == 2
    one_line(capsys, "No space left", f"continue with: resalign resume {run}")
    assert not list(target.glob("*.resalign-partial"))
    (disk / "filler").unlink()
    monkeypatch.undo()
    assert main(["resume", str(run)]) == 0
    assert results(target) == results(place)
    with capsys.disabled():
        print(f"tmpfs below the {what}, full at {stage}: one line, resumed to equal bytes")


@pytest.mark.parametrize("step", [0, 1])
def test_a_probe_whose_disk_fills_up_is_one_line_and_resumes(
    place, tmp_path, monkeypatch, capsys, disk, step
):
    folder = moved(place, tmp_path / "here")
    text = (folder / "probe.toml").read_text().replace('"probe"', f'"{disk / "probe"}"')
    (folder / "probe.toml").write_text(text)
    fills_at(monkeypatch, disk, "probing", step)
    assert main(["probe", str(folder / "probe.toml")]) == 2
    one_line(capsys, "No space left", f"continue with: resalign resume {disk / 'probe'}")
    (disk / "filler").unlink()
    monkeypatch.undo()
    assert main(["resume", str(disk / "probe")]) == 0
    assert evaluations(disk) == evaluations(place)
    assert (disk / "probe" / "report.html").exists()
    with capsys.disabled():
        print(f"tmpfs below the probe, full at evaluation {step}: one line, resumed")


def test_a_disk_too_small_is_refused_before_any_work(place, tmp_path, capsys, disk):
    fill(disk)
    folder = begin(tmp_path / "here", place / "original.safetensors")
    before = sorted(folder.iterdir())
    target = str(disk / "hardened.safetensors")
    for command in ("check", "harden"):
        assert main([command, str(folder / "harden.toml"), "--output", target]) == 2
        said = capsys.readouterr()
        assert "are needed, but only" in said.out + said.err
        assert sorted(folder.iterdir()) == before and [p.name for p in disk.iterdir()] == ["filler"]
