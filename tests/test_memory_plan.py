"""The memory planner's peak against that of real runs, part by part."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from fakes_memory import SIDE, THREE, TINY, USER, hardening_plan

from fakes import tiny_unet
from resalign.backend.adapter.apply import AdaptedDenoiser
from resalign.backend.families import find_family
from resalign.backend.families.base.process import discrete_process, scaled_linear_alphas_cumprod
from resalign.backend.hardening.methods import read_plan
from resalign.backend.hardening.projection import largest_bases, retain_projection
from resalign.backend.hardening.setup import set_up
from resalign.backend.memory import plan as planner
from resalign.backend.memory.meta import MetaMemory
from resalign.backend.memory.plan import plan_memory
from resalign.backend.memory.trace import (
    Trace,
    measure_step,
    meta_model,
    random_data,
    representative,
    trace_step,
)
from resalign.backend.memory.tracker import LiveMemory
from resalign.backend.model.model import Model
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.durable import DistilConfig, EraseConfig
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.harm import HarmConfig
from resalign.backend.plan.methods import changes_all_weights
from resalign.backend.plan.solver import SolverConfig
from resalign.backend.plan.stages import Stage


@cache
def measured(plan: HardeningPlan) -> Trace:
    """One step with real tensors on the CPU, seen by the same tracker."""
    unet = tiny_unet(sample_size=SIDE, block_out_channels=(32, 32))
    model = Model(
        find_family("sd1"),
        unet,
        (),
        (),
        None,
        discrete_process(scaled_linear_alphas_cumprod()),
        128,
    )  # type: ignore[arg-type]
    return measure_step(model, plan, random_data(model, SIDE), LiveMemory("cpu"))


@cache
def predicted(plan: HardeningPlan) -> Trace:
    config = dict(tiny_unet(sample_size=SIDE, block_out_channels=(32, 32)).config)
    return trace_step(config, plan, family=find_family("sd1"), side=SIDE, dtype=torch.float32)


@pytest.fixture(autouse=True)
def unrounded(monkeypatch):
    """Sizes as they are: rounded up to CUDA's blocks, a tiny network's would be mostly rounding."""
    monkeypatch.setattr("resalign.backend.memory.trace.BLOCK", 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"micro_batch": 1},
        {"gradient_checkpointing": True},
        {"simulate": "adapter", "configurations_per_step": 1, "micro_batch": 2},
        {"simulate": "full", "proximal": True},
        {"solver": SolverConfig(method="richardson", gamma=1e-3), "retain_after_weight": 1.0},
        {"harm": HarmConfig(loss="redirect"), "fine_tunes": (replace(USER, method="dreambooth"),)},
        {"method": "redirect"},
        {"method": "project"},
        {"method": "distil", "micro_batch": 2},
        {"method": "distil", "distil": DistilConfig(batch=4, teacher="bf16")},
        {"users_at_once": 2, "configurations_per_step": 3, "fine_tunes": THREE},
    ],
    ids=lambda changes: ",".join(changes) or "plain",
)
def test_the_prediction_is_the_peak_of_a_real_run(changes):
    """Within 10 %, by part; both without the tensors' values deciding anything."""
    plan = hardening_plan(**changes)
    found, real = predicted(plan), measured(plan)
    assert found.weights == real.weights
    assert found.activations == pytest.approx(real.activations, rel=0.1)
    assert found.state == pytest.approx(real.state - aside(plan, real), rel=0.1)
    assert real.activations > 2**20


def aside(plan, real: Trace) -> int:
    """The original weights that wait in main memory, which is this test's device."""
    return real.weights if changes_all_weights(plan) else 0


@pytest.mark.slow
def test_a_closed_form_needs_no_graph_and_its_prediction_is_a_forward_pass():
    found, real = (of(hardening_plan(method="closed_form")) for of in (predicted, measured))
    assert found.peak == pytest.approx(real.peak, rel=0.1)
    assert found.activations < 0.3 * predicted(hardening_plan()).activations


def test_a_frozen_copy_and_moments_of_all_weights_are_part_of_the_state():
    """Two moments in fp32 and the copy beside the weights; half of it in bf16, none if it waits."""
    states = {
        (kind, waits): predicted(
            hardening_plan(
                method="distil", distil=DistilConfig(batch=4, teacher=kind, teacher_waits=waits)
            )
        )
        for kind, waits in (("fp32", False), ("bf16", False), ("bf16", True))
    }
    sizes = [found.state / found.weights for found in states.values()]
    assert sizes == pytest.approx([3.0, 2.5, 2.0], abs=0.1)


