"""Memory Plan: the prediction of a MODEL, settings that fit; and Harden Model's own forecast."""

import importlib
import sys
from dataclasses import replace

import fakes_bridge
import fakes_card
import pytest
import torch
from fakes_comfy import Interrupted
from fakes_nodes import Bench

from resalign.backend.errors import ConfigError
from resalign.backend.memory.plan import MemoryPlan
from resalign.backend.numerics.byte_sizes import GIB
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.solver import SolverConfig

CAT = (Concept("cat", ("a cat",)),)


@pytest.mark.slow
def test_what_is_predicted_is_this_model_as_the_bridge_loads_it(monkeypatch, tmp_path):
    """Its own layers, the denoiser in the plan's type, text encoders in float32."""
    bridge, _ = fakes_bridge.bridge(monkeypatch, tmp_path)
    memory = importlib.import_module("resalign.nodes.memory")
    monkeypatch.setattr("resalign.backend.memory.trace.BLOCK", 1)
    model, clip, vae = fakes_bridge.host_parts()
    plan = HardeningPlan(concepts=CAT, resolution=64)
    for precision, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        asked = []
        with torch.inference_mode():  # as ComfyUI's executor has it
            found = memory.predicted(model, replace(plan, precision=precision), None, asked.append)
        with bridge.to_backend(model, clip, vae, denoiser_dtype=kind) as backend:
            tensors = [*backend.denoiser.parameters(), *backend.denoiser.buffers()]
            assert found.weights == sum(t.numel() * t.element_size() for t in tensors)
        assert asked == ["as it is"] and found.fits is None
    assert bridge.resolution_of(model) == 512


@pytest.mark.parametrize("there", [False, True])
def test_the_base_is_rounded_only_where_that_can_be_had(monkeypatch, tmp_path, there):
    fakes_bridge.bridge(monkeypatch, tmp_path)
    memory = importlib.import_module("resalign.nodes.memory")
    monkeypatch.setattr(memory, "find_spec", lambda name: object() if there else None)
    asked = {}
    monkeypatch.setattr(
        "resalign.backend.memory.plan.plan_memory", lambda *_, **options: asked.update(options)
    )
    model, _, _ = fakes_bridge.host_parts()
    memory.predicted(model, HardeningPlan(concepts=CAT, resolution=64), 1.0, lambda _: None)
    assert asked["quantized"] is there


@pytest.fixture
def bench(monkeypatch, tmp_path):
    made = Bench(monkeypatch, tmp_path)
    made.memory = importlib.import_module("resalign.nodes.memory")
    return made


@pytest.fixture
def predict(bench, monkeypatch):
    """Stands in for the planner: a plan of 10 GiB, 6 with exact products given up and bf16."""
    calls = []

    def predicted(model, plan, budget, on_try):
        calls.append(budget)
        on_try("as it is")
        whole = MemoryPlan(plan=plan, weights=4 * GIB, state=GIB, activations=4 * GIB, encoding=0,
                           margin=GIB, changes={}, words=("about 10.0 GiB",))  # fmt: skip
        whole = replace(whole, asked=whole.parts)
        if budget is None:
            return whole
        whole = replace(whole, budget=round(budget * GIB))
        if whole.fits:
            return replace(whole, words=(*whole.words, "fits as it is"))
        changed = replace(plan, precision="bf16", micro_batch=2,
                          solver=replace(plan.solver, products="finite_difference"))  # fmt: skip
        changes = {"precision": "bf16", "micro_batch": 2, "solver.products": "finite_difference"}
        found = replace(whole, plan=changed, weights=2 * GIB, activations=2 * GIB, changes=changes)
        said = "fits with these changes:" if found.fits else "nothing fits"
        return replace(found, words=(*whole.words, said))

    monkeypatch.setattr(bench.memory, "predicted", predicted)
    return calls


def ask(bench, **inputs):
    with torch.inference_mode():
        return bench.memory.MemoryPlan.execute("MODEL", **inputs)


def gpu(monkeypatch, gib):
    management = sys.modules["comfy.model_management"]
    monkeypatch.setattr(management, "get_torch_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(management, "get_total_memory", lambda device: gib * GIB)
    fakes_card.put_in(monkeypatch, total=gib, free=gib)


def test_settings_come_out_with_what_makes_them_fit(bench, predict):
    """Those that were set stay, also within what is changed; Harden Model takes them."""
    solver = SolverConfig(method="richardson", gamma=0.5, products="exact")
    given = bench.types.SettingsValue("paper", {"seed": 7, "solver": solver})
    found = ask(bench, settings=given, budget=8.0)
    out, text = found.args
    assert predict == [8.0] and out.preset == "paper"
    assert out.changes["solver"] == replace(solver, products="finite_difference")
    assert (out.changes["seed"], out.changes["precision"], out.changes["micro_batch"]) == (
        7, "bf16", 2,
    )  # fmt: skip
    plan = sys.modules["resalign.nodes.plan"].build_plan(CAT, out)
    assert (plan.precision, plan.micro_batch, plan.solver.gamma) == ("bf16", 2, 0.5)
    assert found.ui == {"text": [text]}
    assert "as it is" in text and "changed" in text and "not measured on a GPU" in text
    assert bench.state["status"] == "done"


def test_what_fits_is_left_as_it_is(bench, predict):
    out, text = ask(bench, budget=12.0).args
    assert (out.preset, dict(out.changes)) == ("durable", {}) and "fits as it is" in text


def test_without_a_budget_it_is_what_the_gpu_has_and_none_on_the_cpu(bench, predict, monkeypatch):
    ask(bench)
    gpu(monkeypatch, 12)
    ask(bench)
    assert predict == [None, 12]


def test_where_nothing_fits_the_queue_stops_before_any_work_or_goes_on_if_told(bench, predict):
    with pytest.raises(ConfigError, match="nothing fits"):
        ask(bench, budget=2.0)
    assert (bench.state["status"], bench.state["message"]) == ("failed", "nothing fits")
    out, text = ask(bench, budget=2.0, when_nothing_fits="go on").args
    assert out.changes["precision"] == "bf16" and "nothing fits" in text


def test_cancel_is_heard_between_two_trials(bench, predict):
    bench.host.interrupt = True
    with pytest.raises(Interrupted):
        ask(bench, budget=8.0)
    assert bench.state["status"] == "stopped"


@pytest.mark.parametrize(("room", "lines"), [(None, 3), (24, 3), (8, 4)])
def test_harden_model_says_what_it_will_take(bench, predict, monkeypatch, room, lines):
    """A warning, no refusal; on the CPU nobody waits for a prediction."""
    if room:
        gpu(monkeypatch, room)
    bench.run()
    card, arithmetic, expected, *warning = bench.state["remarks"]
    assert 3 + len(warning) == lines and arithmetic.startswith("precision   fp32")
    if room:
        assert predict and set(predict) == {None}
        assert card == f"device      RTX 3090, {room}.0 GiB, {room}.0 GiB free"
        assert expected == "expected    10.0 GiB at the peak (predicted)"  # the time has passed
    else:
        assert not predict and card.startswith("device      cpu")
    assert not warning or "Memory Plan" in warning[0]
    assert bench.state["status"] == "done"
