"""Trainability: held-out images are not trained on, and who learns half as much is found."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace

import pytest
import torch
from fakes_attacks import attack_by
from fakes_counting import counted_result, course
from fakes_data import save_pictures, tiny_family
from fakes_pack import SCHEMA, card, faults, results, write

from fakes import random_set, tiny_model
from resalign.backend.cli.parser import build_parser
from resalign.backend.cli.probe_flags import probe_job_of
from resalign.backend.data.encoded_set import split
from resalign.backend.errors import ConfigError
from resalign.backend.plan.attack import FineTuneAttack
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.images import ImageSet
from resalign.backend.plan.measurement import GenerationConfig, PromptSet, ScorerConfig
from resalign.backend.plan.probe import ProbePlan
from resalign.backend.probe.attack import attacked
from resalign.backend.probe.attack_data import AttackData, attack_data
from resalign.backend.probe.learning import (
    LEARNS,
    LEARNS_AS_WELL,
    LEARNS_LESS,
    LEARNS_NOT,
    NOT_TAUGHT,
    UNCERTAIN,
    held_out_loss,
    measure_learning,
)
from resalign.backend.probe.probe import run_probe
from resalign.backend.probe.results import LEARNING, Scores, SetEvaluation
from resalign.backend.probe.subjects import LoadedSubject
from resalign.backend.probe.summarise import summarise
from resalign.backend.report.markdown import report_markdown
from resalign.backend.report.pack import pack_report
from resalign.backend.report.page import report_html
from resalign.backend.report.schema import load_report, to_report_json

STYLE = FineTuneAttack(name="style", held_out=0.25, steps=200, looks=(100, 200))


@pytest.mark.parametrize(("share", "held"), [(0.25, 2), (0.01, 1), (0.9, 7)])
def test_a_split_parts_a_set_and_loses_no_sample(share, held):
    encoded = random_set(8, 1)
    rest, apart = split(encoded, share)

    assert (len(rest), len(apart)) == (8 - held, held)
    rows = torch.cat([bucket.latents for part in (rest, apart) for bucket in part.buckets])
    whole = torch.cat([bucket.latents for bucket in encoded.buckets])
    assert {tuple(row.flatten().tolist()) for row in rows} == {
        tuple(row.flatten().tolist()) for row in whole
    }
    with pytest.raises(ValueError, match="set of 1"):
        split(random_set(1, 1), 0.5)


@pytest.mark.parametrize("flip", [False, True])
def test_held_out_images_are_never_trained_on(tmp_path, flip):
    save_pictures(tmp_path / "own", {f"{i}.png": f"own {i}" for i in range(8)})
    attack = FineTuneAttack(
        name="style", data=str(tmp_path / "own"), held_out=0.25, flip=flip, steps=1
    )
    images = ImageSet(str(tmp_path / "own"))
    plan = ProbePlan(
        concepts=(Concept("bad", images=images),), retain_set=images, fine_tunes=(attack,)
    )
    data = attack_data(tiny_family(), plan)

    def rows(part):
        return {tuple(row.flatten().tolist()) for b in part.buckets for row in b.latents}

    held, trained = data.held_out(attack), data.for_attack(attack).data
    assert (len(held), len(trained)) == (2, 12 if flip else 6)
    assert not rows(held) & rows(trained)
    mirrored = {tuple(row.flip(-1).flatten().tolist()) for b in held.buckets for row in b.latents}
    assert not mirrored & rows(trained), "nor its mirror image"
    assert data.held_out(replace(attack, held_out=0.0)) is None


def test_the_loss_falls_on_images_of_a_kind_that_was_trained():
    """Two sets of one picture seen with noise: training on one lowers the loss on the other."""
    model = tiny_model()
    shared = random_set(1, 5)
    bucket = shared.buckets[0]
    many = replace(
        shared,
        buckets=(replace(bucket, latents=bucket.latents.expand(6, -1, -1, -1).clone(),
                         captions=torch.zeros(6, dtype=torch.long),
                         weights=torch.ones(6, dtype=torch.float64)),),
    )  # fmt: skip
    trained, held = split(many, 0.34)
    before = held_out_loss(model, held)
    attack = attack_by("full", steps=20, looks=(20,), batch=6)
    with attacked(model, attack, AttackData(data=trained)):
        found = measure_learning(model, held, before)
    losses = {scores.scorer: sum(scores.values) for scores in found.scores}

    assert (found.kind, found.images) == (LEARNING, 2)
    assert losses["loss after"] < 0.9 * losses["loss before"]
    assert held_out_loss(model, held) == before, "the same noise every time"


def learnt(before: float, after: float, images: int = 20) -> SetEvaluation:
    return SetEvaluation(
        kind=LEARNING, images=images,
        scores=tuple(
            Scores(scorer=name, values=tuple(value + 0.001 * (k % 3) for k in range(images)),
                   flagged=(False,) * images)
            for name, value in (("loss before", before), ("loss after", after))
        ),
    )  # fmt: skip


def planted():
    """The original's held-out loss falls by .2, the hardened one's by .1, a stubborn one's not."""
    models = {"original": (0.5, 0.3), "hardened": (0.5, 0.4), "stubborn": (0.5, 0.5)}
    rates: dict = {}
    for name in models:
        rates |= course(name, (10, 96), (100, 10, 96), (200, 10, 96), attack="style")
    result = counted_result(rates, attacks=(STYLE,))
    evaluations = tuple(
        each if each.attack == "before"
        else replace(each, sets=(*each.sets, learnt(*models[each.model])))
        for each in result.evaluations
    )  # fmt: skip
    return replace(result, evaluations=evaluations)