def test_the_moments_of_8_bit_adamw_are_two_bytes_for_each_weight():
    """Instead of eight, without bitsandbytes; tensors of fewer than 4,096 numbers keep theirs."""
    exact, rounded = (
        predicted(hardening_plan(method="distil", distil=DistilConfig(batch=4, optimiser=kind)))
        for kind in ("adamw", "adamw8bit")
    )
    sizes = [
        p.numel() for p in tiny_unet(sample_size=SIDE, block_out_channels=(32, 32)).parameters()
    ]
    large = [size for size in sizes if size >= 4096]
    saved = sum(6 * size - 8 * -(-size // 256) for size in large)
    assert exact.state - rounded.state == saved > exact.weights


def test_predictions_made_before_training_take_the_copys_place():
    """The peak is that of a copy which waits in main memory, whose steps need it now and then."""
    live, waits, stored = (
        predicted(hardening_plan(method="distil", distil=DistilConfig(batch=4, **settings)))
        for settings in ({}, {"teacher_waits": True}, {"stored_draws": 8})
    )
    assert stored.peak == pytest.approx(waits.peak, rel=0.01)
    assert live.peak - stored.peak == pytest.approx(live.weights, rel=0.05)


def test_an_average_of_the_weights_is_counted_as_they_are():
    plain, averaged = (
        predicted(hardening_plan(method="distil", distil=DistilConfig(batch=4, ema=decay)))
        for decay in (0.0, 0.9)
    )
    assert averaged.state - plain.state == plain.weights


def test_an_erasure_holds_the_matrices_of_its_largest_group():
    """As a real one does; within the plan's memory for them it takes less."""
    erase = EraseConfig(samples=4, batch=4)
    plan = hardening_plan(method="erase", erase=erase)
    found, real = predicted(plan), measured(plan)
    assert found.peak == pytest.approx(real.peak - aside(plan, real), rel=0.1)
    less = predicted(hardening_plan(method="erase", erase=replace(erase, memory=1e-5)))
    assert less.peak < found.peak


def test_an_erasure_by_patches_holds_wider_matrices():
    """As a real one does."""
    erase = EraseConfig(samples=2, batch=2, targets=("convolution",), convolutions="patches")
    plan = hardening_plan(method="erase", erase=erase)
    found, real = predicted(plan), measured(plan)
    assert found.peak == pytest.approx(real.peak - aside(plan, real), rel=0.1)
    narrow = replace(erase, convolutions="channels")
    assert predicted(hardening_plan(method="erase", erase=narrow)).peak < found.peak / 2


def test_resets_hold_a_gradient_and_its_squares_and_shrinking_nothing():
    """The memory of all weights is within 10 % of a real one; noise is drawn in main memory."""
    few = EraseConfig(samples=1, batch=1, how="fisher", targets=("attention",))
    every = replace(few, targets=())
    plan = hardening_plan(method="erase", erase=every)
    found, real = predicted(plan), measured(plan)
    assert found.peak == pytest.approx(real.peak - aside(plan, real), rel=0.1)
    shrink = predicted(hardening_plan(method="erase", erase=replace(every, how="shrink")))
    assert found.peak > shrink.peak
    assert predicted(hardening_plan(method="erase", erase=few)).peak < found.peak


def test_the_stages_of_a_plan_are_predicted_too(monkeypatch):
    """A short adapter stage after one of all weights needs what that one does."""
    asked = []
    zero = Trace(1, 1, 1)
    monkeypatch.setattr(planner, "_encoding", lambda *args: zero)
    monkeypatch.setattr(planner, "_step", lambda plan, *_: asked.append(plan.method) or (
        Trace(1, 5, 9) if plan.method == "distil" else zero))  # fmt: skip
    stages = (Stage(method="erase"), Stage(method="distil"))
    found = plan_memory(hardening_plan(before=stages), "sd1")
    assert sorted(asked) == ["distil", "erase", "resalign"] and found.state == 5


def test_the_bases_of_a_projection_are_at_most_what_is_reckoned():
    """One for each distinct input, as many as the projection itself finds, none of them larger."""
    unet = tiny_unet(sample_size=SIDE, block_out_channels=(32, 32))
    model = Model(
        find_family("sd1"),
        unet,
        (),
        (),
        None,
        discrete_process(scaled_linear_alphas_cumprod()),
        128,
    )  # type: ignore[arg-type]
    plan, data = hardening_plan(method="project"), random_data(model, SIDE)
    _, plan = read_plan(replace(plan, concepts=(Concept("concept", prompts=("bad",)),)))
    with AdaptedDenoiser(model, plan.adapter) as denoiser:
        projection = retain_projection(denoiser, set_up(denoiser, plan, data).feed, plan.projection)
        found = {id(basis): basis for basis in projection.bases.values()}.values()
        most = largest_bases(denoiser)
    assert len(most) == len(found)
    assert sum(basis.numel() for basis in found) <= sum(basis.numel() for basis in most)


def test_more_of_a_real_run_adds_nothing_to_its_peak(monkeypatch):
    """The representative step leaves out further inner steps and micro-batches."""
    plan = hardening_plan(micro_batch=1, simulate="adapter")
    short = representative(plan)
    assert short.fine_tunes[0].steps == 2 and short.retain_batch == 2
    expected = measured(plan)
    whole = replace(short, fine_tunes=(replace(USER, name="user", steps=6),), retain_batch=6)
    monkeypatch.setattr("resalign.backend.memory.trace.representative", lambda _: whole)
    assert measured(plan).peak == pytest.approx(expected.peak, rel=0.03)


@pytest.mark.slow
def test_each_setting_lowers_the_part_it_should():
    plain = predicted(hardening_plan())
    split = predicted(hardening_plan(micro_batch=1))
    recomputed = predicted(hardening_plan(gradient_checkpointing=True))
    assert split.activations < 0.35 * plain.activations
    assert recomputed.activations < 0.7 * plain.activations
    full = predicted(hardening_plan(simulate="full"))
    assert full.state > plain.state + 2 * plain.weights


@pytest.mark.slow
def test_exact_products_need_the_matrices_of_attention_twice_differentiated():
    solver = SolverConfig(method="richardson", gamma=1e-3, products="exact", batch=3)
    exact = predicted(hardening_plan(solver=solver))
    assert exact.activations > 2 * predicted(hardening_plan()).activations
    real = measured(hardening_plan(solver=solver))
    assert exact.peak == pytest.approx(real.peak, rel=0.1)


@pytest.mark.slow
def test_half_precision_follows_cudas_autocast():
    """Weights in float32 under bf16 are cast, and the graph keeps the copies: no gain."""
    config = dict(tiny_unet(sample_size=SIDE, block_out_channels=(32, 32)).config)
    plan = hardening_plan(precision="bf16", micro_batch=1)
    half, mixed = (
        trace_step(config, plan, family=find_family("sd1"), side=SIDE, dtype=dtype)
        for dtype in (torch.bfloat16, torch.float32)
    )
    assert half.weights == pytest.approx(mixed.weights / 2, rel=0.05)
    assert mixed.activations - half.activations > 0.25 * mixed.weights
    assert half.peak < predicted(hardening_plan(micro_batch=1)).peak


def test_the_tracker_counts_what_lives_and_no_more():
    """A storage counts once, views not at all, and what a graph keeps until the graph is gone."""
    with LiveMemory("cpu") as memory:
        x = torch.ones(1000, requires_grad=True)
        assert memory.live == 4000
        view = x[10:20].reshape(2, 5)
        y = (x * x).exp()  # keeps x twice, and its own result
        assert memory.live == 4000 + 4000 and memory.peak == 4000 * 3
        held = y.sum()
        del y, view
        assert memory.live == 8004
        del held
        assert memory.live == 4000


def test_remembered_shapes_are_those_that_pytorch_works_out():
    """The second call of an operation is answered from memory: sizes, strides, types, lists."""
    calls = (
        lambda t: t.transpose(0, 1) * 2.0,
        lambda t: torch.nn.functional.group_norm(t, 2),
        lambda t: torch.nn.functional.conv2d(t, t.new_empty(6, 4, 3, 3), padding=1, stride=2),
        lambda t: t.to(torch.bfloat16) + 1,
        lambda t: torch.where(t > 0, t, 1),
        lambda t: torch._foreach_norm([t, t])[1],
    )
    plain = torch.empty(2, 4, 8, 8)
    strided = torch.empty(8, 2, 4, 8).permute(1, 2, 3, 0)
    for call in calls:
        for tensor in (plain, strided):
            expected = call(tensor.to("meta"))
            with MetaMemory() as memory:
                for _ in range(2):
                    found = call(tensor.to("meta"))
            assert memory._known
            assert (found.shape, found.stride(), found.dtype) == (
                expected.shape, expected.stride(), expected.dtype,
            )  # fmt: skip


def test_numbers_of_tensors_without_values_let_the_code_go_on():
    with MetaMemory():
        assert float(torch.empty((), device="meta")) == 0.5
        assert int(torch.empty((), dtype=torch.long, device="meta")) == 0
        assert bool(torch.isfinite(torch.empty((), device="meta")).all()) is True


def test_a_model_of_meta_tensors_is_left_without_the_replaced_functions():
    from torch.nn import functional

    before = functional.linear, functional.scaled_dot_product_attention
    predicted(hardening_plan(precision="bf16"))
    assert (functional.linear, functional.scaled_dot_product_attention) == before
    assert meta_model(TINY["unet"], find_family("sd1"), SIDE, torch.float16).dtype == torch.float16


@pytest.mark.slow
def test_users_side_by_side_take_the_memory_of_all_of_them():
    plan = hardening_plan(configurations_per_step=3, fine_tunes=THREE)
    one, three = predicted(plan), predicted(replace(plan, users_at_once=3))
    assert one.activations < predicted(replace(plan, users_at_once=2)).activations
    assert 2 * one.activations < three.activations + three.state
