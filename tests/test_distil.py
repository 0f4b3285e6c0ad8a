"""Training all weights towards the original: its loss, its rate, and resuming bit for bit."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from fakes import encoded_data, tiny_model
from resalign.backend.adapter.dense import DenseAdapter
from resalign.backend.adapter.merge_in_place import merged
from resalign.backend.bilevel.losses import denoising_errors
from resalign.backend.data.batches import draw
from resalign.backend.families.base.process import (
    FlowProcess,
    discrete_process,
    scaled_linear_alphas_cumprod,
)
from resalign.backend.hardening.distil import distillation_rate
from resalign.backend.hardening.methods import read_plan
from resalign.backend.hardening.run import harden
from resalign.backend.hardening.setup import adapted, set_up
from resalign.backend.plan.adapter import AdapterConfig
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.durable import DistilConfig, EraseConfig, VariedConfig
from resalign.backend.plan.file import plan_hash
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.stages import Stage
from resalign.backend.run.folder import RunFolder

ERASE = EraseConfig(samples=8, batch=8, ratio=1.5, targets=("attention",))
SMALL = DistilConfig(batch=8, learning_rate=1e-3, warm_up_steps=1)

# of a plan with both parts, as it was when they had no later fields
OLD_HASH = "bd1ba4ffeaf165b810a7fd1d7ad2756b082762c859facee328906b0e51a9ec8d"


def plan(**changes) -> HardeningPlan:
    settings = {
        "concepts": (Concept("bad", prompts=("bad",)),), "method": "distil", "distil": SMALL,
        "erase": ERASE, "outer_steps": 4, "warm_up_steps": 0, "save_every": 1, "forget_batch": 2,
        "retain_batch": 2, "adapter": AdapterConfig(rank=2),
    }  # fmt: skip
    return HardeningPlan(**(settings | changes))


def run(own: HardeningPlan, folder=None, **options):
    return harden(tiny_model(), own, run_folder=folder, data=encoded_data(), **options)


def equal(one: DenseAdapter, other: DenseAdapter) -> bool:
    return set(one.parameters) == set(other.parameters) and all(
        torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items()
    )


@pytest.fixture(scope="module")
def whole():
    """Erasure, then four steps, uninterrupted and kept nowhere."""
    return run(plan(before=(Stage(method="erase"),)))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow"])
def test_error_weights_make_noise_and_image_count_alike(kind):
    """w ‖Δ‖² = ‖Δ in ε‖² + ‖Δ in x₀‖² for any error Δ of the prediction, until the cap."""
    alphas = scaled_linear_alphas_cumprod()
    process = FlowProcess() if kind == "flow" else discrete_process(alphas, kind)
    times = torch.tensor([1.0, 300.0, 900.0]) if kind == "flow" else torch.tensor([0, 300, 900])
    error = torch.ones(3)
    if kind == "flow":
        kept, sigma = 1 - times / 1000, times / 1000
        root = (kept.square() + sigma.square()).sqrt()  # brings x_t to unit variance
        in_noise, in_image, alpha = kept * error, sigma * error, (kept / root).square()
    else:
        alpha = alphas[times]
        in_noise = error if kind == "epsilon" else alpha.sqrt() * error
        in_image = in_noise * ((1 - alpha) / alpha).sqrt()
    both = in_noise.square() + in_image.square()
    torch.testing.assert_close(process.error_weights(times, 1e9), both)
    capped = in_noise.square() * (1 / alpha).clamp(max=3.0)
    torch.testing.assert_close(process.error_weights(times, 3.0), capped)
    assert capped[2] < both[2]


def test_the_loss_is_the_weighted_distance_to_the_original_under_the_true_caption():
    """By hand, on the step's own draw; the first two samples are shown a caption of the concept."""
    own = plan(caption_dropout=0.0)
    model, data = tiny_model(), encoded_data()
    with adapted(model, own) as denoiser:
        setup = set_up(denoiser, read_plan(own)[1], data)
        with torch.no_grad():
            for tensor in denoiser.theta.values():
                tensor.mul_(1.02)
        terms = setup.feed.distillation(3)
        drawn = setup.feed._draw(data.retain, 8, 0.0, "distil", 3, 0, middle=0.5)
        noised = model.process.add_noise(drawn.latents, drawn.noise, drawn.timesteps)
        with denoiser.frozen():
            target = denoiser(noised, drawn.timesteps, drawn.conditioning)
        texts = data.forget["bad"].conditioning["context"]
        weights = (1 / model.process.alphas_cumprod[drawn.timesteps]).clamp(max=20.0)

        def errors(context):
            shown = drawn.conditioning.beside(type(drawn.conditioning)({"context": context}))
            return weights * denoising_errors(denoiser(noised, drawn.timesteps, shown), target)

        with torch.no_grad():
            own_captions = errors(drawn.conditioning["context"])
            choices = [errors(text.expand(8, -1, -1)) for text in texts]
            ((harm, retain),) = [term().tolist() for term in terms]
    assert retain == pytest.approx(float(own_captions[2:].sum() / 8), rel=1e-5)
    sums = [float((a + b) / 8) for a in (c[0] for c in choices) for b in (c[1] for c in choices)]
    assert any(harm == pytest.approx(value, rel=1e-5) for value in sums)


