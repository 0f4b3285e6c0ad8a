"""A plan's data, and seeded draws from it."""

from __future__ import annotations

import collections
from dataclasses import replace

import pytest
import torch
from fakes_checkpoint import write_tiny_checkpoint
from fakes_data import Calls, picture, save_pictures, tiny_family
from marks import slow

from fakes import random_conditioning, random_set
from resalign.backend.checkpoint.load import load_checkpoint
from resalign.backend.data import batches, drawn_sets, latents
from resalign.backend.data.batches import (
    EncodedData,
    draw,
    draw_noise,
    generator,
    prepare_data,
)
from resalign.backend.data.concept import load_preset, preset_names
from resalign.backend.data.encoded_set import Bucket, EncodedSet
from resalign.backend.data.latents import encode_image_set
from resalign.backend.errors import DataError
from resalign.backend.families.base.conditioning import Conditioning
from resalign.backend.families.base.process import EpsilonProcess, scaled_linear_alphas_cumprod
from resalign.backend.hardening.setup import adapted, set_up
from resalign.backend.model.encode import encode_prompts
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.fine_tune import FineTuneConfig
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.harm import HarmConfig
from resalign.backend.plan.images import ImageSet

PROCESS = EpsilonProcess(scaled_linear_alphas_cumprod())


def numbered_set(*counts, pooled=False):
    """Buckets of different widths; every latent is filled with its running number."""
    buckets, number = [], 0

    def told(context, side):
        return Conditioning({"context": context} | ({"pooled": side} if pooled else {}))

    for width, count in enumerate(counts, start=1):
        values = torch.arange(number, number + count, dtype=torch.float32)
        full = values.view(-1, 1, 1, 1).expand(count, 4, 1, width).clone()
        ids = values.view(-1, 1).expand(count, 6).clone()
        own = Conditioning({"time_ids": ids} if pooled else {})
        captions = torch.arange(number, number + count)
        buckets.append(Bucket(full, captions, torch.ones(count, dtype=torch.float64), own))
        number += count
    context = torch.arange(number, dtype=torch.float32).view(-1, 1, 1).expand(number, 2, 3).clone()
    side = torch.arange(number, dtype=torch.float32).view(-1, 1).expand(number, 5).clone()
    empty = told(torch.full((1, 2, 3), -1.0), torch.full((1, 5), -1.0))
    return EncodedSet(
        tuple(buckets), tuple(str(n) for n in range(number)),
        told(context, side), empty,
    )  # fmt: skip


# Draws.


