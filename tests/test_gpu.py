"""Every code path that differs on CUDA, on tiny networks. The GPU marker keeps them out elsewhere.

RESALIGN_GPU_DEVICE=cpu rehearses those that can run on a CPU: `pytest -m gpu tests/test_gpu.py`.
"""

from __future__ import annotations

import gc
import os
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from fakes import encoded_data, tiny_model
from resalign.backend.adapter.apply import AdaptedDenoiser
from resalign.backend.errors import ConfigError
from resalign.backend.families.base.conditioning import onto
from resalign.backend.hardening.run import harden
from resalign.backend.jobs.device import (
    DeviceMemoryError,
    explaining_full_memory,
    free_memory,
    resolve_device,
)
from resalign.backend.jobs.opening import decide, opening_lines
from resalign.backend.jobs.spill import card_memory, spilled
from resalign.backend.memory.prediction import MemoryPlan
from resalign.backend.model.kernels import applied, candidates, choose_kernels, optimiser_options
from resalign.backend.model.model import Model
from resalign.backend.model.precision import best_precision
from resalign.backend.numerics.byte_sizes import GIB
from resalign.backend.plan.adapter import AdapterConfig
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.durable import DistilConfig, EraseConfig
from resalign.backend.plan.fine_tune import FineTuneConfig
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.kernels import KernelConfig
from resalign.backend.plan.regulator import RegulatorConfig
from resalign.backend.plan.solver import SolverConfig
from resalign.backend.plan.stages import Stage
from resalign.backend.run.folder import RunFolder

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for deterministic algorithms
DEVICE = torch.device(os.environ.get("RESALIGN_GPU_DEVICE", "cuda"))
CUDA = DEVICE.type == "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(CUDA and not torch.cuda.is_available(), reason="no CUDA device here"),
]
only_cuda = pytest.mark.skipif(not CUDA, reason="a CPU has nothing of the kind")


def plan_of(**changes) -> HardeningPlan:
    users = tuple(
        FineTuneConfig(name=f"u{n}", learning_rate=1e-3, steps=2, batch=2) for n in range(2)
    )
    plan = HardeningPlan(
        concepts=(Concept("weapons", prompts=("a gun",)),), fine_tunes=users,
        configurations_per_step=2, outer_steps=4, warm_up_steps=1, forget_batch=2, retain_batch=2,
        learning_rate=1e-2, regulator=RegulatorConfig(enabled=False), precision="fp32",
    )  # fmt: skip
    return replace(plan, **changes)


def model_there(dtype: torch.dtype = torch.float32) -> Model:
    model = tiny_model(dtype=dtype)
    model.denoiser.to(DEVICE)
    model.process = model.process.to(DEVICE)
    return model


def data_of(plan: HardeningPlan):
    return encoded_data((plan.concepts[0].name,))


def run(plan: HardeningPlan, **options):
    return harden(model_there(), plan, data=data_of(plan), **options)


@pytest.fixture(scope="module")
def exact():
    """Find the adapter of the plan in fp32 on the CPU."""
    plan = plan_of()
    return harden(tiny_model(), plan, data=data_of(plan)).adapter


def distance(found, expected) -> float:
    """Return the relative distance of two adapters as weight changes."""
    apart = sum(
        (found.delta(m).cpu() - expected.delta(m).cpu()).square().sum() for m in expected.modules
    )
    size = sum(expected.delta(m).cpu().square().sum() for m in expected.modules)
    return float((apart / size).sqrt())


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


# With TF32, ten bits of each factor, 0.021 was measured on an H200
def test_fp32_finds_the_adapter_of_a_cpu(exact):
    assert distance(run(plan_of()).adapter, exact) < 0.05


def test_fp32_without_tf32_finds_exactly_the_adapter_of_a_cpu():
    plan = plan_of(solver=SolverConfig(method="richardson", iterations=2))  # without TF32
    expected = harden(tiny_model(), plan, data=data_of(plan)).adapter
    assert distance(run(plan).adapter, expected) < 0.02


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast_finds_nearly_the_adapter_of_fp32(exact, precision):
    assert distance(run(plan_of(precision=precision)).adapter, exact) < 0.5


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_adapter_stays_in_fp32_under_autocast(precision):
    adapter = run(plan_of(precision=precision)).adapter
    assert {tensor.dtype for tensor in adapter.tensors.values()} == {torch.float32}