def test_towards_the_anchor_the_original_is_asked_for_the_anchor():
    """By hand: the first two samples' target is the prediction for the anchor, the others' own."""
    without = plan(caption_dropout=0.0, distil=replace(SMALL, towards="anchor"))
    own = replace(without, concepts=(replace(without.concepts[0], anchor="a hat"),))
    model, data = tiny_model(), encoded_data()
    with adapted(model, without) as denoiser, torch.no_grad():
        found = []
        for towards in ("anchor", "image"):  # alike where the concept has no anchor
            given = replace(without, distil=replace(SMALL, towards=towards))
            setup = set_up(denoiser, read_plan(given)[1], data)
            found.append([term().tolist() for term in setup.feed.distillation(3)])
        assert found[0] == found[1]
    with adapted(model, own) as denoiser:
        setup = set_up(denoiser, read_plan(own)[1], data)
        drawn = setup.feed._draw(data.retain, 8, 0.0, "distil", 3, 0, middle=0.5)
        noised = model.process.add_noise(drawn.latents, drawn.noise, drawn.timesteps)
        weights = (1 / model.process.alphas_cumprod[drawn.timesteps]).clamp(max=20.0)
        anchor = drawn.conditioning.beside(data.anchors["bad"].expand(8))
        with torch.no_grad():
            ((harm, retain),) = [term().tolist() for term in setup.feed.distillation(3)]
            goal = denoiser(noised, drawn.timesteps, anchor)
            choices = []
            for text in data.forget["bad"].conditioning["context"]:
                told = type(anchor)({"context": text.expand(8, -1, -1)})
                shown = drawn.conditioning.beside(told)
                found = denoiser(noised, drawn.timesteps, shown)
                choices.append(weights * denoising_errors(found, goal))
    assert retain == 0.0 < harm
    sums = [float((a + b) / 8) for a in (c[0] for c in choices) for b in (c[1] for c in choices)]
    assert any(harm == pytest.approx(value, rel=1e-5) for value in sums)


def test_mixed_captions_lie_between_two_and_both_networks_read_them():
    own = plan(caption_dropout=0.0, distil=replace(SMALL, mixed_share=0.5, concept_share=0.0))
    data = encoded_data()
    with adapted(tiny_model(), own) as denoiser:
        setup = set_up(denoiser, read_plan(own)[1], data)
        (term,) = setup.feed.distillation(3)
        drawn = setup.feed._draw(data.retain, 8, 0.0, "distil", 3, 0, middle=0.5)
        shown = term.args[0].conditioning["context"]  # type: ignore[union-attr]
        before, known = drawn.conditioning["context"], data.retain.conditioning["context"]
        changed = 0
        for mine, blend in zip(before, shown, strict=True):
            if torch.equal(mine, blend):
                continue
            changed += 1
            step = blend - mine
            shares = [((step * (o - mine)).sum() / (o - mine).square().sum()) for o in known]
            gaps = [
                (step - share * (o - mine)).norm() / step.norm()
                for share, o in zip(shares, known, strict=True)
            ]
            best = min((g, s) for g, s in zip(gaps, shares, strict=True) if torch.isfinite(g))
            assert best[0] < 1e-5 and 0 < best[1] < 1
        assert 1 <= changed <= 7
        with torch.no_grad():
            assert term().tolist() == [0.0, 0.0]  # nothing is trained yet: both agree


