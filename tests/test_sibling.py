"""A LoRA trained on another checkpoint, put on the model: against direct arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fakes_attacks import ATTACK, assert_untouched, state
from fakes_checkpoint import write_tiny_checkpoint
from peft.tuners.tuners_utils import BaseTunerLayer

from fakes import random_conditioning, random_set
from resalign.backend.checkpoint.load import load_checkpoint
from resalign.backend.errors import ConfigError
from resalign.backend.plan.attack import ORIGINAL
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.probe import ProbePlan
from resalign.backend.probe.attack import attacked
from resalign.backend.probe.attack_data import AttackData
from resalign.backend.probe.carry_out import carry_out, check_attacks
from resalign.backend.probe.recorded import paths_of
from resalign.backend.probe.sibling import with_sibling
from resalign.backend.report.plan_words import attack_words

TOLD = random_conditioning(2, width=32)
DATA = AttackData(
    data=replace(random_set(8, 1), conditioning=TOLD, empty=random_conditioning(1, 99, width=32))
)
OTHER = replace(ATTACK, name="sibling", trained_on=ORIGINAL, looks=(1, 3))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("siblings")
    paths = [folder / name for name in ("a.safetensors", "b.safetensors")]
    for seed, path in enumerate(paths):
        write_tiny_checkpoint(path, seed=seed, dtype=torch.float32)
    return paths


@pytest.fixture(scope="module")
def model(files):
    return load_checkpoint(files[0])


@torch.no_grad()
def prediction(model):
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return model.denoise(latents, torch.tensor([10, 500]), TOLD)


def run(model, other, siblings, steps):
    found = {}

    def evaluate_at(step):
        found[step] = prediction(model)

    with with_sibling(
        model, OTHER, DATA, other=other, seed=0, siblings=siblings, evaluate_at=evaluate_at,
        on_step=lambda step, _: steps.append(step),
    ):  # fmt: skip
        pass
    return found


def test_it_is_the_models_weights_and_the_other_ones_change(files, model):
    """W_a + the product that training on b made, on every layer and at each evaluated step."""
    before = state(model)
    found = run(model, files[1], {}, [])
    assert_untouched(model, before)
    assert list(found) == [1, 3]

    other, changes = load_checkpoint(files[1]), {}

    def keep(step):
        changes[step] = {
            name: module.get_delta_weight("attack").detach().clone()
            for name, module in other.denoiser.named_modules()
            if isinstance(module, BaseTunerLayer)
        }

    with attacked(other, OTHER, DATA, evaluate_at=keep):
        pass
    target = load_checkpoint(files[0])
    for step, seen in reversed(found.items()):
        target.denoiser.load_state_dict(before[0])
        with torch.no_grad():
            for name, change in changes[step].items():
                target.denoiser.get_submodule(name).weight += change
        torch.testing.assert_close(seen, prediction(target), atol=1e-5, rtol=1e-4)
    own = {}
    with attacked(
        model, OTHER, DATA, evaluate_at=lambda step: own.update({step: prediction(model)})
    ):
        pass
    assert (own[3] - found[3]).abs().max() > 1e-4, "a LoRA of the model itself is another one"


def test_it_is_trained_once_for_all_models(files, model):
    siblings, steps = {}, []
    first = run(model, files[1], siblings, steps)
    again = run(model, files[1], siblings, steps)

    assert steps == [1, 2, 3]
    assert all(torch.equal(first[step], again[step]) for step in first)


def test_on_the_original_itself_it_is_the_plain_attack(files, model):
    def seen(attack):
        found = {}
        sets = FakeSets()
        with carry_out(
            model, attack, sets, {ORIGINAL: files[0]}, own=sets, siblings={}, is_original=True,
            seed=0, evaluate_at=lambda step: found.update({step: prediction(model)}),
            on_step=lambda *_: None,
        ):  # fmt: skip
            pass
        return found

    plain, sibling = seen(replace(OTHER, trained_on="")), seen(OTHER)
    assert all(torch.equal(plain[step], sibling[step]) for step in (1, 3))


class FakeSets:
    def for_attack(self, _):
        return DATA


def test_a_checkpoint_of_another_family_is_named_before_anything_is_drawn(tmp_path, model):
    write_tiny_checkpoint(tmp_path / "xl.safetensors", family="sdxl")
    plan = ProbePlan(
        concepts=(Concept("bad", ("bad",)),),
        fine_tunes=(replace(OTHER, trained_on=str(tmp_path / "xl.safetensors")),),
    )
    with pytest.raises(ConfigError, match="can share a LoRA"):
        check_attacks(model, plan, {})
    with pytest.raises(ConfigError, match="needs the original's file"):
        check_attacks(model, replace(plan, fine_tunes=(OTHER,)), {})
    assert paths_of(plan) == [str(tmp_path / "xl.safetensors")]
    assert paths_of(replace(plan, fine_tunes=(OTHER,))) == []
    assert "trained on the original, then put on the model" in attack_words(OTHER)