def test_the_same_seed_and_card_give_the_same_adapter(deterministic):
    one, two = run(plan_of()).adapter, run(plan_of()).adapter
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


def test_the_same_seed_and_card_give_nearly_the_same_adapter_whatever_the_algorithms():
    assert distance(run(plan_of()).adapter, run(plan_of()).adapter) < 0.05


def test_users_side_by_side_find_what_they_find_in_turn(exact):
    assert distance(run(plan_of(users_at_once=2)).adapter, exact) < 0.05


@pytest.mark.parametrize(
    "changes", [{"gradient_checkpointing": True}, {"micro_batch": 1}], ids=lambda c: next(iter(c))
)
def test_less_memory_finds_the_same(exact, changes):
    assert distance(run(plan_of(**changes)).adapter, exact) < 0.05


def test_a_run_resumes_on_the_same_card(tmp_path, deterministic):
    def stop(progress):
        if progress.step == 2:
            raise KeyboardInterrupt

    plan = plan_of()
    with pytest.raises(KeyboardInterrupt):
        run(plan, run_folder=tmp_path / "run", on_progress=stop)
    with RunFolder.open(tmp_path / "run", read_only=True) as folder:
        assert 0 < folder.steps_saved < plan.outer_steps
    resumed, whole = run(plan, run_folder=tmp_path / "run").adapter, run(plan).adapter
    assert all(torch.equal(resumed.tensors[name], whole.tensors[name]) for name in whole.tensors)


@only_cuda
def test_weights_of_fp16_are_hardened_in_the_precision_of_the_card(exact):
    plan = plan_of(precision="auto")  # as `load_checkpoint` puts a file of fp16 onto a card
    adapter = harden(model_there(torch.float16), plan, data=data_of(plan)).adapter
    assert distance(adapter, exact) < 0.5


def test_nothing_stays_on_the_device_after_a_run():
    plan = plan_of()
    model, data = model_there(), data_of(plan)
    before = {name: tensor.clone() for name, tensor in model.denoiser.state_dict().items()}
    harden(model, plan, data=data)  # libraries allocate workspaces in their first run
    gc.collect()
    held = torch.cuda.memory_allocated(DEVICE) if CUDA else 0
    harden(model, plan, data=data)
    gc.collect()
    assert (torch.cuda.memory_allocated(DEVICE) if CUDA else 0) == held
    after = model.denoiser.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_channels_last_computes_the_same():
    model = model_there()
    latents = torch.randn(2, 4, 8, 8, device=DEVICE)
    texts = torch.randn(2, 5, 16, device=DEVICE)
    times = torch.tensor([3, 700], device=DEVICE)
    there = candidates(KernelConfig(memory_format="channels_last"), DEVICE, True, True)
    expected = model.denoiser(latents, times, texts, return_dict=False)[0]
    with applied(model.denoiser, there[0]):
        assert model.denoiser.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
        found = model.denoiser(latents, times, texts, return_dict=False)[0]
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)


@only_cuda
def test_kernels_are_chosen_by_measurement():
    model, plan = model_there(), plan_of()
    latents = torch.randn(2, 4, 8, 8, device=DEVICE)
    texts, times = torch.randn(2, 5, 16, device=DEVICE), torch.tensor([3, 700], device=DEVICE)

    def work():
        model.denoiser(latents, times, texts, return_dict=False)

    chosen = choose_kernels(model.denoiser, plan.kernels, work)
    assert len(chosen.milliseconds) >= 2 and chosen.name in chosen.milliseconds
    assert chosen.device == torch.cuda.get_device_name(DEVICE)


