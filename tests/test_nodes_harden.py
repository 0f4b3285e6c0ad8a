"""Harden Model: what it gives, what it keeps, and what an interrupt costs."""

import json
import math
import types

import pytest
import torch
from fakes_comfy import Interrupted
from fakes_nodes import Bench

from resalign.backend.run.records import StepRecord


@pytest.fixture
def bench(monkeypatch, tmp_path):
    return Bench(monkeypatch, tmp_path)


class StoppedHereError(Exception): ...


def stop(*args, **options):
    raise StoppedHereError


def record(step, harm):
    return StepRecord(
        step=step, harm=harm, retain=0.0, resilience_weight=0.0, retain_weight=0.0,
        learning_rate=1e-4, gradient_norm=1.0, seconds=0.1,
    )  # fmt: skip


def test_gives_a_patched_model_a_lora_a_loss_map_and_the_run(bench):
    model, lora, losses, run = bench.run().args

    assert model == "MODEL hardened"
    assert bench.put_on == [lora]
    assert all(name.startswith("diffusion_model.ldm.") for name in lora)
    assert len(losses["loss"]) == 4 and len(run.records) == 4
    assert not any(tensor.is_inference() for tensor in lora.values())
    assert (run.folder / "adapter.safetensors").is_file()
    assert run.folder.is_relative_to(bench.base / "output" / "resalign" / "runs")
    assert bench.state["status"] == "done"


@pytest.mark.parametrize(
    ("precision", "simulate", "dtype"),
    [("fp32", "shared", torch.float32), ("bf16", "shared", torch.bfloat16),
     ("bf16", "full", torch.float32)],
)  # fmt: skip
def test_the_denoiser_comes_in_the_type_that_the_plan_is_reckoned_with(
    bench, monkeypatch, precision, simulate, dtype
):
    """All weights that a user trains cannot be in half precision."""
    monkeypatch.setattr("resalign.backend.hardening.run.harden", stop)
    with pytest.raises(StoppedHereError):
        bench.run(precision=precision, simulate=simulate)
    assert bench.denoiser_dtype == dtype


def test_a_finished_run_is_there_at_once_and_builds_no_network(bench):
    first = bench.run().args
    again = bench.run().args
    assert bench.built == 1
    assert bench.state["message"].startswith("kept from an earlier run: Test run, not safe to pub")
    assert bench.state["verdict"] == "doubtful"
    assert [step for step, _ in bench.state["curves"]["harm"]] == [2, 3, 4], "averages of two"
    assert all(torch.equal(first[1][name], again[1][name]) for name in first[1])
    bench.run(steps=5)
    assert bench.built == 2


def test_an_interrupt_in_an_inner_loop_is_passed_on_and_costs_no_finished_step(bench, monkeypatch):
    whole = bench.run().args[1]
    for path in sorted((bench.base / "output").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    calls = bench.live.Live.__call__

    def cancelled(live, progress):
        if progress.stage == "harden" and progress.step == 2 and progress.micro_step == 2:
            bench.host.interrupt = True
        calls(live, progress)

    monkeypatch.setattr(bench.live.Live, "__call__", cancelled)
    with pytest.raises(Interrupted):
        bench.run()
    assert bench.state["status"] == "stopped"
    assert bench.state["message"].startswith("stopped after step 2 of 4. All that is done is kept")
    assert "with the same settings" in bench.state["message"]

    monkeypatch.setattr(bench.live.Live, "__call__", calls)
    resumed = bench.run().args[1]
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_an_interrupt_in_the_last_preview_leaves_a_finished_run(bench, monkeypatch):
    """All steps are saved then, and the adapter is not: queueing again gives it."""
    whole = bench.run().args[1]
    for path in sorted((bench.base / "output").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()

    def cancelled(live, image, caption, *, flagged, step=0):
        if step == 4:
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(bench.live.Live, "picture", cancelled)
        with pytest.raises(Interrupted):
            bench.run(preview_every=2)
    assert bench.state["message"].startswith("stopped after step 4 of 4. ")
    again = bench.run(preview_every=2).args[1]
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.slow
def test_previews_change_nothing_and_are_blurred(bench):
    plain = bench.run().args[1]
    for path in sorted((bench.base / "output").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    drawn = bench.run(preview_every=2).args[1]

    assert all(torch.equal(plain[name], drawn[name]) for name in plain)
    pictures = bench.state["pictures"]
    assert [p["flagged"] for p in pictures] == [True, False, True, False]
    assert [p["caption"] for p in pictures[::2]] == ["original: a pistol", "hardened: a pistol"]


def test_the_file_is_found_in_the_graph_where_the_loader_does_not_say(bench):
    (bench.base / "models/checkpoints").mkdir()
    file = bench.base / "models/checkpoints/a.safetensors"
    file.touch()
    prompt = {
        "1": {"inputs": {"ckpt_name": file.name}},
        "2": {"inputs": {"model": ["1", 0], "lora_name": "b.safetensors"}},
        "5": {"inputs": {"model": ["2", 0], "clip": ["9", 0]}},
        "7": {"inputs": {"model": ["8", 0]}}, "8": {"inputs": {"model": ["7", 0]}},
        "9": {"inputs": {"ckpt_name": "gone.safetensors"}},
    }  # fmt: skip

    def found(node):
        hidden = types.SimpleNamespace(prompt=prompt, unique_id=node)
        return bench.harden.source_file("MODEL", "automatic", hidden)

    assert found("5") == file
    assert found("7") is None and found("9") is None and found("none") is None
    assert bench.harden.source_file("MODEL", "automatic") is None


def test_a_failure_is_told_and_passed_on(bench, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("no room")

    monkeypatch.setattr("resalign.backend.hardening.run.harden", fail)
    with pytest.raises(RuntimeError, match="no room"):
        bench.run()
    assert (bench.state["status"], bench.state["message"]) == ("failed", "no room")


@pytest.mark.slow
def test_the_state_of_a_node_is_json(bench):
    bench.run(preview_every=2)
    json.dumps(bench.state, allow_nan=False)
    assert set(bench.state["curves"]) == {"harm", "harm after", "retain"}


@pytest.mark.parametrize("losses", [[], [1.0], [2.0, 2.0], [0.0, 0.0], [1.0, math.nan, 3.0]])
def test_a_loss_map_can_always_be_drawn(bench, losses):
    """Core's node divides by the range and by the length."""
    found = bench.harden.loss_map([record(n, loss) for n, loss in enumerate(losses, 1)])["loss"]
    assert len(found) >= 2 and max(found) > min(found)
    assert all(math.isfinite(loss) for loss in found)


def test_a_run_begun_in_another_precision_is_found_by_an_undecided_plan(bench, monkeypatch):
    """A finished run of a card, or of an older version, is there at once on any device."""
    first = bench.run(steps=2, precision="bf16").args
    again = bench.run(steps=2, precision="auto").args
    assert bench.built == 1 and again[3].folder == first[3].folder
    assert again[3].plan.precision == "bf16"
    bench.run(steps=2, precision="fp32")
    assert bench.built == 2
