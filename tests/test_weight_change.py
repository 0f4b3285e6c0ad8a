"""How far an attack moved the weights: measured against the merged change, and what it decides."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from fakes_attacks import DATA, EVERY_TARGET, METHODS, attack_by, state
from fakes_counting import counted_result, course
from fakes_data import tiny_family
from peft.tuners.tuners_utils import BaseTunerLayer

from fakes import tiny_model
from resalign.backend.probe.attack import attacked
from resalign.backend.probe.attack_weights import trained_weights
from resalign.backend.probe.mixing import mixed
from resalign.backend.probe.results import Evaluation
from resalign.backend.probe.summarise import summarise
from resalign.backend.report.markdown import report_markdown
from resalign.backend.report.page import report_html

COURSE = ((100, 10, 94), (140, 12, 94), (200, 20, 94))
RATES = course("original", (90, 96), *COURSE) | course("hardened", (0, 96), *COURSE)


def moved_result(weights, **changes):
    """A probe with these relative weight changes by model, at every step."""
    result = counted_result(RATES, **changes)
    evaluations = (
        replace(each, weight_change={"unet": weights[each.model], "text_encoder": 0.0})
        if each.step and each.model in weights
        else each
        for each in result.evaluations
    )
    return replace(result, evaluations=tuple(evaluations))


@pytest.mark.parametrize("method", METHODS)
def test_the_change_is_that_of_the_weights_as_they_act(method):
    """‖W' − W‖ / ‖W‖ over the whole denoiser, as PEFT merges the adapter."""
    model, found = tiny_model(), []
    weights = {n: p.detach().clone() for n, p in model.denoiser.named_parameters()}
    attack = attack_by(method, targets=EVERY_TARGET)
    with attacked(model, attack, DATA, evaluate_at=lambda _: None, on_change=found.append):
        change = _merged_change(model, weights, method)
    norm = sum(float(w.pow(2).sum()) for w in weights.values())
    (only,) = found
    assert list(only) == ["unet"]
    assert only["unet"] == pytest.approx(math.sqrt(change / norm), rel=1e-4)
    assert only["unet"] > 1e-4


def _merged_change(model, weights, method):
    """Σ ‖W' − W‖², where W' is what PEFT merges."""
    if method == "full":
        now = dict(model.denoiser.named_parameters())
        return sum(float((now[n].detach() - w).pow(2).sum()) for n, w in weights.items())
    total = 0.0
    for name, module in model.denoiser.named_modules():
        if isinstance(module, BaseTunerLayer):
            layer = module.get_base_layer()
            old = layer.weight.data
            module.merge(safe_merge=True)
            total += float((layer.weight.data - weights[f"{name}.weight"]).pow(2).sum())
            layer.weight.data = old
            module.merged_adapters.clear()
    return total


def test_an_adapter_that_was_not_trained_changes_nothing():
    """B starts at zero: the random A does not change the weights."""
    for method in ("lora", "dora", "loha", "lokr"):
        with trained_weights(tiny_model(), attack_by(method)) as weights:
            weights.publish()
            assert weights.changes()["unet"] < 1e-6, method


def test_text_encoders_are_measured_by_themselves():
    model, found = tiny_family(), []
    attack = attack_by("lora", text_encoder=True, text_encoder_learning_rate=1e-2)
    with attacked(model, attack, DATA, evaluate_at=lambda _: None, on_change=found.append):
        pass
    (changes,) = found
    assert list(changes) == ["unet", "text_encoder"] and min(changes.values()) > 1e-4


def test_averaged_weights_are_measured_as_they_are_scored():
    found = {}
    for ema in (0.0, 0.9):
        attack, each = attack_by("full", ema=ema), []
        with attacked(tiny_model(), attack, DATA, evaluate_at=lambda _: None,
                      on_change=each.append):  # fmt: skip
            pass
        found[ema] = each[0]["unet"]
    assert found[0.9] < found[0.0]


def test_a_mixture_moves_by_its_weight():
    """(1 − w) W + w · 2 W moves by w."""
    model, found = tiny_model(), []
    other = {"unet": {n: 2 * t for n, t in state(model)[0].items()}}
    with mixed(model, other, 0.25, on_change=found.append):
        pass
    assert found == [{"unet": pytest.approx(0.25, rel=1e-5)}]


def test_weights_that_stay_make_an_attack_one_without_effect():
    """Pictures that moved all the same moved by chance, as they may on a GPU."""
    summary = summarise(moved_result({"original": 1e-6, "hardened": 0.02}))
    effect = summary.effect("training")
    assert (effect.weight_change, effect.had_effect) == (1e-6, False)
    assert summary.model("hardened").worst.without_effect == ("training",)
    assert summarise(moved_result({"original": 0.02})).effect("training").had_effect is True


def test_weights_that_move_are_no_effect_where_pictures_and_predictions_stay():
    still = dict.fromkeys(RATES, 1e-6)
    result = moved_result({"original": 0.02}, drift=still, distance=still)
    assert summarise(result).effect("training").had_effect is False


@pytest.mark.parametrize(("weights", "had_effect"), [(1e-6, False), (0.02, True)])
def test_weights_decide_where_nothing_else_was_measured(weights, had_effect):
    result = moved_result({"original": weights})
    bare = tuple(replace(each, utility={}) for each in result.evaluations)
    assert summarise(replace(result, evaluations=bare)).effect("training").had_effect is had_effect


def test_a_model_that_the_attack_hardly_trained_is_named():
    """It counts, as does a model that cannot be moved, but the report says so."""
    result = moved_result({"original": 0.02, "hardened": 0.0019})
    row = summarise(result).row("hardened", "training", 200)
    assert row.counts and row.weight_change == 0.0019
    page, text = report_html(result), report_markdown(result)
    assert '<span class="mark weak">hardly trained</span>' in page
    assert "0.19\u00a0% (**hardly trained**)" in text
    enough = moved_result({"original": 0.02, "hardened": 0.0021})
    assert "(**hardly trained**)" not in report_markdown(enough)


def test_a_probe_of_before_is_read_and_shows_no_such_table():
    result = counted_result(RATES)
    record = result.evaluations[-1].to_json()
    assert "weight_change" not in record
    assert Evaluation.from_json(record).moved is None
    assert "What the attacks moved" not in report_html(result)
    kept = moved_result({"hardened": 0.5}).evaluations[-1]
    assert Evaluation.from_json(kept.to_json()) == kept
