"""Precision `auto`: what each device makes of it, and what a run keeps."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from test_harden import FAST, run
from test_harden import plan as plan_of

from fakes import encoded_data, tiny_model
from resalign.backend.errors import RunError
from resalign.backend.hardening.run import harden
from resalign.backend.model import precision as module
from resalign.backend.model.precision import best_precision, decided_on, with_precision
from resalign.backend.numerics.tf32 import tf32
from resalign.backend.plan.auto import ON_CPU, decided, decided_as, undecided
from resalign.backend.plan.file import from_json, plan_hash, to_json
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.solver import SolverConfig
from resalign.backend.run.folder import RunFolder

DIFFERENCES = SolverConfig(method="richardson")
EXACT = SolverConfig(method="richardson", products="exact")


def plan(**changes) -> HardeningPlan:
    small = {"outer_steps": 2, "warm_up_steps": 1, "fine_tunes": (FAST,), "save_every": 1}
    return plan_of(**(small | changes))


@pytest.fixture
def card(monkeypatch):
    """Set the compute capability of a card that is not there."""

    def has(capability: tuple[int, int]) -> None:
        monkeypatch.setattr(
            module.torch.cuda, "get_device_capability", lambda device=None: capability
        )

    return has


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"), ((7, 0), "fp16"), ((6, 1), "fp32")],
)
def test_a_card_gets_the_quickest_arithmetic_that_it_has(card, capability, expected):
    card(capability)
    assert best_precision(plan(), "cuda") == expected
    assert with_precision(plan(), "cuda:0").precision == expected


@pytest.mark.parametrize("device", ["cpu", "mps", "meta"])
def test_other_devices_compute_in_fp32(device):
    assert best_precision(plan(), device) == "fp32"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"solver": DIFFERENCES}, "fp32"),
        ({"solver": EXACT}, "bf16"),
        ({"solver": DIFFERENCES, "fine_tunes": ()}, "bf16"),  # nothing is solved for
        ({"solver": DIFFERENCES, "method": "redirect"}, "bf16"),
    ],
)
def test_differences_of_gradients_need_all_digits(card, changes, expected):
    card((8, 6))
    assert best_precision(plan(**changes), "cuda") == expected


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_precision_that_the_plan_names_stays(card, precision):
    card((8, 6))
    assert with_precision(plan(precision=precision), "cuda").precision == precision


def test_an_undecided_plan_is_found_by_the_hash_of_before():
    assert set(undecided(plan())) == set(ON_CPU)
    assert plan_hash(plan()) == plan_hash(plan(**ON_CPU)) != plan_hash(plan(precision="bf16"))
    assert from_json(HardeningPlan, to_json(plan())) == plan()
    assert decided_as(plan(micro_batch=2), plan(precision="bf16", users_at_once=1)) == plan(
        precision="bf16", users_at_once=1, micro_batch=2
    )


def test_a_run_folder_keeps_what_the_device_decided(tmp_path):
    run(plan(), tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "plan.json").read_text("utf-8"))
    assert {name: stored[name] for name in ON_CPU} == ON_CPU


def test_a_run_continues_in_the_precision_that_it_began_with(tmp_path, monkeypatch):
    """A run begun in bf16, as on a card, stays in it where `auto` would choose fp32."""

    def stop(progress):
        if progress.step == 1 and progress.values:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "best_precision", lambda plan, device: "bf16")
    with pytest.raises(KeyboardInterrupt):
        run(plan(), tmp_path / "run", stop)
    monkeypatch.undo()
    found = run(plan(), tmp_path / "run")
    assert found.plan.precision == "bf16" and len(found.records) == plan().outer_steps
    with pytest.raises(RunError, match="precision: 'bf16', not 'fp32'"):
        run(plan(precision="fp32"), tmp_path / "run")


def test_a_folder_made_before_the_device_is_known_is_decided_by_it(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "best_precision", lambda plan, device: "bf16")
    with RunFolder.create(tmp_path / "run", plan()) as folder:
        assert folder.plan.precision == "auto"
        harden(tiny_model(), plan(), run_folder=folder, data=encoded_data())
        assert folder.plan == decided(plan(), precision="bf16")
    with RunFolder.open(tmp_path / "run", plan(), read_only=True) as folder:
        assert folder.plan.precision == "bf16" and folder.finished


def test_an_undecided_plan_trains_like_one_that_says_fp32():
    one = harden(tiny_model(), plan(), data=encoded_data()).adapter
    other = harden(tiny_model(), replace(plan(), **ON_CPU), data=encoded_data()).adapter
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    assert decided_on(plan(), "cpu") == replace(plan(), **ON_CPU)


def flags() -> tuple:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    new = [getattr(part, "fp32_precision", None) for part in (matmul, getattr(cudnn, "conv", None))]
    return matmul.allow_tf32, cudnn.allow_tf32, torch.get_float32_matmul_precision(), *new


@pytest.mark.parametrize("on", [True, False])
def test_tf32_is_set_for_a_block_and_put_back_after_an_error(on):
    before = flags()

    def fail_inside() -> None:
        with tf32(on):
            assert flags()[:2] == (on, on)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert flags() == before


def test_tf32_stays_as_it_is_where_nothing_is_asked():
    before = flags()
    with tf32(None):
        assert flags() == before


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="PyTorch 2.9 and later"
)
def test_a_host_that_uses_the_new_names_gets_its_own_setting_back():
    """PyTorch refuses to read the old names then."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        with tf32(False):
            assert matmul.fp32_precision == "ieee"
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before
    assert torch.get_float32_matmul_precision() == "highest"