def test_a_draw_follows_from_its_generator_alone():
    encoded = random_set(12, 0)

    def values(*names):
        found = draw(encoded, generator(3, *names), 4, PROCESS, caption_dropout=0.5)
        return found.latents, found.noise, found.timesteps, found.conditioning["context"]

    for one, other in zip(values("forget", 7), values("forget", 7), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(values("forget", 7)[1], values("forget", 8)[1])
    assert not torch.equal(values("forget", 7)[1], values("retain", 7)[1])


def test_a_draw_has_the_shapes_and_the_type_of_its_set():
    encoded = random_set(12, 0).to("cpu", torch.bfloat16)

    found = draw(encoded, generator(0), 5, EpsilonProcess(torch.linspace(0.99, 0.1, 10)))

    assert len(found) == 5
    assert found.latents.shape == found.noise.shape == (5, 4, 8, 8)
    assert found.latents.dtype == found.noise.dtype == torch.bfloat16
    assert found.timesteps.dtype == torch.int64 and found.timesteps.max() < 10
    assert len(found.conditioning) == 5


def test_a_batch_is_of_one_size_and_goes_with_its_own_captions():
    encoded = numbered_set(3, 5, pooled=True)

    for step in range(20):
        drawn, conditioning = encoded.draw(generator(step), 3)
        numbers = drawn[:, 0, 0, 0]
        assert len(set(numbers.tolist())) == 3
        assert torch.equal(conditioning["context"][:, 0, 0], numbers)
        assert torch.equal(conditioning["pooled"][:, 0], numbers)
        assert torch.equal(conditioning["time_ids"][:, 0], numbers)


def test_every_sample_is_equally_likely_whatever_its_size():
    encoded, counts = numbered_set(1, 7), collections.Counter()

    for step in range(1600):
        counts.update(encoded.draw(generator(step), 1)[0][:, 0, 0, 0].tolist())

    assert sorted(counts) == list(range(8))
    # 200 each; four standard deviations of a binomial of 1600 at 1/8
    assert all(abs(count - 200) < 53 for count in counts.values())


def test_a_size_with_few_samples_repeats_each_about_as_often():
    drawn, _ = numbered_set(3).draw(generator(0), 8)

    counts = collections.Counter(drawn[:, 0, 0, 0].tolist())
    assert sorted(counts.values()) == [2, 3, 3]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_captions_are_dropped_at_the_given_rate_and_sizes_are_kept(share):
    encoded = numbered_set(1000, pooled=True)

    drawn, conditioning = encoded.draw(generator(1), 1000, caption_dropout=share)

    dropped = conditioning["context"][:, 0, 0] == -1
    assert dropped.float().mean() == pytest.approx(share, abs=0.06)
    assert torch.equal(dropped, conditioning["pooled"][:, 0] == -1)
    assert torch.equal(conditioning["time_ids"][:, 0], drawn[:, 0, 0, 0])


def test_dropping_captions_does_not_change_which_samples_are_drawn():
    encoded = random_set(12, 0)

    plain, dropping = (
        draw(encoded, generator(5), 4, PROCESS, caption_dropout=d) for d in (0.0, 0.9)
    )

    assert torch.equal(plain.latents, dropping.latents)
    assert torch.equal(plain.noise, dropping.noise)
    assert torch.equal(plain.timesteps, dropping.timesteps)


def test_noise_is_drawn_in_float32_and_then_cast():
    full = draw_noise((4, 3), generator(0))

    assert torch.equal(draw_noise((4, 3), generator(0), dtype=torch.float16), full.half())


def test_sizes_in_pixels_stay_exact_when_a_set_is_cast():
    encoded = numbered_set(4, pooled=True).to("cpu", torch.bfloat16)

    assert encoded.buckets[0].latents.dtype == encoded.empty["pooled"].dtype == torch.bfloat16
    assert encoded.buckets[0].own["time_ids"].dtype == torch.float32


def test_a_set_that_serves_twice_is_moved_once():
    retain = random_set(4, 0)
    data = EncodedData(
        forget={"a": random_set(4, 1)}, retain=retain, anchors={"a": random_conditioning(1)},
        empty=random_conditioning(1), fine_tunes={"retain": retain},
    ).to("cpu", torch.bfloat16)  # fmt: skip

    assert data.fine_tunes["retain"] is data.retain
    for part in (
        data.forget["a"].buckets[0].latents,
        data.anchors["a"]["context"],
        data.empty["context"],
    ):
        assert part.dtype == torch.bfloat16


# From a plan.


@pytest.fixture
def folders(tmp_path):
    save_pictures(tmp_path / "forget", {"a.png": "a bad thing", "b.png": "a bad thing"})
    save_pictures(tmp_path / "retain", {"a.png": "a fox", "b.png": "a pear", "c.png": "a kite"})
    save_pictures(tmp_path / "pets", {"a.png": "my dog"})
    return {name: str(tmp_path / name) for name in ("forget", "retain", "pets")}


def make_plan(folders, **changes):
    fields = {
        "concept": Concept("bad", ("a bad thing",), anchor="a good thing"),
        "forget_set": ImageSet(folder=folders["forget"]),
        "retain_set": ImageSet(folder=folders["retain"]),
    }
    return HardeningPlan(**(fields | changes))


def test_a_plan_becomes_encoded_sets(folders):
    model = tiny_family()
    plan = make_plan(
        folders,
        fine_tunes=(
            FineTuneConfig(name="one", data=folders["pets"]),
            FineTuneConfig(name="two", method="dreambooth", prior_data=folders["forget"]),
        ),
    )

    data = prepare_data(model, plan)

    assert len(data.forget["bad"]) == 2 and len(data.retain) == 3
    assert set(data.fine_tunes) == {"retain", folders["pets"], folders["forget"]}
    assert data.fine_tunes["retain"] is data.retain
    assert data.fine_tunes[folders["forget"]] is data.forget["bad"]
    expected = encode_prompts(model, ["a good thing", ""])
    torch.testing.assert_close(data.anchors["bad"]["context"], expected["context"][:1])
    torch.testing.assert_close(data.empty["context"], expected["context"][1:])
    assert len(draw(data.retain, generator(0), 2, PROCESS)) == 2


def test_prior_data_are_encoded_for_dreambooth_only(folders):
    plan = make_plan(folders, fine_tunes=(FineTuneConfig(name="one", data=folders["pets"]),))

    assert set(prepare_data(tiny_family(), plan).fine_tunes) == {folders["pets"]}


def test_a_concept_s_own_images_come_before_the_plan_s_and_prompts_come_last(folders, monkeypatch):
    asked = []

    def note(model, image_set, **arguments):
        asked.append(image_set)
        return random_set(4, 0)

    monkeypatch.setattr(batches, "encode_image_set", note)
    own = ImageSet(folder=folders["pets"])
    concepts = (Concept("own", ("x",), images=own), Concept("bad", ("a bad thing",)))

    prepare_data(tiny_family(), make_plan(folders, concept=None, concepts=concepts))
    prepare_data(tiny_family(), make_plan(folders, concept=concepts[1], forget_set=None))

    assert asked[:2] == [own, ImageSet(folder=folders["forget"])]
    assert asked[3] == ImageSet(prompts=("a bad thing",))


def test_a_folder_that_is_named_twice_is_encoded_once(folders, monkeypatch):
    counter = Calls(encode_image_set)
    monkeypatch.setattr(batches, "encode_image_set", counter)
    concepts = (Concept("one", ("x",)), Concept("two", ("y",)))
    fine_tune = FineTuneConfig(name="a", data=folders["retain"])

    data = prepare_data(
        tiny_family(), make_plan(folders, concept=None, concepts=concepts, fine_tunes=(fine_tune,))
    )

    assert counter.count == 2
    assert data.forget["one"] is data.forget["two"]
    assert data.fine_tunes[folders["retain"]] is data.retain


def test_the_second_run_of_a_plan_comes_from_the_cache(folders, tmp_path, monkeypatch):
    model, plan = tiny_family(), make_plan(folders)
    first = prepare_data(model, plan, cache=tmp_path / "cache")
    monkeypatch.setattr(latents, "encode_images", None)

    second = prepare_data(model, plan, cache=tmp_path / "cache")

    assert torch.equal(first.retain.buckets[0].latents, second.retain.buckets[0].latents)


def test_without_a_retain_set_the_shipped_prompts_are_synthesised_less_the_concept(
    folders, monkeypatch
):
    asked = []

    def note(model, image_set, **arguments):
        asked.append(image_set)
        return random_set(4, 0)

    monkeypatch.setattr(batches, "encode_image_set", note)
    monkeypatch.setattr(drawn_sets, "RETAIN_IMAGES", 400)
    concepts = (Concept("Fox", ("a fox",)), load_preset("weapons").concept())

    prepare_data(
        tiny_family(), make_plan(folders, concept=None, concepts=concepts, retain_set=None)
    )

    prompts = asked[-1].prompts
    assert "a kitchen knife beside sliced tomatoes" in prompts
    assert "a clay figure of a fox" not in prompts and "a red fox in the snow" not in prompts
    assert len(prompts) > 250


def test_near_neighbours_of_all_concepts_share_half_of_the_retain_prompts(folders, monkeypatch):
    asked = []
    monkeypatch.setattr(
        batches, "encode_image_set", lambda _, given, **kw: asked.append(given) or random_set(4, 0)
    )
    presets = [load_preset(name) for name in preset_names()]
    concepts = tuple(preset.concept() for preset in presets)

    prepare_data(
        tiny_family(), make_plan(folders, concept=None, concepts=concepts, retain_set=None)
    )

    prompts = asked[-1].prompts
    assert len(set(prompts)) == len(prompts) == asked[-1].images == 128
    shares = [len(set(preset.benign) & set(prompts)) for preset in presets]
    assert sum(shares) <= 64 and min(shares) >= 10


def test_the_plan_s_resolution_or_else_the_model_s_is_used(folders):
    for resolution, side in ((0, 8), (128, 16)):
        data = prepare_data(tiny_family("sdxl"), make_plan(folders, resolution=resolution))
        pixels = resolution or 64
        assert data.retain.buckets[0].latents.shape[2:] == (side, side)
        assert data.empty["time_ids"].tolist() == [[pixels, pixels, 0, 0, pixels, pixels]]


def test_an_anchor_stands_for_the_caption_and_leaves_a_sample_its_own_size(folders):
    """SDXL is shown the concept at the sample's size, and must answer as to the anchor at it."""
    model = tiny_family("sdxl")
    data = prepare_data(model, make_plan(folders))
    anchor, encoded = data.anchors["bad"], data.forget["bad"]
    assert set(anchor.parts) == {"context", "pooled"} == set(encoded.conditioning.parts)

    batch = draw(encoded, generator(0), 2, PROCESS)
    own = torch.arange(12.0).reshape(2, 6)
    batch = replace(batch, conditioning=batch.conditioning.beside(Conditioning({"time_ids": own})))
    seen = []
    plan = replace(make_plan(folders), harm=HarmConfig(loss="redirect"))
    with adapted(model, plan) as denoiser:
        setup = set_up(denoiser, plan, data)
        model.denoiser.register_forward_pre_hook(
            lambda _, args, given: seen.append((args, given)), with_kwargs=True
        )
        setup.feed.objective.original(batch, anchor)
    (((_, _, context), given),) = seen
    assert torch.equal(given["added_cond_kwargs"]["time_ids"], own)
    assert torch.equal(context, anchor["context"].expand(2, -1, -1))


def test_broken_images_stop_the_plan_unless_it_allows_them(folders, tmp_path):
    picture(64, 64).save(tmp_path / "retain" / "d.png")
    (tmp_path / "retain" / "d.txt").write_text("x")
    (tmp_path / "retain" / "a.png").write_bytes(b"")

    with pytest.raises(DataError, match=r"a\.png \(not an image\)"):
        prepare_data(tiny_family(), make_plan(folders))
    assert len(prepare_data(tiny_family(), make_plan(folders, skip_broken_images=True)).retain) == 3


def test_progress_says_which_set_is_worked_on(folders):
    moments = []
    prepare_data(tiny_family(), make_plan(folders), on_progress=moments.append)

    assert {m.message for m in moments} == {"forget set of bad", "retain set"}


@pytest.mark.parametrize("family", ["sd1", *slow("sd2", "sdxl")])
def test_a_checkpoint_file_of_each_family_feeds_its_own_denoiser(family, folders, tmp_path):
    path = write_tiny_checkpoint(tmp_path / "tiny.safetensors", family)
    model = load_checkpoint(path, device="cpu", dtype=torch.float32)
    plan = make_plan(
        folders,
        concept=Concept("bad", images=ImageSet(prompts=("a bomb",), images=2, sampling_steps=2)),
        retain_set=ImageSet(folder=folders["retain"]),
    )

    data = prepare_data(model, plan, cache=tmp_path / "cache").to("cpu", torch.float32)

    for encoded in (data.forget["bad"], data.retain):
        found = draw(encoded, generator(0), 2, PROCESS, caption_dropout=0.5)
        noised = model.process.add_noise(found.latents, found.noise, found.timesteps)
        prediction = model.denoise(noised, found.timesteps, found.conditioning)
        assert prediction.shape == (2, 4, 8, 8) and prediction.isfinite().all()
    anchor = found.conditioning[:1].beside(data.anchors["bad"])
    assert model.denoise(noised[:1], found.timesteps[:1], anchor).isfinite().all()