def test_times_of_the_middle_take_their_share():
    """4,000 times are drawn. Half of those from the middle lie between 456 and 764, the quartiles
    of a logit N(½, 1), and of the others as many as a uniform draw puts there."""
    process = discrete_process(scaled_linear_alphas_cumprod())
    random = torch.Generator().manual_seed(0)
    low, high = (1000 * torch.sigmoid(torch.tensor(0.5 + z)) for z in (-0.6745, 0.6745))
    for middle in (0.0, 0.5, 1.0):
        times = draw(encoded_data().retain, random, 4000, process, middle=middle).timesteps
        found = ((times > low) & (times < high)).float().mean()
        uniform = float(high - low) / 1000
        expected = middle * 0.5 + (1 - middle) * uniform
        assert float(found) == pytest.approx(expected, abs=0.03)
        assert int(times.min()) >= 0 and int(times.max()) < 1000
    times = FlowProcess().middle_times(4, torch.Generator().manual_seed(1))
    assert torch.equal(times, FlowProcess().sample_times(4, torch.Generator().manual_seed(1)))


def test_without_a_share_no_caption_is_replaced():
    own = plan(distil=replace(SMALL, concept_share=0.0))
    with adapted(tiny_model(), own) as denoiser:
        setup = set_up(denoiser, read_plan(own)[1], encoded_data())
        with torch.no_grad():
            setup.dense.set({"conv_out.bias": torch.ones(4)})
            ((harm, retain),) = [term().tolist() for term in setup.feed.distillation(1)]
        assert harm == 0 < retain
    assert run(replace(own, outer_steps=1)).records[0].harm == 0.0


def test_the_rate_rises_and_then_falls_along_a_cosine():
    config = DistilConfig(learning_rate=2.0**-9, warm_up_steps=4)
    rates = [distillation_rate(config, step, 100) for step in range(1, 101)]
    assert rates[0] == pytest.approx(2.0**-11) and max(rates) == max(rates[3:5])
    assert rates[50] == pytest.approx(2.0**-10) and 0 < rates[-1] < 1e-3 * 2.0**-9
    assert all(a > b for a, b in pairwise(rates[4:]))
    assert distillation_rate(replace(config, warm_up_steps=0), 1, 10) == 2.0**-9


@pytest.mark.slow
def test_it_brings_back_what_an_erasure_took_from_what_stays():
    """The distance to the original on retain samples falls; the concept's caption follows."""
    longer = run(plan(before=(Stage(method="erase"),), outer_steps=40, save_every=50))
    first, last = longer.records[:5], longer.records[-5:]
    for name in ("harm", "retain"):
        before, after = (sum(getattr(r, name) for r in part) for part in (first, last))
        assert after < 0.5 * before


def test_a_run_stopped_anywhere_ends_in_the_same_bytes(whole, tmp_path):
    """In the erasure, and between and within steps of the distillation."""
    own = plan(before=(Stage(method="erase"),))
    stops = [("stage 1-erase", 0, 2), ("harden", 1, 0), ("harden", 3, 0)]
    for stage, step, micro in stops:

        def stop(progress, at=(stage, step, micro)):
            if (progress.stage, progress.step, progress.micro_step) == at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(own, tmp_path, on_progress=stop)
    result = run(own, tmp_path)
    assert equal(result.adapter, whole.adapter)
    stored, _ = RunFolder.open(tmp_path, read_only=True).load_adapter()
    assert equal(stored, whole.adapter)
    finished = RunFolder.open(tmp_path, read_only=True).load_state()
    assert finished is not None and all(name.startswith("theta.") for name in finished[1])


def test_an_exception_within_a_step_loses_nothing_but_that_step(whole, tmp_path, monkeypatch):
    """State is saved as of the step before; one raised while weights change saves nothing."""
    import resalign.backend.hardening.distil as module

    own = plan(before=(Stage(method="erase"),), save_every=2)
    before, descend, calls = module.norm_and_clip, module.descend, []

    def third(gradients, limit):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("bug")
        return before(gradients, limit)

    monkeypatch.setattr(module, "norm_and_clip", third)
    with pytest.raises(RuntimeError):
        run(own, tmp_path)
    assert RunFolder.open(tmp_path, read_only=True).steps_saved == 2

    def torn(θ, *args, **kwargs):
        descend(θ, *args, **kwargs)
        raise RuntimeError("power")

    monkeypatch.setattr(module, "descend", torn)
    with pytest.raises(RuntimeError):
        run(own, tmp_path)
    assert RunFolder.open(tmp_path, read_only=True).steps_saved == 2
    monkeypatch.undo()
    assert equal(run(own, tmp_path).adapter, whole.adapter)


