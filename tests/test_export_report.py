"""A probe's figures go into the header of what it measured, and of nothing else."""

import json
from dataclasses import replace

import pytest
from fakes_probe import fake_result
from fakes_worker import finished_demo_run

from resalign.backend.checkpoint.inspect import inspect
from resalign.backend.cli import main
from resalign.backend.demo.plans import CHECKPOINT
from resalign.backend.errors import ExportError
from resalign.backend.jobs.export import export_job
from resalign.backend.probe import results_io
from resalign.backend.probe.subjects import adapter_digest
from resalign.backend.run.folder import RunFolder


@pytest.fixture
def run(tmp_path):
    return finished_demo_run(tmp_path)


@pytest.fixture
def probe_of(tmp_path, monkeypatch):
    """A finished probe whose last model is a file, or is described by `method`."""

    def made(path, method="", *, known=True):
        folder = tmp_path / "probe"
        folder.mkdir(exist_ok=True)
        sha256 = inspect(path, hash=True).sha256 if path else ""
        result = fake_result()
        last = replace(result.models[-1], source="x.safetensors", sha256=sha256, method=method)
        result = replace(result, models=(*result.models[:-1], last), complete=True)
        monkeypatch.setattr(results_io, "read_probe", lambda folder: result)
        job = {"checkpoints": [{"name": last.name, "path": str(path)}]}
        (folder / "job.json").write_text(json.dumps(job if known else {}))
        return folder

    return made


def test_a_report_of_two_other_files_is_not_written_into_a_run(run, tmp_path, probe_of, capsys):
    """Any two files would do, and their verdict stood in the header and on the card."""
    output = tmp_path / "out.safetensors"
    for method in ("", "ResAlign"):
        folder = probe_of(CHECKPOINT, method)
        with pytest.raises(ExportError, match=r"was not exported from this run.*probe the run"):
            export_job(run, output, probe=folder)
    arguments = ["export", str(run), "--output", str(output), "--probe", str(folder)]
    assert main(arguments) == 2 and "was not exported from this run" in capsys.readouterr().err
    assert not output.exists()


def test_a_report_of_what_the_run_exported_is_written(run, tmp_path, probe_of):
    first = tmp_path / "first.safetensors"
    made = export_job(run, first)
    found = export_job(run, tmp_path / "second.safetensors", probe=probe_of(first, "ResAlign"))
    assert found.tensor_sha256 == made.tensor_sha256
    assert inspect(found.checkpoint).hardened["probe"]["model"] == "hardened"


def test_a_report_whose_file_has_changed_or_is_gone_is_refused(run, tmp_path, probe_of):
    first, output = tmp_path / "first.safetensors", tmp_path / "out.safetensors"
    export_job(run, first)
    folder = probe_of(first, known=False)
    with pytest.raises(ExportError, match="is not there to be compared"):
        export_job(run, output, probe=folder)
    folder = probe_of(first)
    with first.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    with pytest.raises(ExportError, match="is not the file that the probe measured"):
        export_job(run, output, probe=folder)
    first.unlink()
    with pytest.raises(ExportError, match="is not there to be compared"):
        export_job(run, output, probe=folder)


def test_a_report_of_the_run_is_written_and_of_another_run_refused(run, tmp_path, probe_of):
    own = adapter_digest(RunFolder.open(run, read_only=True).load_adapter()[0])
    folder = probe_of(None, f"adapter of a run, {own}")
    assert export_job(run, tmp_path / "one.safetensors", probe=folder).checkpoint.exists()
    folder = probe_of(None, f"adapter of a run, {'0' * 16}")
    with pytest.raises(ExportError, match="measured another run"):
        export_job(run, tmp_path / "two.safetensors", probe=folder)