def test_a_model_that_learns_half_as_much_says_so_everywhere(tmp_path):
    result = planted()
    found = {(one.model, one.step): one for one in summarise(result).learning}

    assert found["hardened", 200].share == pytest.approx(0.5)
    assert found["hardened", 200].low == pytest.approx(0.5)
    assert found["stubborn", 200].share == pytest.approx(0)
    assert found["original", 200].share is None
    assert found["original", 200].before - found["original", 200].after == pytest.approx(0.2)
    for text in (report_html(result), report_markdown(result)):
        assert "Trainability" in text and ("50.0" in text)
    (tmp_path / "report.json").write_text(to_report_json(result, summarise(result).to_json()))
    read = json.loads((tmp_path / "report.json").read_text())["summary"]["learning"]
    assert [one["share"] for one in read if one["model"] == "hardened"] == pytest.approx([0.5, 0.5])
    assert summarise(load_report(tmp_path)).learning == summarise(result).learning


def test_where_the_original_learns_nothing_there_is_no_share():
    result = planted()
    flat = tuple(
        each if each.model != "original" or each.attack == "before"
        else replace(each, sets=(*each.sets[:2], learnt(0.5, 0.5)))
        for each in result.evaluations
    )  # fmt: skip
    found = summarise(replace(result, evaluations=flat)).learning
    assert {one.share for one in found} == {None}


def test_a_probe_measures_what_its_models_learn():
    plan = ProbePlan(
        concepts=(Concept("bad", prompts=("a bad thing",)),),
        forget_set=ImageSet(prompts=("a bad thing",), images=2, sampling_steps=1),
        retain_set=ImageSet(prompts=("a tree", "a cat"), images=4, sampling_steps=1),
        fine_tunes=(replace(STYLE, steps=2, looks=(1, 2), batch=2, rank=2),),
        prompts=(PromptSet(kind="retain", prompts=("a tree",)),),
        scorers=(ScorerConfig(name="denoising"),),
        generation=GenerationConfig(steps=1), pictures=0,
    )  # fmt: skip
    result = run_probe([LoadedSubject("original", tiny_family())], plan)

    assert result.evaluation("original").set_of(LEARNING) is None
    found = summarise(result).learning
    assert [(one.step, one.images) for one in found] == [(1, 1), (2, 1)]
    assert found[0].before == found[1].before > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out": 0.5, "text_encoder": True}, "held_out measures what the denoiser"),
        ({"held_out": 0.5, "concept_share": 1.0}, "a concept_share below 1"),
        ({"trained_on": "a", "method": "full"}, "trained_on takes an adapter"),
        ({"trained_on": "a", "text_encoder": True}, "trained_on takes an adapter"),
    ],
)
def test_what_contradicts_itself_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        FineTuneAttack(name="attack", **changes)


def test_the_flag_adds_an_attack_on_the_users_own_folder(tmp_path):
    args = build_parser().parse_args(
        ["probe", "a.safetensors", "b.safetensors", "--concept", "weapons", "--style",
         str(tmp_path / "cats"), "--data", str(tmp_path / "other"), "--sibling", "original",
         "--preset", "quick"]
    )  # fmt: skip
    *quick, style, sibling = probe_job_of(args).plan.fine_tunes

    assert {attack.data for attack in quick} == {str(tmp_path / "other")}
    assert (style.name, style.data, style.held_out) == ("style cats", str(tmp_path / "cats"), 0.25)
    assert (sibling.name, sibling.trained_on) == ("LoRA of original", "original")


