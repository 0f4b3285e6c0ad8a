"""The program writes the same bytes as before, and continues the runs that it once began.

Every hardening method runs on the demo checkpoint with tiny settings, from the command line.
Adapter, LoRA, hardened checkpoint, step records and a probe's report are compared with the digests
in `data/golden.json`. `data/golden_report.json` is the report itself, to read a difference in.

    RESALIGN_GOLDEN=write pytest tests/test_byte_equality.py     store new digests and report
    RESALIGN_GOLDEN=folders pytest tests/test_byte_equality.py   make the old folders anew

Store new digests only where a change of results is meant, or on a machine of another kind from a
commit that is known to be good. The folders `data/old_*` were written by version 0.1.0 before its
modules moved: keep them, unless their format changes on purpose.

Left out before hashing, since they vary: seconds, the date of an export, versions of packages.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from golden import (
    DATA,
    WRITES,
    compare,
    compare_some,
    digest,
    json_lines,
    same_machine,
    tensor_file,
    without,
)

# All that this file takes from inside the package
from marks import slow

import resalign as ra
from resalign.backend.cli import main
from resalign.backend.cli.console import Console
from resalign.backend.demo.plans import CHECKPOINT

OLD_RUN, FINISHED_RUN, OLD_PROBE = DATA / "old_run", DATA / "old_finished_run", DATA / "old_probe"
MAKES_FOLDERS = os.environ.get("RESALIGN_GOLDEN") == "folders"
REPORT = DATA / "golden_report.json"
RECORDS, LOOKS = "steps.jsonl", "looks.jsonl"
EVERY_DAY = "shared"

WEAPON = {"name": "weapon", "prompts": ["a gun", "a sword"], "anchor": "a cat"}
KNIFE = {"name": "knife", "prompts": ["a knife"], "weight": 0.5}
FORGET = {"prompts": ["a gun", "a sword"], "images": 3, "sampling_steps": 2}
RETAIN = {"prompts": ["a cat", "a car", "a tree"], "images": 3, "sampling_steps": 2}
SMALL = {"rank": 1, "targets": ["cross_attention_kv"]}
LORA = {
    "name": "lora", "learning_rate": 1e-2, "steps": 2, "batch": 1, "rank": 2, "concept_share": 0.5,
}  # fmt: skip
DREAMBOOTH = {
    "name": "dreambooth", "method": "dreambooth", "learning_rate": 1e-3, "steps": 2,
    "optimiser": "sgd", "schedule": "cosine",
}  # fmt: skip
FULL = {"name": "full", "method": "full", "learning_rate": 1e-4, "steps": 2, "schedule": "linear"}
PLAN = {
    "concepts": [WEAPON],
    "forget_set": FORGET,
    "retain_set": RETAIN,
    "fine_tunes": [LORA],
    "adapter": {"rank": 2},
    "regulator": {"min_steps": 1, "max_steps": 3},
    "outer_steps": 6,
    "warm_up_steps": 4,
    "learning_rate": 5e-3,
    "forget_batch": 2,
    "retain_batch": 1,
    "save_every": 2,
    "seed": 7,
}

CASES = {  # name: what differs from PLAN
    EVERY_DAY: {
        "adapter": SMALL, "fine_tunes": [LORA, DREAMBOOTH], "retain_after_weight": 1.0,
        "save_every": 1,
    },
    "adapter": {
        "simulate": "adapter", "fine_tunes": [LORA, FULL], "configurations_per_step": 2,
        "adapter": {"rank": 2, "alpha": 1.0, "targets": ["attention", "convolution"]},
    },
    "full": {"simulate": "full"},
    "users at once": {
        "fine_tunes": [LORA, {**LORA, "name": "slow", "learning_rate": 1e-3}],
        "configurations_per_step": 2, "users_at_once": 2,
    },
    "richardson": {"solver": {"method": "richardson", "iterations": 2}, "proximal": True},
    "cg, exact": {"solver": {"method": "cg", "iterations": 2, "products": "exact"}},
    "redirect": {
        "method": "redirect", "concepts": [WEAPON, KNIFE], "micro_batch": 1,
    },
    "project": {"method": "project", "projection": {"samples": 4}, "final_learning_rate": 1e-3},
    "closed form": {"method": "closed_form", "adapter": {"rank": 4}},
    "before": {
        "before": [{"method": "closed_form", "rank": 2}, {"method": "redirect", "steps": 2}],
        "harm": {"loss": "redirect", "guidance": 2.0},
        "resilience_weight": {"start": 0.2, "end": 0.8, "shape": "sigmoid"},
    },
}  # fmt: skip

PROBE = {
    "concepts": [WEAPON],
    "forget_set": FORGET,
    "retain_set": RETAIN,
    "merges": [{"name": "half"}],
    "fine_tunes": [
        {
            "name": "training", "concept_share": 0.5, "steps": 3, "looks": [1, 3], "batch": 2,
            "rank": 2, "learning_rate": 5e-3,
        }
    ],
    "prompts": [
        {"kind": "unsafe", "prompts": ["a gun", "a sword"], "images": 2},
        {"kind": "retain", "prompts": ["a cat", "a car"]},
    ],
    "scorers": [{"name": "demo"}, {"name": "denoising"}],
    "generation": {"steps": 3, "batch": 4},
    "utility": {"drift_samples": 4},
    "pictures": 1,
}  # fmt: skip


def command(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def write_job(folder: Path, **changes) -> Path:
    """The plan file of one run; everything it writes goes into `folder`."""
    path = folder / "plan.json"
    job = {
        "checkpoint": str(CHECKPOINT), "output": "hardened.safetensors",
        "lora": "kohya.safetensors", "run_folder": "run", "device": "cpu",
        "plan": PLAN | changes,
    }  # fmt: skip
    path.write_text(json.dumps(job), "utf-8")
    return path


def write_probe_job(folder: Path, hardened: Path, output: Path) -> Path:
    path = folder / "probe.json"
    checkpoints = [
        {"name": "original", "path": str(CHECKPOINT)}, {"name": "hardened", "path": str(hardened)}
    ]  # fmt: skip
    job = {"checkpoints": checkpoints, "output": str(output), "device": "cpu", "plan": PROBE}
    path.write_text(json.dumps(job), "utf-8")
    return path


def digests_of(folder: Path) -> dict[str, str]:
    """Return the digest of every file that a finished run wrote, by its name."""
    run = folder / "run"
    command("lora", run, "--format", "diffusers", "--output", folder / "diffusers.safetensors")
    stages = sorted(run.glob("stages/*/" + RECORDS))
    return {
        **tensor_file("adapter", run / "adapter.safetensors"),
        **tensor_file("kohya", folder / "kohya.safetensors"),
        **tensor_file("diffusers", folder / "diffusers.safetensors"),
        **tensor_file("checkpoint", folder / "hardened.safetensors"),
        "records": digest([json_lines(path, "seconds") for path in [*stages, run / RECORDS]]),
    }


def report_of(folder: Path) -> dict:
    """A probe's report, without what varies and what older ones lack: that the run was a test."""
    text = (folder / "report.json").read_text("utf-8")
    report = json.loads(text.replace(": test run of 6 steps, ", ", "))
    (said,) = report.pop("warnings")
    assert said.startswith("hardened comes from a test run")
    return without({**report, "warnings": []}, "seconds", "versions", "weight_change")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == EVERY_DAY else pytest.mark.slow, id=name)
        for name in CASES
    ],
)
def test_hardening_writes_the_same_bytes(tmp_path, name):
    """Adapter, both LoRA formats, the exported checkpoint and the records of each method."""
    command("harden", write_job(tmp_path, **CASES[name]))
    compare(name, digests_of(tmp_path))


