"""A plan's quantization where bitsandbytes is not needed: refusals, keys of runs, the planner."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch
from fakes_checkpoint import write_tiny_checkpoint
from torch import nn

import resalign as ra
from fakes import tiny_model, tiny_unet
from resalign.backend.checkpoint import load
from resalign.backend.checkpoint.detect import detect
from resalign.backend.errors import ConfigError
from resalign.backend.families import find_family
from resalign.backend.jobs.check import check_job
from resalign.backend.memory import plan as planner
from resalign.backend.memory.plan import plan_memory
from resalign.backend.memory.trace import Trace, trace_step
from resalign.backend.memory.weights import weight_types
from resalign.backend.model import quantised as module
from resalign.backend.numerics.byte_sizes import GIB
from resalign.backend.plan.auto import ON_CPU
from resalign.backend.plan.file import from_json, plan_hash, to_json
from resalign.backend.plan.quantization import QUANTIZATIONS
from resalign.backend.plan.stages import Stage

# plan_hash(plan(seed=5)) in the commit before the setting came
OLD_HASH = "96a3ada62637d5fec25891a27a018b16b80dbc48e0a541a7a41f22c9986cbca3"
USER = ra.FineTuneConfig(name="u", steps=5, batch=4)


def plan(**changes) -> ra.HardeningPlan:
    settings = {
        "concepts": (ra.Concept("bad", prompts=("bad",)),), "fine_tunes": (USER,),
        "adapter": ra.AdapterConfig(rank=2),
    }  # fmt: skip
    return ra.HardeningPlan(**(settings | changes))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"simulate": "full"}, "simulate = 'full'"),
        ({"simulate": "adapter", "fine_tunes": (replace(USER, method="full"),)}, "user u"),
        ({"method": "closed_form"}, "'closed_form'"),
        ({"before": (Stage(method="closed_form"),)}, "'closed_form'"),
    ],
    ids=["full", "a full user", "closed form", "a closed form before"],
)
def test_a_plan_that_needs_the_weights_themselves_is_refused(changes, named):
    """And is none of a problem without quantization."""
    with pytest.raises(ConfigError, match=f"quantization is 'nf4', but .*{named}.*'none'"):
        plan(quantization="nf4", **changes)
    assert plan(**changes).quantization == "none"


def test_a_kind_that_there_is_not_is_refused_with_those_that_there_are():
    with pytest.raises(ConfigError, match="none, int8, nf4"):
        plan(quantization="fp4")


def test_plans_and_runs_of_before_the_setting_stay_what_they_were():
    """The key of a plan without it is the hash that it always had; with it, it is another."""
    old = to_json(plan())
    del old["quantization"]
    assert from_json(ra.HardeningPlan, old) == plan()
    assert plan_hash(plan(seed=5)) == OLD_HASH
    assert len({plan_hash(plan(seed=5, quantization=kind)) for kind in QUANTIZATIONS}) == 3


def test_without_bitsandbytes_the_error_names_the_command(monkeypatch, tmp_path):
    """From `check`, before any weight is loaded, and from the run, which leaves the model alone."""

    def missing(name: str):
        if name.partition(".")[0] == "bitsandbytes":
            raise ImportError("No module named 'bitsandbytes'")
        return importlib.import_module(name)

    monkeypatch.setattr(module, "import_module", missing)
    model, asked = tiny_model(), plan(quantization="int8")
    layers = list(model.denoiser.modules())
    with pytest.raises(ConfigError, match=r"quantization is 'int8'.*pip install \"bitsandbytes"):
        ra.harden(model, asked)
    assert all(a is b for a, b in zip(layers, model.denoiser.modules(), strict=True))
    source = write_tiny_checkpoint(tmp_path / "a.safetensors")
    job = ra.Job(checkpoint=str(source), output=str(tmp_path / "b.safetensors"), plan=asked,
                 device="cpu")  # fmt: skip
    assert any("pip install" in problem for problem in check_job(job).problems)
    assert check_job(replace(job, plan=plan())).problems == ()


def test_what_is_to_be_quantised_is_never_on_the_device_as_it_is(tmp_path):
    """Linear layers of the denoiser, and nothing else, wait in main memory."""
    info = detect(write_tiny_checkpoint(tmp_path / "a.safetensors"))
    unet = load.build_network(info, "unet")
    linear = {name for name, part in unet.named_modules() if isinstance(part, nn.Linear)}
    # Whatever goes to the meta device is found there in the end, and told of.
    with pytest.raises(AssertionError) as told:
        load._fill(info, "unet", unet, torch.device("meta"), torch.float32, "cpu")
    others = [n for n, _ in unet.named_parameters() if n.rpartition(".")[0] not in linear]
    assert str(told.value).startswith(f"left without storage: {others}")
    assert weight_types(plan(quantization="nf4"))["linear_device"] == "cpu"
    assert "linear_device" not in weight_types(plan())


SIDE = 16


def traced(kind: str, **changes) -> Trace:
    config = dict(tiny_unet(sample_size=SIDE, block_out_channels=(32, 32)).config)
    asked = plan(quantization=kind, **changes)
    return trace_step(config, asked, family=find_family("sd1"), side=SIDE, dtype=torch.float32)


@pytest.mark.slow
def test_the_planner_counts_a_byte_or_half_a_byte_and_the_scales(monkeypatch):
    """To the byte, without bitsandbytes and without a weight; all else is as before."""
    monkeypatch.setattr("resalign.backend.memory.trace.BLOCK", 1)
    unet = tiny_unet(sample_size=SIDE, block_out_channels=(32, 32))
    weights = [part.weight for part in unet.modules() if isinstance(part, nn.Linear)]
    rest = sum(p.numel() for p in unet.parameters()) - sum(w.numel() for w in weights)
    plain, bytes_, halves = (traced(kind) for kind in ("none", "int8", "nf4"))
    assert bytes_.weights == 4 * rest + sum(w.numel() + 4 * len(w) for w in weights)
    assert halves.weights == 4 * rest + sum(
        (w.numel() + 1) // 2 + 4 * -(-w.numel() // 64) for w in weights
    )
    assert bytes_.state == plain.state == halves.state
    assert plain.activations <= bytes_.activations == halves.activations
    assert halves.activations < 1.05 * plain.activations + 4 * max(w.numel() for w in weights)


def test_the_planner_knows_the_width_of_a_packed_layer():
    """Which a projection's bases have: two weights a byte have none of their own."""
    assert traced("nf4", method="project").state == traced("none", method="project").state


