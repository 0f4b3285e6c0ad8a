"""The recipe as a whole: what it optimises, determinism, stopping, resuming, diverging."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fakes import PoisonedSet, encoded_data, tiny_model
from resalign.backend.errors import DivergenceError, RunError
from resalign.backend.hardening.run import harden
from resalign.backend.plan.adapter import AdapterConfig
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.fine_tune import FineTuneConfig
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.harm import HarmConfig
from resalign.backend.plan.regulator import RegulatorConfig
from resalign.backend.plan.solver import SolverConfig
from resalign.backend.run.folder import RunFolder

FAST = FineTuneConfig(name="fast", learning_rate=5e-2, steps=2, batch=2, concept_share=0.5)
SLOW = FineTuneConfig(
    name="slow", learning_rate=1e-2, steps=3, batch=2, optimiser="sgd", schedule="cosine"
)


def plan(**changes) -> HardeningPlan:
    settings = {
        "concepts": (Concept("bad", prompts=("bad",)),),
        "fine_tunes": (FAST, SLOW),
        "adapter": AdapterConfig(rank=2),
        "outer_steps": 6,
        "warm_up_steps": 2,
        "learning_rate": 1e-2,
        "harm": HarmConfig(cap=4.0),  # an untrained network's error is about 1
        "regulator": RegulatorConfig(enabled=False),
        "save_every": 2,
    }
    return HardeningPlan(**(settings | changes))


def run(hardening_plan: HardeningPlan, folder: Path | None = None, on_progress=None):
    options = {"on_progress": on_progress} if on_progress else {}
    return harden(tiny_model(), hardening_plan, run_folder=folder, data=encoded_data(), **options)


def same(one, other) -> bool:
    return one.adapter.tensors.keys() == other.adapter.tensors.keys() and all(
        torch.equal(tensor, other.adapter.tensors[name])
        for name, tensor in one.adapter.tensors.items()
    )


def test_unlearning_raises_the_error_on_the_concept_and_keeps_the_rest():
    """L_harm falls towards −cap while L_retain stays small."""
    result = run(plan(outer_steps=40, warm_up_steps=40, learning_rate=2e-2))
    first, last = result.records[0], result.records[-1]
    assert last.harm < first.harm - 0.02
    assert last.retain < 0.1 * abs(last.harm)


@pytest.mark.slow
@pytest.mark.parametrize("simulate", ["shared", "adapter", "full"])
@pytest.mark.parametrize("method", ["first_order", "minres"])
def test_every_way_of_simulating_runs_and_is_recorded(simulate, method):
    """q, inner steps, weight move, residual: all in the record, warm-up has none."""
    solver = SolverConfig(method=method, iterations=4, gamma=0.1)
    fast = FAST if simulate != "full" else replace(FAST, learning_rate=1e-3)
    result = run(
        plan(simulate=simulate, solver=solver, configurations_per_step=2, fine_tunes=(fast, SLOW))
    )
    warm_up, last = result.records[0], result.records[-1]
    assert warm_up.simulations == () and warm_up.resilience_weight == 0
    assert {s.name for s in last.simulations} == {"fast", "slow"}
    for simulation in last.simulations:
        assert simulation.move > 0
        assert 0 < simulation.q < 2
        assert simulation.steps == (2 if simulation.name == "fast" else 3)
        if method == "minres":
            assert simulation.residual is not None and simulation.residual < 1
            assert simulation.curvature is not None and simulation.curvature > 0
            assert simulation.products > 0


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes():
    """Two runs end with identical adapters; another seed does not."""
    assert same(run(plan()), run(plan()))
    assert not same(run(plan()), run(plan(seed=1)))


def test_the_model_is_left_as_it_was():
    """Hardening returns an adapter; the network it was found on is bit-identical."""
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.denoiser.state_dict().items()}
    harden(model, plan(simulate="full"), data=encoded_data())
    after = model.denoiser.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


class Stop(BaseException):
    """As a host's interrupt: no Exception."""


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 1, 3, 5])
def test_cancelling_at_a_micro_step_keeps_the_last_step_and_resumes_to_the_same_bytes(
    tmp_path, step
):
    """Whatever the callback raises comes out; the run continues to the uninterrupted result."""

    def stop(progress):
        if progress.step == step and (step < 2 or progress.micro_step == 2):
            raise Stop

    with pytest.raises(Stop):
        run(plan(), tmp_path / "run", stop if step else _stop_at_once)
    continued = run(plan(), tmp_path / "run")
    assert [record.step for record in continued.records] == [1, 2, 3, 4, 5, 6]
    assert same(continued, run(plan()))


def test_a_stop_is_heard_before_each_gradient_of_the_solve():
    """Products of the solve ask too: beyond the inner steps themselves, at the last one."""
    heard = []

    def listen(progress):
        if progress.micro_total and progress.micro_step == progress.micro_total:
            heard.append(progress.step)

    result = run(plan(solver=SolverConfig(method="richardson", gamma=1e-3)), None, listen)
    for record in result.records:
        products = sum(s.products for s in record.simulations)
        own = len(record.simulations)
        assert heard.count(record.step - 1) >= own + products
    assert any(s.products for record in result.records for s in record.simulations)