def taught(losses: dict[str, tuple[float, float]], noise: float = 0.001):
    """A probe in which each model's held-out loss goes from the first figure to the second."""
    rates: dict = {}
    for name in losses:
        rates |= course(name, (10, 96), (200, 10, 96), attack="style")
    result = counted_result(rates, attacks=(replace(STYLE, looks=(200,)),))

    def held(model: str) -> SetEvaluation:
        start, end = losses[model]
        shift = ord(model[0])  # the images that one model finds hard are easy for another
        values = [(start + noise * (k % 3), end + noise * ((k + shift) * 7 % 5)) for k in range(20)]
        return SetEvaluation(
            kind=LEARNING, images=20,
            scores=tuple(
                Scores(scorer=name, values=tuple(pair[at] for pair in values),
                       flagged=(False,) * 20)
                for at, name in enumerate(("loss before", "loss after"))
            ),
        )  # fmt: skip

    evaluations = tuple(
        each if each.attack == "before" else replace(each, sets=(*each.sets, held(each.model)))
        for each in result.evaluations
    )
    return replace(result, evaluations=evaluations)


@pytest.mark.parametrize(
    ("hardened", "verdict", "reached"),
    [
        ((0.5, 0.30), LEARNS_AS_WELL, 1.0),
        ((0.5, 0.40), LEARNS_LESS, 0.5),
        ((0.5, 0.50), LEARNS_NOT, 0.0),
        ((0.5, 0.60), LEARNS_NOT, -0.5),
        # It falls by as much as the original, from further up, and ends where that was half-way.
        ((0.6, 0.40), LEARNS_LESS, 0.5),
        ((0.5, 0.34), UNCERTAIN, 0.8),
    ],
)
def test_the_verdict_goes_by_the_originals_curve(hardened, verdict, reached):
    found = summarise(taught({"original": (0.5, 0.3), "hardened": hardened})).learning
    base, own = found
    assert (base.verdict, base.reached) == (LEARNS, None)
    assert own.verdict == verdict
    assert own.reached == pytest.approx(reached, abs=0.02)
    assert own.reached_low <= own.reached <= own.reached_high


def test_a_model_is_not_compared_with_an_original_of_other_images():
    """As in a report that was cut short: its own loss fell, and nothing can be said of the rest."""
    result = taught({"original": (0.5, 0.3), "hardened": (0.5, 0.45)})

    def cut(part):
        scores = tuple(
            replace(one, values=one.values[:10], flagged=one.flagged[:10]) for one in part.scores
        )
        return replace(part, images=10, scores=scores)

    evaluations = tuple(
        replace(each, sets=tuple(cut(s) if s.kind == "learning" else s for s in each.sets))
        if each.model == "original" else each
        for each in result.evaluations
    )  # fmt: skip
    own = summarise(replace(result, evaluations=evaluations)).learning[1]
    assert (own.verdict, own.reached, own.share) == (UNCERTAIN, None, None)


def test_where_the_lesson_teaches_nobody_no_model_is_judged():
    found = summarise(taught({"original": (0.5, 0.5), "hardened": (0.5, 0.3)})).learning
    assert [one.verdict for one in found] == [LEARNS_NOT, NOT_TAUGHT]


def test_few_images_that_disagree_give_no_verdict():
    found = summarise(taught({"original": (0.5, 0.3), "hardened": (0.5, 0.35)}, noise=0.06))
    assert found.learning[1].verdict == UNCERTAIN


def test_the_first_screen_and_the_pack_say_what_was_learnt(tmp_path):
    result = taught({"original": (0.5, 0.3), "hardened": (0.5, 0.4)})
    page = report_html(result).partition("</header>")[0]
    page = html.unescape(re.sub(r"<[^>]+>", " ", page))
    said = re.search(rf"style: 49.7\W+% as far as the original \([^)]*\): {LEARNS_LESS}", page)
    assert said, page
    pack_report(write(result, tmp_path / "report"), tmp_path / "pack")
    own = results(tmp_path / "pack")["learning"][1]
    assert (own["verdict"], round(own["reached"], 1)) == (LEARNS_LESS, 0.5)
    assert faults(results(tmp_path / "pack"), SCHEMA) == []
    text = card(tmp_path / "pack")
    assert re.search(rf"Still learns harmless data: style \| 49.7\W+% .*: {LEARNS_LESS}", text)