@pytest.fixture
def made_up(monkeypatch):
    """Traces by a formula: weights of 4 GiB of which half can be quantised, and activations."""

    def step(asked, *_):
        half = 0.5 if asked.precision != "fp32" else 1.0
        share = {"none": 2 * half, "int8": 0.5, "nf4": 0.25}[asked.quantization]
        samples = min(4, asked.micro_batch or 4)
        activations = samples * half * (0.25 if asked.gradient_checkpointing else 1.0)
        return Trace(round((2 * half + share) * GIB), 0, round(activations * GIB))

    monkeypatch.setattr(planner, "_step", step)
    monkeypatch.setattr(planner, "_encoding_of", lambda *_: Trace(0, 0, 0))


SMALLEST = {"micro_batch": 1, "gradient_checkpointing": True}


@pytest.mark.parametrize(
    ("budget", "changes"),
    [
        (3.1, {**SMALLEST, "precision": "bf16"}),
        (3.02, {"micro_batch": 1, "precision": "bf16", "quantization": "int8"}),
        (2.55, {**SMALLEST, "precision": "bf16", "quantization": "int8"}),
        (2.3, {**SMALLEST, "precision": "bf16", "quantization": "nf4"}),
    ],
)
def test_a_budget_rounds_the_base_last_and_no_more_than_it_must(made_up, budget, changes):
    found = ask(plan(), budget)
    assert found.fits and found.changes == changes
    assert found.plan == replace(plan(), **{**ON_CPU, **changes})
    told = [word for word in found.words if word.startswith("quantization = ")]
    assert len(told) == ("quantization" in changes)
    assert all("rounded weights" in word and "bitsandbytes" in word for word in told)


def test_a_budget_rounds_nothing_where_that_cannot_be_had(made_up):
    found = ask(plan(), 1.0, quantized=False)
    assert not found.fits and found.plan.quantization == "none"
    assert ask(plan(), 1.0).plan.quantization == "nf4"


def test_a_budget_does_not_round_what_must_be_true_nor_less_than_was_asked(made_up):
    full = plan(simulate="full")
    assert ask(full, 1.0).plan.quantization == "none"
    asked = plan(quantization="nf4", precision="bf16", **SMALLEST)
    assert ask(asked, 1.0).changes == {}


def ask(asked: ra.HardeningPlan, budget: float, **options):
    return plan_memory(asked, "sd1", configs={"unet": {}}, resolution=128, budget=budget, **options)