@pytest.mark.slow
def test_cancelling_between_two_steps_keeps_the_one_just_done(tmp_path):
    """A host draws a preview then, so that is where most interrupts fall."""

    def stop(progress):
        if progress.step == 2 and progress.values:
            raise Stop

    with pytest.raises(Stop):
        run(plan(save_every=5), tmp_path / "run", stop)
    with RunFolder.open(tmp_path / "run", read_only=True) as folder:
        assert folder.steps_saved == 2
    assert same(run(plan(save_every=5), tmp_path / "run"), run(plan(save_every=5)))


def _stop_at_once(progress):
    raise Stop


def _in_a_process(lines: str) -> int:
    """Run lines of Python in a process of its own, as a user would; returns its exit status."""
    script = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n" + textwrap.dedent(
        """
        import conftest, os, signal, torch
        from pathlib import Path
        from test_harden import plan, run
        """
    )
    command = [sys.executable, "-c", script + textwrap.dedent(lines)]
    return subprocess.run(command, env=os.environ, timeout=140).returncode


def _kill(folder: Path) -> None:
    """Leave a run in `folder`, on one thread, that was killed between two saves."""
    status = _in_a_process(
        f"""
        def kill(progress):
            if progress.step == 3 and progress.micro_step == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        torch.set_num_threads(1)
        run(plan(), {str(folder)!r}, kill)
        """
    )
    assert status == -signal.SIGKILL
    with RunFolder.open(folder, read_only=True) as opened:
        saved = opened.load_state()
    assert saved is not None and saved[0] == 2
    assert not (folder / "adapter.safetensors").exists()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no such signal")
def test_a_killed_run_resumes_to_the_same_bytes(tmp_path):
    """After kill -9, here or in another process, even one on two threads: all that an unbroken
    run writes, here or elsewhere, is byte for byte the same."""
    _kill(tmp_path / "killed")
    for name in ("resumed", "resumed elsewhere", "resumed on two threads"):
        shutil.copytree(tmp_path / "killed", tmp_path / name)
    run(plan(), tmp_path / "whole")
    run(plan(), tmp_path / "resumed")
    status = _in_a_process(
        f"""
        here = Path({str(tmp_path)!r})
        torch.set_num_threads(1)
        run(plan(), here / "resumed elsewhere")
        run(plan(), here / "whole elsewhere")
        torch.set_num_threads(2)
        run(plan(), here / "resumed on two threads")
        sys.exit(torch.get_num_threads())
        """
    )
    assert status == 2  # the caller's threads are given back
    runs = [folder for folder in tmp_path.iterdir() if folder.name != "killed"]
    assert len(runs) == 5
    for file in ("adapter.safetensors", "state.safetensors"):
        digests = {f.name: hashlib.sha256((f / file).read_bytes()).hexdigest() for f in runs}
        assert len(set(digests.values())) == 1, (file, digests)
    steps = {folder.name: _steps(folder) for folder in runs}
    assert all(found == steps["whole"] for found in steps.values()), steps


def _steps(folder: Path) -> list[dict]:
    """The records, without how long each step took."""
    with RunFolder.open(folder, read_only=True) as opened:
        return [{k: v for k, v in record.items() if k != "seconds"} for record in opened.records()]


@pytest.mark.slow
def test_a_run_that_goes_on_where_numbers_round_differently_says_so(tmp_path):
    """Another PyTorch or other vector instructions: once among the warnings, and the run ends."""
    with pytest.raises(Stop):
        run(plan(), tmp_path / "run", _stop_at_once)
    machine = tmp_path / "run" / "machine.json"
    kept = json.loads(machine.read_text()) | {"torch": "1.13.0"}
    del kept["checksum"]  # as its message says to do after a change by hand
    machine.write_text(json.dumps(kept))
    for _ in range(2):
        warnings = run(plan(), tmp_path / "run").warnings
        assert len(warnings) == 1 and "torch 1.13.0, now" in warnings[0]


@pytest.mark.slow
def test_the_regulators_state_is_part_of_what_resumes(tmp_path):
    """Inner steps that had grown stay grown after an interruption."""
    regulated = plan(
        regulator=RegulatorConfig(low=0.0, high=0.01, factor=1.5, min_steps=1, max_steps=9),
        outer_steps=8,
        fine_tunes=(SLOW,),
    )

    def stop(progress):
        if progress.step == 6 and progress.micro_step == 1:
            raise Stop

    with pytest.raises(Stop):
        run(regulated, tmp_path / "run", stop)
    continued = run(regulated, tmp_path / "run")
    steps = [s.steps for record in continued.records for s in record.simulations]
    assert steps == [3, 4, 7, 9, 9, 9]  # 3 · 1.5 = 4.5, 6.75, 10.1 → 9
    assert same(continued, run(regulated))