@only_cuda
@pytest.mark.parametrize(
    ("solver", "expected"),
    [(SolverConfig(), True), (SolverConfig(method="richardson"), False)],  # by differences
)
def test_tf32_is_used_where_the_solve_bears_it_and_put_back(solver, expected):
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    during = []

    def look(progress):
        during.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))

    found = run(plan_of(solver=solver), on_progress=look)
    assert found.kernels.tf32 is expected and during[-1] == (expected, expected)
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


@only_cuda
def test_a_card_decides_about_every_auto():
    capability = torch.cuda.get_device_capability(DEVICE)
    expected = "bf16" if capability >= (8, 0) else "fp16" if capability >= (7, 0) else "fp32"
    plan = plan_of(precision="auto")
    assert best_precision(plan, DEVICE) == expected
    assert run(plan).plan.precision == expected
    part = 2 * GIB  # of the first candidate

    def predict(asked):
        size = part if asked.users_at_once == 2 else 0
        return MemoryPlan(
            plan=asked, weights=size, state=0, activations=0, encoding=0, margin=0, changes={}
        )

    found, needed = decide(plan, str(DEVICE), predict)
    free = free_memory(str(DEVICE))
    assert needed is not None and free is not None
    assert found.users_at_once == (2 if free >= part else 1) and found.micro_batch == 0
    assert len(opening_lines(found, str(DEVICE), needed)) == 3


@only_cuda
def test_nothing_is_spilled_on_a_card_with_room():
    began = card_memory(str(DEVICE))
    held = torch.empty(1 << 28, dtype=torch.uint8, device=DEVICE)
    now = card_memory(str(DEVICE))
    assert began is not None and now is not None and spilled(began, now) == 0
    assert now.held >= held.numel()


@only_cuda
def test_adamw_is_fused():
    model = model_there()
    with AdaptedDenoiser(model, AdapterConfig()) as denoiser:
        optimiser = torch.optim.AdamW(denoiser.theta.values(), **optimiser_options(DEVICE))
        assert optimiser.defaults["fused"]


@only_cuda
def test_batches_reach_the_device_through_pinned_memory(monkeypatch):
    pinned = []
    original = torch.Tensor.pin_memory
    monkeypatch.setattr(
        torch.Tensor, "pin_memory", lambda t, *a: pinned.append(t.shape) or original(t, *a)
    )
    batch = torch.randn(4, 4, 8, 8)
    there = onto(batch, DEVICE)
    assert pinned == [batch.shape] and torch.equal(there.cpu(), batch)


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_quantised_base_is_hardened_and_put_back(quantization):
    if not find_spec("bitsandbytes"):
        pytest.skip("bitsandbytes is not installed")
    plan = plan_of(precision="bf16", quantization=quantization)
    model = model_there(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.denoiser.state_dict().items()}
    result = harden(model, plan, data=data_of(plan))
    after = model.denoiser.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert any(tensor.abs().max() > 0 for tensor in result.adapter.tensors.values())


@only_cuda
def test_a_full_card_is_explained():
    with (
        pytest.raises(DeviceMemoryError, match=r"micro_batch = 1.*resalign check --budget"),
        explaining_full_memory("cuda"),
    ):
        torch.empty(1 << 50, dtype=torch.uint8, device=DEVICE)


@only_cuda
def test_auto_takes_the_card_and_an_absent_one_is_refused():
    assert resolve_device("auto") == "cuda"
    with pytest.raises(ConfigError, match="choose a lower number"):
        resolve_device(f"cuda:{torch.cuda.device_count()}")


def test_erasing_and_distilling_find_nearly_the_weights_of_a_cpu():
    plan = plan_of(
        method="distil", before=(Stage(method="erase"),), outer_steps=3, warm_up_steps=0,
        erase=EraseConfig(samples=16, batch=4), distil=DistilConfig(batch=4, learning_rate=1e-3),
    )  # fmt: skip
    expected = harden(tiny_model(), plan, data=data_of(plan)).adapter
    found = run(plan).adapter
    names = sorted(expected.tensors)
    assert sorted(found.tensors) == names
    apart = sum((found.tensors[n].cpu() - expected.tensors[n]).square().sum() for n in names)
    size = sum(expected.tensors[n].square().sum() for n in names)
    assert float((apart / size).sqrt()) < 0.02