@pytest.mark.slow
def test_a_probe_reports_the_same(tmp_path):
    """Attacks, pictures, scores and summary of an original and a run that hardened it."""
    job = write_probe_job(tmp_path, old(FINISHED_RUN, tmp_path / "run"), tmp_path / "probe")
    command("probe", job)
    report = report_of(tmp_path / "probe")
    if WRITES:
        text = json.dumps(report, indent=1, ensure_ascii=False)
        REPORT.write_text(text + "\n", "utf-8")
    if same_machine():  # as values first: a failure shows them
        assert report == json.loads(REPORT.read_text("utf-8"))
    compare("probe", {"report": digest(report)})


@pytest.mark.parametrize("by", slow("command", "program"))
def test_an_old_run_resumes(tmp_path, by):
    """A run of version 0.1.0, stopped after step 3 of 6, ends like one never interrupted."""
    run = old(OLD_RUN, tmp_path / "run")
    records = (run / RECORDS).read_bytes()
    encoded = sorted(path.name for path in (run / "cache").iterdir())
    if by == "command":
        command("resume", run)
        found = digests_of(tmp_path)
    else:
        result = ra.resume(ra.load_checkpoint(CHECKPOINT), run)
        assert len(result.records) == 6
        found = tensor_file("adapter", run / "adapter.safetensors")
    assert (run / RECORDS).read_bytes().startswith(records)
    assert len(json_lines(run / RECORDS)) == 6
    assert sorted(path.name for path in (run / "cache").iterdir()) == encoded
    compare_some(EVERY_DAY, found)