@pytest.mark.slow
def test_a_users_who_never_relapses_is_a_warning_that_names_the_knob():
    """Nothing to harden against: said once per `patience` runs in a row."""
    idle = plan(
        fine_tunes=(replace(SLOW, learning_rate=1e-9),),
        regulator=RegulatorConfig(enabled=False, patience=3),
        outer_steps=8,
    )
    result = run(idle)
    assert len(result.warnings) == 2
    assert "learning_rate" in result.warnings[0] and "slow" in result.warnings[0]


def test_a_divergence_stops_with_the_state_before_it_saved(tmp_path):
    """NaN in the outer step names the knobs; the folder holds the last good θ."""
    hardening_plan = plan(learning_rate=0.9, gradient_norm=0, outer_steps=40, warm_up_steps=40,
                          retain_weight=1e6, harm=HarmConfig(cap=1e6))  # fmt: skip
    model, data = tiny_model(), encoded_data(poison_after=3)
    with pytest.raises(DivergenceError, match="learning_rate"):
        harden(model, hardening_plan, run_folder=tmp_path / "run", data=data)
    with RunFolder.open(tmp_path / "run", read_only=True) as folder:
        saved = folder.load_state()
    assert saved is not None and saved[0] == 3
    assert all(bool(torch.isfinite(tensor).all()) for tensor in saved[1].values())


@pytest.mark.parametrize(("part", "named"), [("forget", "harm"), ("retain", "retain")])
def test_a_divergence_names_what_is_not_finite(part, named):
    """The loss whose data turned to NaN at step 2, and with it the gradient."""
    data = encoded_data()
    poisoned = PoisonedSet(data.retain if part == "retain" else data.forget["bad"], 1)
    changes = {"retain": poisoned} if part == "retain" else {"forget": {"bad": poisoned}}
    with pytest.raises(
        DivergenceError, match=f"^outer step 2: {named}, gradient is not "
    ) as raised:
        harden(tiny_model(), plan(), data=replace(data, **changes))
    assert "lower learning_rate (0.01) or harm.cap, raise retain_weight" in str(raised.value)


@pytest.mark.slow
def test_a_user_whose_run_diverges_is_named_with_the_knobs_of_that_run():
    wild = replace(SLOW, name="wild", learning_rate=0.9, steps=30, prior_weight=1e30,
                   method="dreambooth")  # fmt: skip
    with pytest.raises(DivergenceError, match="harm after wild") as caught:
        run(plan(fine_tunes=(wild,), warm_up_steps=0))
    assert "lower the learning_rate or steps of that fine-tuning configuration" in str(caught.value)


def test_another_plan_does_not_continue_a_run(tmp_path):
    """The fields that differ are named."""
    run(plan(), tmp_path / "run")
    with pytest.raises(RunError, match="seed"):
        run(plan(seed=3), tmp_path / "run")


@pytest.mark.slow
def test_redirect_moves_the_concept_towards_its_anchor():
    """The redirect loss falls, and its q counts from the base model's loss."""
    redirect = plan(
        harm=HarmConfig(loss="redirect"), outer_steps=30, warm_up_steps=25, learning_rate=1e-2
    )
    result = run(redirect)
    assert result.records[-1].harm < 0.8 * result.records[0].harm
    assert all(s.q < 1.5 for record in result.records for s in record.simulations)


def test_several_concepts_share_the_forget_batch_by_weight():
    """Each concept is drawn; the heavier one more often."""
    concepts = (Concept("bad", prompts=("bad",), weight=3), Concept("worse", prompts=("worse",)))
    data = encoded_data(concepts=("bad", "worse"))
    result = harden(
        tiny_model(), plan(concepts=concepts, outer_steps=3, warm_up_steps=1), data=data
    )
    assert len(result.records) == 3


@pytest.mark.slow
def test_dreambooth_adds_the_prior_to_the_users_loss():
    """With prior preservation the simulated run ends elsewhere than without."""
    dreambooth = replace(FAST, method="dreambooth", prior_weight=2.0)
    with_prior = run(plan(fine_tunes=(dreambooth,)))
    without = run(plan(fine_tunes=(FAST,)))
    assert not same(with_prior, without)


def test_half_precision_runs_with_a_float32_adapter():
    """bf16 base weights under autocast; θ and the records stay finite float32."""
    model = tiny_model(dtype=torch.bfloat16)
    result = harden(model, plan(precision="bf16"), data=encoded_data())
    assert {t.dtype for t in result.adapter.tensors.values()} == {torch.float32}
    assert all(bool(torch.isfinite(t).all()) for t in result.adapter.tensors.values())


@pytest.mark.slow
def test_gradient_checkpointing_changes_no_result():
    """Same adapter up to rounding."""
    one, other = run(plan()), run(plan(gradient_checkpointing=True))
    for name, tensor in one.adapter.tensors.items():
        torch.testing.assert_close(tensor, other.adapter.tensors[name], rtol=1e-3, atol=1e-4)
