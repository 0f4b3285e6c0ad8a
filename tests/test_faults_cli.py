"""Faults around whole commands: outputs, sources, signals, streams, permissions."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import sys
from pathlib import Path

import pytest
import torch
from damage import DAMAGES, damage
from fakes_checkpoint import write_tiny_checkpoint
from fakes_faults import (
    begin,
    evaluations,
    finished_run,
    moved,
    original_fixture,
    results,
    without_outputs,
)

from resalign.backend.cli import main
from resalign.backend.cli.console import Console
from resalign.backend.errors import RunError
from resalign.backend.jobs import export as exporting
from resalign.backend.plan.probe import ProbeCheckpoint
from resalign.backend.probe.subjects import subject_of

original = original_fixture()


@pytest.fixture(scope="module")
def place(tmp_path_factory, original) -> Path:
    """A folder with a finished run and what it wrote."""
    return finished_run(tmp_path_factory.mktemp("place"), original)


@pytest.fixture
def copy(place, tmp_path) -> Path:
    """A folder of one's own with the finished run, whose outputs lie beside it."""
    return moved(place, tmp_path / "copy")


def test_outputs_that_a_run_was_writing_are_finished_by_resume(copy, place, monkeypatch, capsys):
    """Without --overwrite; another file in the way is still refused."""
    without_outputs(copy)
    run = str(copy / "hardened.safetensors.run")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "save_lora", interrupted)
    assert main(["resume", run]) == 130
    assert "continue with: resalign resume" in capsys.readouterr().err
    assert (copy / "hardened.safetensors").exists()
    monkeypatch.undo()
    assert main(["resume", run]) == 0
    assert results(copy) == results(place)
    assert not (Path(run) / "outputs.json").exists()
    assert main(["resume", run]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["plot_records", "write_card", "save_lora", "export_merged"])
def test_a_full_disk_at_an_output_is_one_line(copy, monkeypatch, capsys, name):
    without_outputs(copy)
    run = str(copy / "hardened.safetensors.run")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x")

    with monkeypatch.context() as patch:
        patch.setattr(exporting, name, full)
        assert main(["resume", run]) == 2
    said = capsys.readouterr().err
    assert "No space left" in said and "resalign resume" in said and "Traceback" not in said
    assert main(["resume", run]) == 0


def test_a_source_that_was_replaced_is_noticed(copy, capsys):
    """Another checkpoint of the same shapes under the same name: export, resume and probe."""
    run, source = copy / "hardened.safetensors.run", copy / "original.safetensors"
    source.unlink()
    write_tiny_checkpoint(source, dtype=torch.float32, seed=1)
    without_outputs(copy)
    target = copy / "again.safetensors"
    assert main(["export", str(run), "--output", str(target)]) == 2
    assert "SHA-256 has changed" in capsys.readouterr().err and not target.exists()
    assert main(["resume", str(run)]) == 2
    assert "SHA-256 has changed" in capsys.readouterr().err
    with pytest.raises(RunError, match="SHA-256 has changed"):
        subject_of(ProbeCheckpoint(name="run", path=str(run)))
    assert not [path for path in copy.iterdir() if path.name.startswith("again")]


def test_a_source_may_be_moved_and_renamed(copy, place):
    (copy / "original.safetensors").rename(copy / "moved.safetensors")
    target = copy / "again.safetensors"
    run = str(copy / "hardened.safetensors.run")
    moved = str(copy / "moved.safetensors")
    assert main(["export", run, "--checkpoint", moved, "--output", str(target)]) == 0


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_an_export_respects_the_umask(copy):
    before = os.umask(0o077)
    try:
        target = copy / "again.safetensors"
        run = str(copy / "hardened.safetensors.run")
        assert main(["export", run, "--output", str(target)]) == 0
    finally:
        os.umask(before)
    for name in ("again.safetensors", "again.md", "again-curves.png"):
        assert stat.S_IMODE((copy / name).stat().st_mode) == 0o600, name


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no such signal")
@pytest.mark.parametrize("number", [1, 15])
def test_a_signal_ends_a_run_with_how_to_continue(tmp_path, original, monkeypatch, capsys, number):
    """SIGHUP as SIGTERM, while the data are encoded."""
    folder = begin(tmp_path / "here", original)
    monkeypatch.setattr(Console, "progress", lambda *_: os.kill(os.getpid(), number))
    before = signal.getsignal(signal.SIGHUP)
    assert main(["harden", str(folder / "harden.toml")]) == 130
    assert "continue with: resalign resume" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGHUP) is before


