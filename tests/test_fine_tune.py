"""Real fine-tuning: it trains what it says, and leaves nothing behind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fakes import random_conditioning, random_set, tiny_model
from resalign.backend.adapter.apply import AdaptedDenoiser
from resalign.backend.adapter.merge_in_place import merged
from resalign.backend.data.batches import draw
from resalign.backend.errors import ExportError
from resalign.backend.numerics.seeds import generator
from resalign.backend.plan.adapter import AdapterConfig
from resalign.backend.plan.fine_tune import FineTuneConfig
from resalign.backend.probe.fine_tune import fine_tuned

LORA = FineTuneConfig(name="lora", learning_rate=1e-2, steps=4, batch=4, rank=2)
FULL = replace(LORA, name="full", method="full", learning_rate=1e-3)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.denoiser.state_dict().items()}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def prediction(model) -> torch.Tensor:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.denoise(latents, torch.tensor([10, 500]), random_conditioning(2))


@pytest.mark.parametrize("config", [LORA, FULL])
def test_the_model_changes_inside_and_is_put_back_to_the_bit(config):
    """Inside the context it predicts otherwise; afterwards every weight is the one before."""
    model = tiny_model()
    before, expected = weights(model), prediction(model)
    with fine_tuned(model, config, random_set(8, 1)):
        assert (prediction(model) - expected).abs().max() > 1e-4
    assert same(weights(model), before)
    assert torch.equal(prediction(model), expected)


@pytest.mark.parametrize("config", [LORA, FULL])
def test_training_lowers_the_loss_on_its_data(config):
    """It is fine-tuning: the denoising error on the data falls."""
    model, data = tiny_model(), random_set(4, 1)
    latents, conditioning = data.draw(torch.Generator().manual_seed(0), 4)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    times = torch.tensor([100, 300, 600, 900])

    def error() -> float:
        noised = model.process.add_noise(latents, noise, times)
        with torch.no_grad():
            return float((model.denoise(noised, times, conditioning) - noise).square().mean())

    before = error()
    with fine_tuned(model, replace(config, steps=30), data):
        assert error() < 0.9 * before


def test_the_same_seed_trains_the_same_model():
    """Batches, noise and LoRA depend on the seed alone."""
    found = []
    for seed in (0, 0, 1):
        model = tiny_model()
        with fine_tuned(model, LORA, random_set(8, 1), seed=seed):
            found.append(prediction(model))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_the_concepts_share_is_drawn_from_the_concept():
    """With a share of 1 only the concept's images are seen: the other set need not be usable."""

    class Untouchable:
        def draw(self, *_args, **_kwargs):
            raise AssertionError("drawn from the wrong set")

    with fine_tuned(
        tiny_model(), replace(LORA, concept_share=1.0), Untouchable(),  # type: ignore[arg-type]
        concept=random_set(8, 2),
    ):  # fmt: skip
        pass


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_full_fine_tuning_is_this_loop_to_the_bit(optimiser):
    """Published numbers rest on it: draws, losses and updates written out once more."""
    config = replace(
        FULL, optimiser=optimiser, concept_share=0.4, caption_dropout=0.3, schedule="linear",
        weight_decay=0.01,
    )  # fmt: skip
    data, concept = random_set(8, 1), random_set(8, 2, shift=1.0)
    model = tiny_model()
    leaves = [part.requires_grad_(True) for part in model.denoiser.parameters()]
    kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[optimiser]
    moving = kind(leaves, lr=config.learning_rate, weight_decay=0.01, foreach=True)
    for step in range(1, 5):
        moving.param_groups[0]["lr"] = config.learning_rate * (1 - (step - 1) / 4)
        random = generator(3, "fine-tune", step)
        harmful = int(4 * 0.4 + float(torch.rand((), generator=random)))
        loss = torch.zeros(())
        for part, count in ((data, 4 - harmful), (concept, harmful)):
            batch = draw(part, random, count, model.process, 0.3)
            noised = model.process.add_noise(batch.latents, batch.noise, batch.timesteps)
            found = model.denoise(noised, batch.timesteps, batch.conditioning)
            errors = (found - batch.noise).square().flatten(1).mean(dim=1)
            loss = loss + errors.mean() * (count / 4)
        for leaf, part in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
            leaf.grad = part
        moving.step()
    trained = tiny_model()
    with fine_tuned(trained, config, data, concept=concept, seed=3):
        assert same(weights(trained), weights(model))


def test_marks_are_visited_in_between():
    """Looking at the model at several steps of one run."""
    seen = []
    with fine_tuned(tiny_model(), LORA, random_set(8, 1), marks=(1, 3), on_mark=seen.append):
        pass
    assert seen == [1, 3]


def test_stopping_from_the_callback_puts_the_weights_back():
    """Whatever is raised passes through, and the model is whole."""
    model = tiny_model()
    before = weights(model)

    def stop(_step: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), fine_tuned(model, FULL, random_set(8, 1), on_step=stop):
        pass
    assert same(weights(model), before)


def test_a_merged_adapter_is_the_adapter_and_comes_out_again():
    """W + ΔW predicts as the adapted network did; afterwards W is exactly as before."""
    model = tiny_model()
    before = weights(model)
    with AdaptedDenoiser(model, AdapterConfig(rank=2, alpha=3)) as denoiser:
        with torch.no_grad():
            for tensor in denoiser.theta.values():
                tensor.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
        expected, adapter = prediction(model), denoiser.adapter()
    with merged(model, adapter):
        torch.testing.assert_close(prediction(model), expected, rtol=1e-4, atol=1e-5)
    assert same(weights(model), before)


def test_an_adapter_of_another_model_is_refused_and_nothing_changes():
    """A wrong shape names the module; the weights written before it are put back."""
    model, other = tiny_model(), tiny_model(block_out_channels=(16, 48))
    with AdaptedDenoiser(other, AdapterConfig()) as denoiser:
        adapter = denoiser.adapter()
    before = weights(model)
    with pytest.raises(ExportError, match="another model"), merged(model, adapter):
        pass
    assert same(weights(model), before)
