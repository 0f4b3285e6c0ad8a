"""Odd surroundings: no home, a working directory that is not ours, few files, odd pictures."""

from __future__ import annotations

import os
import resource
import struct
import sys
import time
import traceback
import zlib
from pathlib import Path

import pytest
import torch
from fakes_faults import RUN, begin, errors_in, original_fixture, results, started
from PIL import Image

from resalign.backend.cli import main
from resalign.backend.data.image_set import find_broken, read_image_folder
from resalign.backend.errors import RunError
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.images import ImageSet
from resalign.backend.probe.folder import write_png
from resalign.backend.report.pictures import Album
from resalign.backend.run.folder import RunFolder

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX systems only")
PLAN = HardeningPlan(concepts=(Concept("bad", prompts=("bad",)),))


original = original_fixture()


@pytest.mark.slow
def test_a_run_needs_no_home_and_writes_only_where_it_is_told(
    tmp_path, original, monkeypatch, capsys
):
    """Without HOME, from a working directory that is read-only, under umask 077."""
    folder, elsewhere = begin(tmp_path / "here", original), tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o555)

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    for name in ("HOME", "XDG_STATE_HOME", "LOCALAPPDATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(elsewhere)
    before = os.umask(0o077)
    try:
        assert main(["harden", str(folder / "harden.toml")]) == 0
    finally:
        os.umask(before)
    assert not list(elsewhere.iterdir()) and results(folder)
    names = [*(folder / RUN).iterdir(), *folder.glob("hardened*")]
    open_to_others = [p.name for p in names if p.stat().st_mode & 0o077]
    assert not open_to_others
    assert not RunFolder.open(folder / RUN, read_only=True).is_ours  # no key could be kept


def outcome(command: list[str], limit: int, out: Path) -> tuple[int, str]:
    """Run a command with so few file descriptors; return exit code and standard error."""
    process = os.fork()
    if not process:
        handle = os.open(out, os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(handle, 2)
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        code = 70
        try:
            code = main(command)
        except BaseException:
            traceback.print_exc()  # or nobody would know why
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), out.read_text()


@pytest.mark.slow
def test_few_file_descriptors_are_one_line(tmp_path, original):
    """Each limit ends in one line or in a result; what EMFILE says is in `test_faults_cli.py`."""
    ends = []
    for spare in (0, 2, 6, 40):
        folder = begin(tmp_path / str(spare), original)
        limit = 1 + max(int(name) for name in os.listdir("/proc/self/fd")) + spare
        code, said = outcome(["harden", str(folder / "harden.toml")], limit, tmp_path / f"e{spare}")
        assert "Traceback" not in said and code in (0, 2), said
        assert code == 0 or len(errors_in(said)) == 1, said
        ends.append(code)
    assert ends[-1] == 0


def test_two_runs_in_one_folder(tmp_path, capsys):
    """The second process is refused, with the number of the first."""
    folder = tmp_path / "run"
    RunFolder.create(folder, PLAN).close()
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        try:
            with RunFolder.open(folder):
                os.write(writer, b"x")
                time.sleep(60)
        finally:
            os._exit(70)
    try:
        assert os.read(reader, 1) == b"x"
        with pytest.raises(RunError, match=f"in use by another run \\(process {process}\\)"):
            RunFolder.open(folder)
        RunFolder.open(folder, read_only=True)
    finally:
        os.kill(process, 9)
        os.waitpid(process, 0)
        os.close(reader)
        os.close(writer)
    RunFolder.open(folder).close()


def test_a_command_in_a_child_ends_as_here(tmp_path):
    """`started`, by which processes are killed, runs the real command line."""
    process = started(["inspect", str(tmp_path / "none.safetensors")])
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 2


# --- pictures ------------------------------------------------------------------------------------


def png(*chunks: tuple[bytes, bytes], size: tuple[int, int] = (8, 8)) -> bytes:
    """A gray PNG of 8 bits whose pixels are all black, with chunks before its pixels."""
    rows = b"\0" * (size[1] * (size[0] + 1)) if max(size) < 100 else b""
    header = struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    found = b"\x89PNG\r\n\x1a\n"
    for name, data in parts:
        found += struct.pack(">I", len(data)) + name + data
        found += struct.pack(">I", zlib.crc32(name + data))
    return found


def test_decompression_bombs_are_named_at_once(tmp_path):
    """3.6 thousand million pixels in 100 bytes, 64 MiB of text in 64 KiB."""
    (tmp_path / "bomb.png").write_bytes(png(size=(60_000, 60_000)))
    text = zlib.compress(bytes(64 << 20), 9)
    (tmp_path / "text.png").write_bytes(png((b"zTXt", b"Comment\0\0" + text)))
    (tmp_path / "good.png").write_bytes(png())
    started_at = time.perf_counter()
    broken = find_broken(read_image_folder(ImageSet(folder=str(tmp_path), caption="x")).images)
    assert time.perf_counter() - started_at < 5
    assert list(broken) == ["bomb.png"] and "exceeds limit" in broken["bomb.png"]


def test_a_bomb_among_a_probes_pictures_is_missing_from_the_report(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png(size=(60_000, 60_000)))
    write_png(torch.zeros(3, 8, 8, dtype=torch.uint8), tmp_path / "good.png")
    album = Album(tmp_path)
    assert album.shot("bomb.png") is None and album.missing == 1
    assert album.shot("good.png") is not None


def test_links_that_loop_and_pipes_in_a_data_folder(tmp_path):
    """Each folder is read once; links and pipes that are not files are left out and counted."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "b.png").symlink_to(tmp_path / "b.png")
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "a.txt")
    found = read_image_folder(ImageSet(folder=str(tmp_path), caption="x"))
    assert {"pipe.png", "a.txt"} <= set(found.left_out)
    assert "a.png" in [image.name for image in found.images]
    assert set(find_broken(found.images)) <= {"b.png"}
