"""An export that is stopped or refused leaves the target as it was, and no half of a file."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple

import pytest
from fakes_export import save_fixtures

from resalign.backend.checkpoint.export.stream import PARTIAL
from resalign.backend.checkpoint.save import export_merged
from resalign.backend.checkpoint.verify import verify_export
from resalign.backend.errors import ExportError

unet, adapter, source = save_fixtures()


@pytest.mark.parametrize("link", [None, "symlink_to", "hardlink_to"])
def test_the_source_is_never_the_target(adapter, source, link, tmp_path):
    """By its own name, through a symbolic link or a hard one, even with overwrite."""
    copy = shutil.copy(source, tmp_path / "base.safetensors")
    target = tmp_path / "base.safetensors"
    if link:
        target = tmp_path / "link.safetensors"
        getattr(target, link)(copy)
    with pytest.raises(ExportError, match="the source itself"):
        export_merged(copy, adapter, target, overwrite=True)
    assert (tmp_path / "base.safetensors").read_bytes() == source.read_bytes()


def test_an_existing_target_is_replaced_only_when_allowed(adapter, source, tmp_path):
    """Refused first; then replaced whole, and nothing is left beside it."""
    target = tmp_path / "out.safetensors"
    target.write_text("precious")
    with pytest.raises(ExportError, match="exists"):
        export_merged(source, adapter, target)
    assert target.read_text() == "precious"
    export_merged(source, adapter, target, overwrite=True)
    verify_export(source, target, adapter)
    assert os.listdir(tmp_path) == ["out.safetensors"]


def test_a_target_that_is_a_link_is_replaced_not_followed(adapter, source, tmp_path):
    """The target of the link stays as it is."""
    other = tmp_path / "other.bin"
    other.write_text("precious")
    target = tmp_path / "out.safetensors"
    target.symlink_to(other)
    export_merged(source, adapter, target, overwrite=True)
    assert other.read_text() == "precious" and not target.is_symlink()


def test_a_full_disk_is_noticed_before_anything_is_written(adapter, source, tmp_path, monkeypatch):
    """The message gives both sizes."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 5_000_000, 5_000_000))
    with pytest.raises(ExportError, match=r"4\.8 MiB free.*needs [1-9]\d MiB"):
        export_merged(source, adapter, tmp_path / "out.safetensors")
    assert not os.listdir(tmp_path)


def test_a_disk_that_fills_up_while_writing_leaves_nothing(adapter, source, tmp_path, monkeypatch):
    """Another program may take the room that was there when it was checked."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ExportError, match="No space left"):
        export_merged(source, adapter, tmp_path / "out.safetensors")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("stage", ["export", "hash"])
def test_stopping_leaves_no_file(adapter, source, stage, tmp_path):
    """Whatever the callback raises passes through untouched, at any moment."""

    def stop(progress):
        if progress.stage == stage:
            raise KeyboardInterrupt("enough")

    with pytest.raises(KeyboardInterrupt, match="enough"):
        export_merged(
            source, adapter, tmp_path / "out.safetensors", hash_file=True, on_progress=stop
        )
    assert not os.listdir(tmp_path)


def test_progress_runs_up_to_its_total(adapter, source, tmp_path):
    """MiB that never fall; a second stage where the whole file is to be hashed."""
    for hash_file, stages in ((False, ["export"]), (True, ["export", "hash"])):
        seen: dict[str, list] = {}
        shares: list[float] = []

        def keep(found, seen=seen, shares=shares):
            seen.setdefault(found.stage, []).append((found.step, found.total))
            shares.append(found.share)

        export_merged(
            source,
            adapter,
            tmp_path / "out.safetensors",
            hash_file=hash_file,
            overwrite=True,
            on_progress=keep,
        )
        assert list(seen) == stages
        assert shares == sorted(shares) and shares[-1] == 1, "one bar for all of it"
        for steps in seen.values():
            assert steps == sorted(steps) and steps[-1][0] == steps[-1][1]


KILLED = """
import sys, time
from conftest import ROOT
from safetensors.torch import load_file
from resalign.backend.adapter.formats import load_lora
from resalign.backend.checkpoint.save import export_merged
def wait(progress):
    print("writing", flush=True)
    time.sleep(60)
export_merged(sys.argv[1], load_lora(sys.argv[2]), sys.argv[3], on_progress=wait)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_killed_export_leaves_a_named_rest_that_the_next_one_clears(adapter, source, tmp_path):
    """Meanwhile a second export to the same name is refused, and the target never half-exists."""
    from resalign.backend.adapter.formats import save_lora

    target = tmp_path / "out.safetensors"
    lora = save_lora(adapter, tmp_path / "lora.safetensors")
    command = [sys.executable, "-c", KILLED, str(source), str(lora), str(target)]
    paths = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}
    )
    try:
        assert process.stdout and process.stdout.readline() == "writing\n"
        with pytest.raises(ExportError, match="another export is writing"):
            export_merged(source, adapter, target)
        assert not target.exists()
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert sorted(os.listdir(tmp_path)) == ["lora.safetensors", "out.safetensors" + PARTIAL]
    export_merged(source, adapter, target)
    verify_export(source, target, adapter)
    assert sorted(os.listdir(tmp_path)) == ["lora.safetensors", "out.safetensors"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
def test_the_source_s_mode_is_kept(adapter, source, tmp_path):
    """A file that others may read stays readable for them."""
    copy = shutil.copy(source, tmp_path / "base.safetensors")
    os.chmod(copy, 0o640)
    export_merged(copy, adapter, tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").stat().st_mode & 0o777 == 0o640


def test_a_source_that_changes_meanwhile_is_noticed(adapter, source, tmp_path):
    """A download still running, or a sync client."""
    copy = shutil.copy(source, tmp_path / "base.safetensors")

    def touch(progress):
        os.utime(copy, ns=(time.time_ns(), time.time_ns()))

    with pytest.raises(ExportError, match="changed while it was read"):
        export_merged(copy, adapter, tmp_path / "out.safetensors", on_progress=touch)
    assert os.listdir(tmp_path) == ["base.safetensors"]
