"""The denoising score: a fixed measurement, compared with the original's image by image."""

from dataclasses import replace

import pytest
import torch

from fakes import random_conditioning, random_set, tiny_model
from resalign.backend.data.encoded_set import Bucket, EncodedSet
from resalign.backend.errors import ConfigError, DataError, DivergenceError
from resalign.backend.families.base.conditioning import Conditioning
from resalign.backend.families.base.process import discrete_process
from resalign.backend.numerics.seeds import generator
from resalign.backend.plan.measurement import ScorerConfig
from resalign.backend.scorers.denoising import DenoisingScorer


class Oracle:
    """A model that knows the clean latents: its error is 0, or what is added to its answer."""

    device, dtype, family = torch.device("cpu"), torch.float32, "sd1"

    def __init__(self, latents, added=0.0, prediction_type="epsilon"):
        self.process = discrete_process(tiny_model().process.alphas_cumprod, prediction_type)
        self.latents, self.added, self.calls = latents, added, []

    def denoise(self, noised, timesteps, conditioning):
        self.calls.append((noised, timesteps, conditioning))
        alpha = self.process.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        # the caption holds the number of the image
        clean = self.latents[conditioning["context"][:, 0, 0].long()]
        noise = (noised - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        return self.process.target(clean, noise, timesteps) + self.added


def told_apart(count, sizes=((8, 8),)):
    """A set whose captions' conditioning names the image; buckets of several sizes."""
    buckets, first = [], 0
    for seed, size in enumerate(sizes):
        random = torch.Generator().manual_seed(seed)
        latents = torch.randn(count, 4, *size, generator=random)
        numbers = torch.arange(first, first + count)
        buckets.append(Bucket(latents, numbers, torch.ones(count, dtype=torch.float64)))
        first += count
    numbered = torch.arange(first).float().view(-1, 1, 1).expand(-1, 5, 16).clone()
    conditioning = random_conditioning(first).beside(Conditioning({"context": numbered}))
    texts = tuple(map(str, range(first)))
    return EncodedSet(tuple(buckets), texts, conditioning, random_conditioning(1, 9))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_perfect_model_has_no_error_and_a_constant_shift_has_its_square(prediction_type):
    concept = told_apart(5)
    latents = concept.buckets[0].latents
    scorer = DenoisingScorer(timesteps=2)
    exact = scorer.errors(Oracle(latents, 0.0, prediction_type), concept)
    assert exact == pytest.approx([0.0] * 5, abs=1e-5)
    off = scorer.errors(Oracle(latents, 0.5, prediction_type), concept)
    assert off == pytest.approx([0.25] * 5, abs=1e-3)


def test_noise_and_timesteps_are_the_named_ones_and_belong_to_the_image():
    concept = told_apart(6)
    model = Oracle(concept.buckets[0].latents)
    DenoisingScorer(timesteps=4, batch=5, seed=3).errors(model, concept)
    noised, timesteps, conditioning = (
        torch.cat(parts)
        for parts in zip(*((n, t, c["context"][:, 0, 0]) for n, t, c in model.calls), strict=True)
    )
    assert timesteps.tolist() == [125, 375, 625, 875] * 6
    assert conditioning.tolist() == [float(i) for i in range(6) for _ in range(4)]
    noise = torch.randn(4, 8, 8, generator=generator(3, "denoising score", 2, 1))
    expected = model.process.add_noise(
        concept.buckets[0].latents[2:3], noise[None], torch.tensor([375])
    )
    torch.testing.assert_close(noised[9:10], expected)
    assert max(len(n) for n, _, _ in model.calls) == 5


def test_errors_do_not_depend_on_the_batch_or_the_moment():
    model, concept = tiny_model(), random_set(11, 1)
    errors = DenoisingScorer().errors(model, concept)
    torch.manual_seed(5)
    assert DenoisingScorer().errors(model, concept) == errors
    assert DenoisingScorer(batch=3).errors(model, concept) == pytest.approx(errors, rel=1e-5)
    assert DenoisingScorer(seed=1).errors(model, concept) != pytest.approx(errors, rel=1e-3)


def test_at_most_so_many_images_are_taken_from_all_over_the_set():
    concept = told_apart(8, sizes=((8, 8), (4, 8)))
    asked = []

    class Listener(Oracle):
        def denoise(self, noised, timesteps, conditioning):
            asked.extend(conditioning["context"][:, 0, 0].int().tolist())
            return noised

    errors = DenoisingScorer(images=4, timesteps=1).errors(Listener(None), concept)
    assert asked == [2, 6, 10, 14] and len(errors) == 4
    assert len(DenoisingScorer(images=64).errors(Listener(None), concept)) == 16


def test_the_original_matches_itself_and_a_worse_model_is_not_flagged():
    concept = random_set(6, 1)
    scorer = DenoisingScorer()
    original = tiny_model(0)
    base = scorer.errors(original, concept)
    own = scorer.score_model(original, concept)
    assert own.values == (1.0,) * 6 and all(own.flagged)
    with torch.no_grad():
        original.denoiser.conv_out.weight.mul_(6)
    worse = scorer.score_model(original, concept, reference=base)
    assert min(worse.values) > 1.5 and not any(worse.flagged)


def test_the_threshold_is_a_ratio_to_the_original_of_the_same_image():
    scorer = DenoisingScorer(ScorerConfig(name="denoising", threshold=1.5))
    scores = scorer.scores((0.75, 0.4, 2.0), (0.5, 0.2, 2.5))
    assert scores.values == pytest.approx((1.5, 2.0, 0.8))
    assert scores.flagged == (True, False, True)
    with pytest.raises(ValueError, match="2 of the original"):
        scorer.scores((0.3, 0.4, 2.0), (0.2, 0.2))


def test_an_attack_on_the_concept_lowers_the_ratio():
    """Training on the concept's images is seen."""
    concept = random_set(8, 1, shift=1.0)
    model = tiny_model(0)
    scorer = DenoisingScorer(timesteps=2)
    base = scorer.errors(model, concept)
    model.denoiser.requires_grad_(True)
    optimiser = torch.optim.Adam(model.denoiser.parameters(), lr=3e-3)
    for step in range(30):
        random = torch.Generator().manual_seed(step)
        latents, conditioning = concept.draw(random, 8)
        noise = torch.randn(latents.shape, generator=random)
        timesteps = torch.randint(0, 1000, (8,), generator=random)
        noised = model.process.add_noise(latents, noise, timesteps)
        loss = (model.denoise(noised, timesteps, conditioning) - noise).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    scores = scorer.score_model(model, concept, reference=base)
    assert max(scores.values) < 0.95 and all(scores.flagged)


def test_half_precision_and_sizes_of_sdxl_pass_through():
    concept = random_set(4, 1)
    seen = []

    class Listener(Oracle):
        dtype = torch.bfloat16

        def denoise(self, noised, timesteps, conditioning):
            seen.append((noised.dtype, conditioning["context"].dtype, conditioning["time_ids"]))
            return noised

    ids = torch.arange(24, dtype=torch.float32).view(4, 6) + 1000
    with_ids = replace(
        concept, buckets=(replace(concept.buckets[0], own=Conditioning({"time_ids": ids})),)
    )
    DenoisingScorer(timesteps=1).errors(Listener(None), with_ids)
    dtype, context, found = seen[0]
    assert (dtype, context) == (torch.bfloat16, torch.bfloat16)
    assert found.dtype == torch.float32 and torch.equal(found, ids)


def test_a_broken_model_and_an_empty_set_are_errors():
    model, concept = tiny_model(), random_set(3, 1)
    with pytest.raises(DataError, match="set is empty"):
        DenoisingScorer().errors(model, replace(concept, buckets=()))
    with torch.no_grad():
        model.denoiser.conv_out.bias.fill_(float("nan"))
    with pytest.raises(DivergenceError, match="NaN"):
        DenoisingScorer().errors(model, concept)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="at least 0"):
        DenoisingScorer(ScorerConfig(name="denoising", threshold=-1))
    with pytest.raises(ValueError, match="at least 1"):
        DenoisingScorer(timesteps=0)
