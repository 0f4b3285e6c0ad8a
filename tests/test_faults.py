"""Runs that are interrupted, killed, out of disk or damaged: recovered, or refused in one line.

Sweeps over every operation or callback are `reliability` tests; some of each are everyday ones.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from damage import DAMAGES, damage
from faulty_disk import fails_at

from fakes import encoded_data, tiny_model
from resalign.backend.adapter.lora import Adapter
from resalign.backend.errors import ResAlignError
from resalign.backend.hardening.run import harden
from resalign.backend.plan.adapter import AdapterConfig
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.fine_tune import FineTuneConfig
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.regulator import RegulatorConfig
from resalign.backend.plan.stages import Stage
from resalign.backend.run.folder import RunFolder

PLAN = HardeningPlan(
    concepts=(Concept("bad", prompts=("bad",)),),
    fine_tunes=(FineTuneConfig(name="fast", learning_rate=5e-2, steps=1, batch=1),),
    adapter=AdapterConfig(rank=1, targets=("cross_attention_kv",)),
    regulator=RegulatorConfig(enabled=False),
    outer_steps=2, warm_up_steps=1, learning_rate=1e-2, save_every=1, forget_batch=1,
    retain_batch=1,
)  # fmt: skip
FILES = ("plan.json", "machine.json", "kernels.json", "steps.jsonl", "state.safetensors",
         "adapter.safetensors", "run.lock", "run.pid")  # fmt: skip


class Stop(BaseException):
    """As a host's interrupt: no Exception."""


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def data():
    return encoded_data()


@pytest.fixture(scope="module")
def take(model, data):
    """Run the plan in a folder, or continue there."""

    def run(folder: Path | None, plan: HardeningPlan = PLAN, on_progress=lambda progress: None):
        return harden(model, plan, run_folder=folder, data=data, on_progress=on_progress)

    return run


@pytest.fixture(scope="module")
def whole(take):
    """The adapter of a run that nothing disturbed."""
    return take(None).adapter


@pytest.fixture(scope="module")
def stopped(take, tmp_path_factory) -> Path:
    """A run that was really interrupted in its second step."""
    folder = tmp_path_factory.mktemp("stopped") / "run"

    def stop(progress):
        if progress.step == 1 and progress.micro_step:
            raise Stop

    with pytest.raises(Stop):
        take(folder, on_progress=stop)
    return folder


@pytest.fixture(scope="module")
def finished(take, stopped, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    shutil.copytree(stopped, folder)
    take(folder)
    return folder


def same(one: Adapter, other: Adapter) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items()
    )


def stored(folder: Path) -> Adapter:
    return RunFolder.open(folder, read_only=True).load_adapter()[0]


def copied(folder: Path, place: Path) -> Path:
    return Path(shutil.copytree(folder, place / "run"))


def interrupt_at(take, folder: Path, number: int, plan: HardeningPlan = PLAN) -> bool:
    """Stop at callback `number`, from 1; return False if there are not so many."""
    calls = 0

    def stop(progress):
        nonlocal calls
        calls += 1
        if calls == number:
            raise Stop

    try:
        take(folder, plan, stop)
    except Stop:
        return True
    return False


def test_an_interrupt_at_the_last_callback_leaves_a_finished_run(take, whole, tmp_path):
    """Its state says that all steps are done: the adapter comes from it, read-only or resumed."""
    calls = []
    take(tmp_path / "counted", on_progress=calls.append)
    folder = tmp_path / "run"
    assert interrupt_at(take, folder, len(calls))
    assert not (folder / "adapter.safetensors").exists()
    run = RunFolder.open(folder, read_only=True)
    assert run.steps_saved == PLAN.outer_steps
    assert same(run.load_adapter()[0], whole)
    assert same(take(folder).adapter, whole)
    ours, theirs = folder / "adapter.safetensors", tmp_path / "counted" / "adapter.safetensors"
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.reliability
def test_an_interrupt_at_every_callback_resumes_to_equal_bytes(take, tmp_path):
    users = (replace(PLAN.fine_tunes[0], steps=3),)
    plan = replace(PLAN, outer_steps=4, save_every=2, fine_tunes=users)
    whole, number = take(None, plan).adapter, 1
    while interrupt_at(take, tmp_path / str(number), number, plan):
        assert same(take(tmp_path / str(number), plan).adapter, whole), number
        number += 1
    assert number > 10
    print(f"interrupted at each of {number - 1} callbacks: all equal")


def test_an_adapter_after_stages_is_rebuilt_from_their_states(take, tmp_path):
    staged = HardeningPlan(
        concepts=PLAN.concepts, before=(Stage(method="redirect", steps=1, rank=1),),
        fine_tunes=PLAN.fine_tunes, adapter=PLAN.adapter, outer_steps=1, warm_up_steps=1,
        learning_rate=1e-2, forget_batch=1, retain_batch=1,
    )  # fmt: skip
    result = take(tmp_path / "run", staged).adapter
    for path in (tmp_path / "run").glob("**/adapter.safetensors"):
        path.unlink()
    assert same(stored(tmp_path / "run"), result)
    (stage,) = (tmp_path / "run").glob("stages/*/state.safetensors")
    (tmp_path / "run" / "state.safetensors").write_bytes(stage.read_bytes())
    with pytest.raises(ResAlignError, match="belongs to another run"):
        stored(tmp_path / "run")


