"""Runs that change all weights, in several stages: killed, out of disk, damaged.

A change of all weights is kept in the adapter's file alone: the states hold the trained weights.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from damage import DAMAGES, damage
from fakes_comfy import install, load_nodes
from faulty_disk import fails_at

from fakes import encoded_data, tiny_model
from resalign.backend.adapter.dense import DenseAdapter
from resalign.backend.errors import ResAlignError
from resalign.backend.hardening.run import harden
from resalign.backend.plan.adapter import AdapterConfig
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.durable import DistilConfig, EraseConfig
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.stages import Stage
from resalign.backend.run.folder import RunFolder
from resalign.backend.run.sealed import write_json
from resalign.scripts.resalign_webui.runs import read_runs

DURABLE = HardeningPlan(
    concepts=(Concept("bad", prompts=("bad",)),), method="distil",
    before=(Stage(method="erase"), Stage(method="redirect", steps=1, rank=1)),
    erase=EraseConfig(samples=2, batch=2, ratio=1.5, targets=("attention",)),
    distil=DistilConfig(batch=2, learning_rate=1e-3, warm_up_steps=1),
    adapter=AdapterConfig(rank=1, targets=("cross_attention_kv",)), outer_steps=2,
    warm_up_steps=0, learning_rate=1e-2, save_every=1, forget_batch=1, retain_batch=1,
)  # fmt: skip
STAGES = ("stages/1-erase/", "stages/2-redirect/", "")
FILES = ("plan.json", "machine.json", "kernels.json", "steps.jsonl", "state.safetensors",
         "adapter.safetensors")  # fmt: skip


class Stop(BaseException):
    """As a host's interrupt: no Exception."""


@pytest.fixture(scope="module")
def take():
    model, data = tiny_model(), encoded_data()

    def run(folder: Path | None, on_progress=lambda progress: None) -> DenseAdapter:
        found = harden(model, DURABLE, run_folder=folder, data=data, on_progress=on_progress)
        assert isinstance(found.adapter, DenseAdapter)
        return found.adapter

    return run


@pytest.fixture(scope="module")
def finished(take, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    take(folder)
    return folder


@pytest.fixture(scope="module")
def stopped(take, tmp_path_factory) -> Path:
    """Really interrupted after the first step of the distillation."""
    folder = tmp_path_factory.mktemp("stopped") / "run"

    def stop(progress):
        if progress.stage == "harden" and progress.step == 1:
            raise Stop

    with pytest.raises(Stop):
        take(folder, stop)
    return folder


@pytest.fixture(scope="module")
def whole(finished) -> DenseAdapter:
    return stored(finished)


def stored(folder: Path) -> DenseAdapter:
    found = RunFolder.open(folder, read_only=True).load_adapter()[0]
    assert isinstance(found, DenseAdapter)
    return found


def same(one: DenseAdapter, other: DenseAdapter) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items()
    )


def copied(folder: Path, place: Path) -> Path:
    return Path(shutil.copytree(folder, place / "run"))


def test_nothing_disturbs_two_runs(take, finished, whole):
    assert same(take(None), whole)
    assert RunFolder.open(finished, read_only=True).finished


@pytest.mark.parametrize("kind", ["kill", "full"])
@pytest.mark.parametrize("at", [30, 75])
def test_a_fault_at_a_file_operation_resumes_to_equal_bytes(
    monkeypatch, take, whole, tmp_path, at, kind
):
    assert fails_at(monkeypatch, lambda: take(tmp_path / "run"), tmp_path, at, kind)
    assert same(take(tmp_path / "run"), whole) and same(stored(tmp_path / "run"), whole)


@pytest.mark.reliability
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["kill", "full"])
def test_a_fault_at_every_file_operation_resumes_to_equal_bytes(
    monkeypatch, take, whole, tmp_path, kind
):
    at = 1
    while fails_at(monkeypatch, lambda: take(tmp_path / "run"), tmp_path, at, kind):
        assert same(take(tmp_path / "run"), whole), at
        assert same(stored(tmp_path / "run"), whole), at
        shutil.rmtree(tmp_path / "run")
        at += 1
    assert at > 80
    print(f"durable, {kind} at each of {at - 1} file operations: all equal")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", ["delete", "flip"])
def test_a_change_of_all_weights_is_made_again_from_the_state(
    take, whole, finished, tmp_path, kind, stage
):
    """Its file is not finished without it, and resuming does not take a step."""
    folder = copied(finished, tmp_path)
    damage(folder / stage / "adapter.safetensors", kind, folder / "none")
    assert RunFolder.open(folder, read_only=True).finished is bool(stage)
    steps = []
    assert same(take(folder, lambda progress: steps.append(progress.stage)), whole)
    assert "harden" not in steps and same(stored(folder), whole)


def outcome(take, folder: Path, whole: DenseAdapter) -> str:
    """Continue a damaged run: `equal` or `refused`; anything else fails."""
    try:
        found, message = take(folder), ""
    except ResAlignError as error:
        found, message = None, str(error)
    if found is None:
        assert "\n" not in message and str(folder) in message, message
        return "refused"
    assert same(found, whole) and same(stored(folder), whole)
    return "equal"


@pytest.mark.reliability
@pytest.mark.timeout(1800)
def test_every_damage_to_every_file_is_recovered_or_refused(
    take, whole, stopped, finished, tmp_path
):
    found = {"equal": 0, "refused": 0}
    for origin, other in ((stopped, finished), (finished, stopped)):
        for name in (stage + file for stage in STAGES for file in FILES):
            for kind in DAMAGES if (origin / name).exists() else ():
                folder = copied(origin, tmp_path)
                swapped = other / name if "/" not in name else origin / Path(name).name
                damage(folder / name, kind, swapped)
                found[outcome(take, folder, whole)] += 1
                shutil.rmtree(folder)
    print(f"durable, damages: {found}")
    assert sum(found.values()) >= 350


def test_comfyui_and_the_tab_continue_a_run_whose_last_file_is_missing(
    finished, take, whole, tmp_path, monkeypatch
):
    """All steps are done and the change of all weights is not there: it is not finished."""
    install(monkeypatch, tmp_path)
    stored_run = load_nodes(monkeypatch, "runs").stored_run
    about = {"checkpoint": "", "patched": False, "family": "sd1", "key_map": {}, "samples": {}}
    folder = copied(finished, tmp_path / "runs")
    write_json(folder / "source.json", about)
    plan = RunFolder.open(folder, read_only=True).plan
    assert stored_run(folder, plan) is not None
    (run,) = read_runs(folder.parent)
    assert run.finished and run.label == "run | finished"
    (folder / "adapter.safetensors").unlink()
    assert stored_run(folder, plan) is None
    (run,) = read_runs(folder.parent)
    assert not run.finished and run.label == "run | not finished: step 2 of 2"
    assert same(take(folder), whole) and read_runs(folder.parent)[0].finished