def test_micro_batches_change_only_rounding(whole):
    """Errors and gradient of the first step; AdamW makes much of rounding in those after it."""
    parts = run(plan(before=(Stage(method="erase"),), micro_batch=3, outer_steps=1))
    got, expected = parts.records[0], whole.records[0]
    for name in ("retain", "harm", "gradient_norm"):
        assert getattr(got, name) == pytest.approx(getattr(expected, name), rel=1e-4)


def test_shared_among_ranks_the_bytes_are_those_of_one_process():
    """The terms' gradients computed as tasks, added in order, equal those added up in place."""
    own = plan(micro_batch=2)
    results = []
    for alone in (True, False):
        with adapted(tiny_model(), own) as denoiser:
            setup = set_up(denoiser, read_plan(own)[1], encoded_data(), alone=alone)
            method, _ = read_plan(own)
            for step in (1, 2):
                method.step(setup, step)
            results.append(denoiser.adapter())
    assert equal(*results)


def test_a_lora_stage_after_it_adds_up(whole):
    """erase, distil, then a LoRA: the model with the sum merged in is the trained one."""
    own = plan(
        method="redirect", outer_steps=2, learning_rate=1e-2,
        before=(Stage(method="erase"), Stage(method="distil", steps=4)),
    )  # fmt: skip
    result = run(own)
    assert isinstance(result.adapter, DenseAdapter)
    model = tiny_model()
    with merged(model, result.adapter):
        merged_weights = {n: t.clone() for n, t in model.denoiser.named_parameters()}
    start = dict(tiny_model().denoiser.named_parameters())
    changed = {n for n, t in merged_weights.items() if not torch.equal(t, start[n])}
    assert changed == set(result.adapter.parameters) and "conv_in.weight" in changed


def test_varied_images_take_their_share_of_each_batch():
    """Whose latents tell them apart; of equal size they share a pass, of another they do not."""
    own = plan(distil=replace(SMALL, varied_share=0.25, concept_share=1.0), caption_dropout=0.0)
    data = encoded_data()
    with adapted(tiny_model(), own) as denoiser:
        for side, passes in ((8, 1), (16, 2)):
            bucket = replace(data.retain.buckets[0], latents=torch.full((16, 4, side, side), 7.0))
            varied = replace(data.retain, buckets=(bucket,))
            setup = set_up(denoiser, read_plan(own)[1], replace(data, varied=varied))
            found = setup.feed.distillation(1)
            latents = [term.args[0].latents for term in found]  # type: ignore[union-attr]
            assert len(found) == passes and sum(map(len, latents)) == 8
            assert sum(int((part[:, 0, 0, 0] == 7).sum()) for part in latents) == 2
            with torch.no_grad():
                assert sum(term()[1] for term in found) == 0


def test_plans_without_these_fields_keep_their_hash():
    """Run folders of before are found again; a changed setting is another plan."""
    own = plan(method="resalign")
    assert plan_hash(own) != plan_hash(replace(own, erase=EraseConfig()))
    plain = replace(own, erase=EraseConfig(), distil=DistilConfig())
    assert plan_hash(plain) != plan_hash(replace(plain, distil=DistilConfig(batch=4)))
    # As the version computed it that had neither `towards` nor `mixed_share`
    changed = replace(own, distil=DistilConfig(batch=4), varied=VariedConfig(images=7))
    assert plan_hash(changed).startswith("249ae8d3ea343b76")
    for field in ({"towards": "anchor"}, {"mixed_share": 0.5}):
        later = replace(changed, distil=replace(changed.distil, **field))
        assert plan_hash(later) != plan_hash(changed)
    durable = HardeningPlan(
        concepts=own.concepts, method="distil", distil=DistilConfig(batch=8),
        erase=EraseConfig(ratio=2.0),
    )  # fmt: skip
    assert plan_hash(durable) == OLD_HASH  # fields that came into these parts later left out
    later = DistilConfig(batch=8, optimiser="adamw8bit")
    assert plan_hash(replace(durable, distil=later)) != OLD_HASH