class Gone:
    """Standard output whose reader has gone."""

    def write(self, _text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return False


def test_a_reader_that_has_gone_is_no_traceback(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout", Gone())
    assert main(["presets"]) == 141
    assert capsys.readouterr().err == ""


def test_a_closed_standard_output_is_said(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout", None)
    assert main(["presets", "--json"]) == 0
    sys.stdout.close()
    assert "standard output is closed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EMFILE, errno.ELOOP]
)
def test_what_the_system_refuses_is_one_line(tmp_path, monkeypatch, capsys, number):
    def refused(*_, **__):
        raise OSError(number, os.strerror(number), "/somewhere")

    monkeypatch.setattr("resalign.backend.checkpoint.inspect.inspect", refused)
    assert main(["inspect", str(tmp_path / "x")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("resalign: /somewhere: ") and said.count("\n") == 1


def test_a_run_folder_that_cannot_be_written_is_one_line(tmp_path, original, monkeypatch, capsys):
    folder = begin(tmp_path / "here", original)

    def read_only(self, *_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr("filelock.FileLock.acquire", read_only)
    assert main(["harden", str(folder / "harden.toml")]) == 2
    assert "cannot be locked" in capsys.readouterr().err


@pytest.mark.slow
def test_a_refused_checkpoint_leaves_nothing_behind(tmp_path, original, capsys):
    """A tensor too many: found by check and harden alike, before there is a folder."""
    folder = begin(tmp_path / "here", original)
    (folder / "original.safetensors").unlink()
    extra = {"model.diffusion_model.input_blocks.1.9.weight": torch.zeros(2)}
    write_tiny_checkpoint(folder / "original.safetensors", dtype=torch.float32, extra=extra)
    before = sorted(folder.iterdir())
    for command in ("check", "harden"):
        assert main([command, str(folder / "harden.toml")]) == 2
        said = capsys.readouterr()
        assert "1 unexpected" in said.out + said.err
        assert sorted(folder.iterdir()) == before
    shutil.copy(folder / "original.safetensors", folder / "hardened.safetensors")
    (folder / "original.safetensors").unlink()
    os.link(original, folder / "original.safetensors")
    before = sorted(folder.iterdir())
    for command in ("check", "probe"):
        assert main([command, str(folder / "probe.toml")]) == 2
        said = capsys.readouterr()
        assert "1 unexpected" in said.out + said.err
        assert sorted(folder.iterdir()) == before


def test_check_knows_probe_plans(copy, capsys):
    """All problems at once, and none for a plan that runs."""
    assert main(["check", str(copy / "probe.toml")]) == 0
    assert "original: sd1" in capsys.readouterr().out
    text = (copy / "probe.toml").read_text().replace('"hardened.safetensors"', '"none"')
    text += '[[plan.scorers]]\nname = "no such scorer"\n[[plan.loras]]\nname = "l"\n'
    (copy / "bad.toml").write_text(text + '[[plan.loras.loras]]\npath = "none.safetensors"\n')
    assert main(["check", str(copy / "bad.toml")]) == 2
    said = capsys.readouterr().out
    assert said.count("problem:") == 3 and "unknown scorer" in said


@pytest.mark.parametrize("what", ["a folder", "no checkpoint"])
def test_verify_fails_for_a_source_that_is_none(copy, capsys, what):
    source = copy if what == "a folder" else copy / "harden.toml"
    assert main(["verify", str(copy / "hardened.safetensors"), "--source", str(source)]) == 2
    assert str(source) in capsys.readouterr().err or what == "no checkpoint"


@pytest.fixture(scope="module")
def probed(place, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("probed") / "whole"
    shutil.copytree(place, folder)
    assert main(["probe", str(folder / "probe.toml")]) == 0
    return folder


PROBE_FILES = ("job.json", "plan.json", "prompts.json", "looks.jsonl", "reference.safetensors")


def outcome_of_probe(folder: Path, probed: Path, capsys) -> str:
    """Continue a damaged probe: `equal` or `refused`; anything else fails."""
    code = main(["resume", str(folder / "probe")])
    said = capsys.readouterr().err
    if code:
        assert code == 2 and "Traceback" not in said
        return "refused"
    assert evaluations(folder) == evaluations(probed)
    return "equal"


@pytest.mark.reliability
def test_every_damage_to_a_probe_is_recovered_or_refused(probed, tmp_path, capsys):
    """Not the swap: there is one probe only."""
    found = {"equal": 0, "refused": 0}
    for name in PROBE_FILES:
        for kind in DAMAGES:
            folder = tmp_path / f"{name}-{kind}"
            shutil.copytree(probed, folder)
            damage(folder / "probe" / name, kind, folder / "none")
            found[outcome_of_probe(folder, probed, capsys)] += 1
            shutil.rmtree(folder)
    with capsys.disabled():
        print(f"damages of a probe: {found}")


def usage() -> tuple[float, int, int]:
    """RSS in MiB, threads, open files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = {line.split(":")[0]: line.split()[1] for line in lines if len(line.split()) > 1}
    return int(values["VmRSS"]) / 1024, int(values["Threads"]), len(os.listdir("/proc/self/fd"))


@pytest.mark.reliability
@pytest.mark.parametrize("command", ["harden", "probe"])
def test_twenty_jobs_in_one_process_leave_nothing_open(tmp_path, original, place, capsys, command):
    """Memory, threads and open files stay flat from the fifth to the twentieth."""
    seen = []
    for number in range(20):
        folder = tmp_path / str(number)
        if command == "harden":
            begin(folder, original)
        else:
            shutil.copytree(place, folder)
        assert main([command, str(folder / f"{command}.toml")]) == 0
        seen.append(usage())
        shutil.rmtree(folder)
    with capsys.disabled():
        print(f"{command}: MiB, threads, files after 5: {seen[4]}, after 20: {seen[-1]}")
    assert seen[-1][0] < 1.1 * seen[4][0]
    assert seen[-1][1] <= seen[4][1] and seen[-1][2] <= seen[4][2]