def test_an_old_finished_run_exports(tmp_path):
    """Its adapter, once read, gives the same LoRA and checkpoint."""
    run = old(FINISHED_RUN, tmp_path / "run")
    command("lora", run, "--output", tmp_path / "kohya.safetensors")
    command("export", run, "--output", tmp_path / "hardened.safetensors")
    compare_some(EVERY_DAY, digests_of(tmp_path))


@pytest.mark.slow
def test_an_old_probe_resumes(tmp_path):
    """A probe of version 0.1.0, stopped in the middle, ends in the report of a whole one.

    In all but last bits of `image_distance_*`: version 0.1.0 compared channels-last pictures, which
    float64 sums up in another order than the contiguous ones of today. It also kept its flagged
    pictures as they were drawn, so their names lack the end that blurred ones have.
    """
    old(FINISHED_RUN, tmp_path / "run")
    probe = old(OLD_PROBE, tmp_path / "probe")
    looks = (probe / LOOKS).read_bytes()
    command("resume", probe)
    assert (probe / LOOKS).read_bytes().startswith(looks)
    report = report_of(probe)
    if same_machine():
        assert_close(same_names(report), same_names(json.loads(REPORT.read_text("utf-8"))))
    compare("probe, resumed", {"report": digest(report)})


def same_names(report: dict) -> dict:
    """A report whose pictures are named alike, kept blurred or not."""
    return json.loads(json.dumps(report).replace("-blurred.png", ".png"))


def make_old_folders(tmp_path, monkeypatch):
    """A run stopped after step 3, the same run finished, and a probe of it stopped on its way."""
    run, probe = tmp_path / "run", tmp_path / "probe"
    stop_when(monkeypatch, lambda told: told.stage == "harden" and told.step == 3)
    assert main(["harden", str(write_job(tmp_path, **CASES[EVERY_DAY]))]) == 130
    keep(run, OLD_RUN, tmp_path)
    monkeypatch.undo()
    command("resume", run)
    keep(run, FINISHED_RUN, tmp_path)
    shutil.rmtree(FINISHED_RUN / "cache")

    def half_done(_told) -> bool:
        return (probe / LOOKS).exists() and len(json_lines(probe / LOOKS)) == 5

    stop_when(monkeypatch, half_done)
    assert main(["probe", str(write_probe_job(tmp_path, run, probe))]) == 130
    keep(probe, OLD_PROBE, tmp_path)


if MAKES_FOLDERS:
    test_old_folders_are_made = make_old_folders


def old(kept: Path, target: Path) -> Path:
    """A copy of a folder kept in `data`; paths in its job lead to the copy and the checkpoint."""
    shutil.copytree(kept, target)
    job = json.loads((kept / "job.json").read_text("utf-8"))
    places = {"{checkpoint}": str(CHECKPOINT), "{folder}": str(target.parent)}
    (target / "job.json").write_text(json.dumps(replaced(job, places)), "utf-8")
    return target


def keep(folder: Path, target: Path, place: Path) -> None:
    """The way back: without the lock, and without paths of this machine."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("run.lock"))
    job = json.loads((folder / "job.json").read_text("utf-8"))
    places = {str(CHECKPOINT): "{checkpoint}", str(place): "{folder}"}
    job = {key: value for key, value in job.items() if key not in ("checksum", "begun_by")}
    text = json.dumps(replaced(job, places), indent=2)
    (target / "job.json").write_text(text + "\n", "utf-8")


def replaced(value, places: dict[str, str]):
    """A JSON value whose strings have been searched for each of these."""
    if isinstance(value, dict):
        return {key: replaced(item, places) for key, item in value.items()}
    if isinstance(value, list):
        return [replaced(item, places) for item in value]
    if isinstance(value, str):
        for before, after in places.items():
            value = value.replace(before, after)
    return value


def stop_when(monkeypatch, reached) -> None:
    """Interrupt the command line as Ctrl-C does, at the first progress told for which it holds."""

    def progress(_console, told, /) -> None:
        if reached(told):
            raise KeyboardInterrupt

    monkeypatch.setattr(Console, "progress", progress)


def assert_close(found, expected, where: str = "report") -> None:
    """Equal JSON values, apart from the last bits of numbers that are not whole."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_close(found[key], value, f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for place, value in enumerate(expected):
            assert_close(found[place], value, f"{where}[{place}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-12, abs=0), where
    else:
        assert found == expected, where
