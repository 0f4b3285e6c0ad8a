"""What a careful reader of the probe found wrong, and what must hold in its place."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from fakes_checkpoint import write_tiny_checkpoint

from resalign.backend.cli import main
from resalign.backend.cli.parser import build_parser
from resalign.backend.cli.probing import probe_job_of
from resalign.backend.config import Concept
from resalign.backend.errors import RunError
from resalign.backend.probe.folder import ProbeFolder, read_job, save_job
from resalign.backend.probe_config import ProbeCheckpoint, ProbeJob, ProbePlan
from resalign.backend.probe_results import ModelInfo

CONCEPT = Concept("bad", prompts=("a bad thing",))


def job(folder: Path, **changes) -> ProbeJob:
    return ProbeJob(
        checkpoints=(ProbeCheckpoint(name="original", path="a.safetensors"),), output=str(folder),
        plan=ProbePlan(concepts=(CONCEPT,), **changes),
    )  # fmt: skip


def test_a_refused_probe_leaves_the_folder_as_it_was(tmp_path):
    """The job of a probe is not overwritten by another that is then turned away."""
    models = [ModelInfo(name="original", sha256="1")]
    mine, other = job(tmp_path), job(tmp_path, pictures=3)
    save_job(mine, models)
    ProbeFolder.begin(tmp_path, mine.plan, models).close()
    before = (tmp_path / "job.json").read_bytes()
    with pytest.raises(RunError, match="another probe"):
        save_job(other, models)
    with pytest.raises(RunError, match="another probe"):
        save_job(mine, [ModelInfo(name="original", sha256="2")])
    assert (tmp_path / "job.json").read_bytes() == before
    save_job(mine, models)
    assert read_job(tmp_path) == mine


def test_a_hardening_run_is_not_written_into(tmp_path, capsys):
    """`--output` at the folder of a hardening run is refused, and the run can still resume."""
    checkpoint = write_tiny_checkpoint(tmp_path / "a.safetensors", dtype=torch.float32)
    run = tmp_path / "a.run"
    run.mkdir()
    (run / "job.json").write_text('{"checkpoint": "a.safetensors"}')
    (run / "plan.json").write_text('{"outer_steps": 3}')
    for _ in range(2):
        code = main(["probe", str(checkpoint), "--concept", "weapons", "--output", str(run)])
        assert code == 2
        assert "hardening run" in capsys.readouterr().err
        assert (run / "job.json").read_text() == '{"checkpoint": "a.safetensors"}'
        (run / "plan.json").unlink(missing_ok=True)


def test_pictures_of_different_looks_never_share_a_file(tmp_path):
    """Names that differ in signs or case alone, or are very long, keep their own pictures."""
    names = ["a-b", "a_b", "a b", "A_B", "x" * 300, "x" * 301, "猫" * 200]
    with ProbeFolder.begin(tmp_path, ProbePlan(concepts=(CONCEPT,)), []) as folder:
        files = [
            folder.save_picture(torch.zeros(3, 8, 8, dtype=torch.uint8), name, name, "0")
            for name in names
        ]
    assert len({file.lower() for file in files}) == len(names)
    assert all((tmp_path / file).is_file() for file in files)


def arguments(*given: str) -> argparse.Namespace:
    return build_parser().parse_args(
        ["probe", "a.safetensors", "--concept", "weapons", "--preset", "none", *given]
    )


def test_one_lora_may_be_given_at_several_strengths():
    """Attacks of the command line get names of their own, whatever the files are called."""
    plan = probe_job_of(
        arguments(
            "--lora", "x/a.safetensors", "--lora", "x/a.safetensors:0.5", "--lora",
            "y/a.safetensors:0.5", "--lora", "before.safetensors", "--merge", "x/m.safetensors",
            "--merge", "y/m.safetensors",
        )
    ).plan  # fmt: skip
    assert [attack.name for attack in plan.loras] == [
        "a", "a at 0.5", "a at 0.5 (2)", "before at 1",
    ]  # fmt: skip
    assert [attack.name for attack in plan.merges] == ["0.5 of m", "0.5 of m (2)"]


def test_a_path_may_hold_a_colon():
    """`C:\\x.safetensors:0.5` is a path and a strength, without a strength it is a path."""
    plan = probe_job_of(arguments("--lora", "C:\\x.safetensors:0.5,C:\\y.safetensors")).plan
    first, second = plan.loras[0].loras
    assert first.path.endswith("C:\\x.safetensors") and first.strength == 0.5
    assert second.path.endswith("C:\\y.safetensors") and second.strength == 1