@pytest.mark.parametrize("kind", ["kill", "full"])
@pytest.mark.parametrize("at", [1, 8, 21, 34])
def test_a_fault_at_a_file_operation_resumes_to_equal_bytes(
    monkeypatch, take, whole, tmp_path, at, kind
):
    assert fails_at(monkeypatch, lambda: take(tmp_path / "run"), tmp_path, at, kind)
    assert same(take(tmp_path / "run").adapter, whole)
    assert same(stored(tmp_path / "run"), whole)


@pytest.mark.reliability
@pytest.mark.parametrize("kind", ["kill", "full"])
def test_a_fault_at_every_file_operation_resumes_to_equal_bytes(
    monkeypatch, take, whole, tmp_path, kind
):
    at = 1
    while fails_at(
        monkeypatch, partial(take, tmp_path / str(at) / "run"), tmp_path / str(at), at, kind
    ):
        assert same(take(tmp_path / str(at) / "run").adapter, whole), at
        assert same(stored(tmp_path / str(at) / "run"), whole), at
        at += 1
    assert at > 30
    print(f"{kind} at each of {at - 1} file operations: all equal")


def outcome(take, folder: Path, whole: Adapter) -> str:
    """Continue a damaged run: `equal` or `refused`; anything else fails."""
    try:
        found, message = take(folder).adapter, ""
    except ResAlignError as error:
        found, message = None, str(error)
    if found is None:
        assert "\n" not in message and str(folder) in message, message
        return "refused"
    assert same(found, whole) and same(stored(folder), whole)
    return "equal"


@pytest.mark.parametrize("kind", ["flip", "empty", "list", "folder"])
@pytest.mark.parametrize("name", ["state.safetensors", "steps.jsonl", "plan.json", "machine.json"])
def test_a_damaged_file_is_recovered_or_refused(
    take, whole, stopped, finished, tmp_path, name, kind
):
    folder = copied(stopped, tmp_path)
    damage(folder / name, kind, finished / name)
    outcome(take, folder, whole)


@pytest.mark.reliability
def test_every_damage_to_every_file_is_recovered_or_refused(
    take, whole, stopped, finished, tmp_path
):
    found = {"equal": 0, "refused": 0}
    for origin in (stopped, finished):
        for name in FILES:
            for kind in DAMAGES:
                if (origin / name).exists():
                    place = tmp_path / f"{origin.parent.name}-{name}-{kind}"
                    place.mkdir()
                    folder = copied(origin, place)
                    damage(
                        folder / name, kind, (stopped if origin is finished else finished) / name
                    )
                    found[outcome(take, folder, whole)] += 1
    print(f"damages: {found}")
    assert sum(found.values()) >= 150


def test_records_and_machine_come_back_from_the_state(take, whole, stopped, tmp_path):
    """The log of the steps is in the state too: deleting it changes nothing in an export."""
    folder = copied(stopped, tmp_path)
    before = RunFolder.open(folder, read_only=True).records()
    machine = json.loads((folder / "machine.json").read_text())
    for name in ("steps.jsonl", "machine.json", "kernels.json"):
        (folder / name).unlink()
    kept = RunFolder.open(folder, read_only=True)
    assert [r["harm"] for r in kept.records()] == [r["harm"] for r in before]
    with RunFolder.open(folder) as run:
        assert run.machine({"threads": 99})["threads"] == machine["threads"]
    assert same(take(folder).adapter, whole)


def test_another_runs_files_are_refused(take, stopped, tmp_path):
    """A state of the same shapes but of another plan's run."""
    with pytest.raises(Stop):
        take(tmp_path / "other", replace(PLAN, seed=5), on_progress=_stop_in_two)
    folder = copied(stopped, tmp_path)
    shutil.copy(tmp_path / "other" / "state.safetensors", folder / "state.safetensors")
    with pytest.raises(ResAlignError, match=r"state\.safetensors is damaged .*another run"):
        take(folder)


def _stop_in_two(progress):
    if progress.step == 1 and progress.micro_step:
        raise Stop


def test_a_folder_of_an_older_version_resumes(take, whole, stopped, tmp_path):
    """Without checksums, and without the records in the state."""
    from safetensors.torch import load_file, save_file

    folder = copied(stopped, tmp_path)
    for name in ("plan.json", "machine.json", "kernels.json"):
        plain = json.loads((folder / name).read_text())
        del plain["checksum"]
        (folder / name).write_text(json.dumps(plain))
    state = folder / "state.safetensors"
    tensors = load_file(state)
    del tensors["records"]
    header = {"step": 1, "values": {"regulator": {"lengths": {}, "idle": {}}, "warnings": []}}
    save_file(tensors, state, metadata={"resalign": json.dumps(header)})
    assert same(take(folder).adapter, whole)


def test_a_file_changed_by_hand_says_how_to_keep_the_change(take, stopped, tmp_path):
    folder = copied(stopped, tmp_path)
    text = (folder / "plan.json").read_text()
    (folder / "plan.json").write_text(text.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(ResAlignError, match=r"plan\.json was changed.*remove the line"):
        RunFolder.open(folder, read_only=True)
