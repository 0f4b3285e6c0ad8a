"""Sets encoded once: buckets, captions, cache, synthesis."""

from __future__ import annotations

import logging

import pytest
import torch
from fakes_data import picture, save_pictures, tiny_family
from fakes_latents import assert_same, encode, encoding_fixtures

from resalign.backend.data.encoded_set import merge
from resalign.backend.data.latents import encode_image_set, synthesise
from resalign.backend.data.pixels import frame, open_image
from resalign.backend.errors import DataError
from resalign.backend.model.encode import encode_images, encode_prompts
from resalign.backend.model.generate import generate_latents
from resalign.backend.numerics.seeds import generator
from resalign.backend.plan.images import ImageSet

model, folder, calls = encoding_fixtures()


# Encoding a folder.


def test_a_folder_becomes_latents_by_size_and_each_caption_once(model, folder):
    encoded = encode(model, folder)

    assert len(encoded) == 4
    assert encoded.texts == ("a fox", "a pear", "a train")
    assert [tuple(b.latents.shape) for b in encoded.buckets] == [(1, 4, 5, 12), (3, 4, 8, 8)]
    assert [b.captions.tolist() for b in encoded.buckets] == [[2], [0, 1, 0]]
    expected = encode_images(model, frame(open_image(folder / "b.png"), 64).pixels[None])
    assert torch.equal(encoded.buckets[1].latents[1:2], expected)
    texts = encode_prompts(model, ["a fox", "a pear", "a train", ""])
    torch.testing.assert_close(encoded.conditioning["context"], texts["context"][:3])
    torch.testing.assert_close(encoded.empty["context"], texts["context"][3:])


def test_the_resolution_sets_the_size(model, folder):
    shapes = {tuple(b.latents.shape[2:]) for b in encode(model, folder, resolution=128).buckets}

    assert shapes == {(16, 16), (10, 24)}


def test_sdxl_is_told_original_size_and_crop_of_each_image(tmp_path):
    save_pictures(tmp_path, {"a.png": "a fox"}, side=128)
    picture(100, 230).save(tmp_path / "b.png")
    (tmp_path / "b.txt").write_text("a train")

    encoded = encode(tiny_family("sdxl"), tmp_path)

    assert [b.own["time_ids"].tolist() for b in encoded.buckets] == [
        [[100, 230, 1, 0, 40, 96]],
        [[128, 128, 0, 0, 64, 64]],
    ]
    assert encoded.conditioning["pooled"].shape == (2, 12)
    assert "time_ids" not in encoded.conditioning


def test_broken_images_are_all_listed_before_anything_is_encoded(model, folder, calls):
    for name in ("a.png", "wide.png"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    with pytest.raises(DataError, match=r"2 of 4 images are broken: a\.png \(.+\), wide\.png \("):
        encode(model, folder)
    assert calls() == (0, 0, 0)


def test_broken_images_are_left_out_on_request_and_named_in_a_warning(model, folder, caplog):
    (folder / "a.png").write_bytes(b"")

    with caplog.at_level(logging.WARNING):
        encoded = encode(model, folder, skip_broken=True)

    assert len(encoded) == 3
    assert "1 images skipped: a.png (not an image)" in caplog.text


def test_a_folder_of_broken_images_alone_is_an_error_even_when_skipping(model, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "a.txt").write_text("x")

    with pytest.raises(DataError, match="none of its 1 images can be read"):
        encode(model, tmp_path, skip_broken=True)


def test_enlarged_images_are_counted_in_a_warning(model, tmp_path, caplog):
    save_pictures(tmp_path, {"a.png": "x"}, side=32)
    save_pictures(tmp_path, {"b.png": "x"}, side=64)

    encode(model, tmp_path)

    assert "1 of 2 images are smaller than the size they are trained at" in caplog.text


def test_latents_that_are_not_finite_name_the_image(model, folder):
    with torch.no_grad():
        model.vae.quant_conv.bias.fill_(float("nan"))

    with pytest.raises(DataError, match=r"a\.png gave values that are not finite"):
        encode(model, folder)


def test_progress_counts_the_images_checked_and_encoded(model, folder):
    moments = []
    encode(model, folder, on_progress=moments.append)

    assert [(m.stage, m.step, m.total) for m in moments] == [
        (stage, step, 4) for stage in ("checking images", "encoding") for step in range(1, 5)
    ]


# Synthesis.


def test_a_synthesised_set_is_what_sampling_gives_and_is_never_decoded(model, monkeypatch):
    monkeypatch.setattr(model.vae, "decode", None)
    monkeypatch.setattr(model.vae, "encode", None)

    encoded = synthesise(model, ["a fox", "a pear"], 3, steps=2, guidance=2.0)

    seeds = [generator(0, "synthesis", index).initial_seed() for index in range(3)]
    expected = generate_latents(
        model, ["a fox", "a pear", "a fox"], seeds=seeds, steps=2, guidance=2.0
    )
    assert torch.equal(encoded.buckets[0].latents, expected)
    assert encoded.texts == ("a fox", "a pear")
    assert encoded.buckets[0].captions.tolist() == [0, 1, 0]


def test_an_image_set_of_prompts_is_synthesised(model):
    image_set = ImageSet(prompts=("a fox",), images=2, sampling_steps=2, guidance=1.0)

    encoded = encode_image_set(model, image_set, resolution=32)

    assert encoded.buckets[0].latents.shape == (2, 4, 4, 4)
    expected = synthesise(model, ["a fox"], 2, steps=2, guidance=1.0, resolution=32)
    assert_same(encoded, expected)


def test_a_larger_synthesis_begins_with_the_smaller(model):
    small, large = (synthesise(model, ["a", "b"], n, steps=2) for n in (3, 9))

    torch.testing.assert_close(
        large.buckets[0].latents[:3], small.buckets[0].latents, atol=1e-4, rtol=1e-4
    )


def test_sdxl_synthesis_is_told_its_own_size():
    encoded = synthesise(tiny_family("sdxl"), ["a"], 2, steps=1, resolution=48)

    assert encoded.buckets[0].own["time_ids"].tolist() == [[48, 48, 0, 0, 48, 48]] * 2


def test_a_model_that_makes_nothing_finite_is_an_error_that_says_so(model):
    with torch.no_grad():
        model.denoiser.conv_out.bias.fill_(float("nan"))

    with pytest.raises(DataError, match=r"synthesis of 'a fox' .* not finite"):
        synthesise(model, ["a fox"], 1, steps=1)


def test_progress_of_a_synthesis_counts_the_whole_set(model):
    moments = []
    synthesise(model, ["a"], 9, steps=1, guidance=1.0, on_progress=moments.append)

    assert [(m.step, m.micro_step, m.total) for m in moments] == [
        (0, 1, 9), (8, 0, 9), (8, 1, 9), (9, 0, 9),
    ]  # fmt: skip
    assert {m.stage for m in moments} == {"synthesising"}


# Merging.


def test_merged_sets_share_captions_and_keep_their_own_latents(model, folder, tmp_path):
    other = save_pictures(tmp_path / "other", {"k.png": "a boat", "l.png": "a fox"})
    one, two = encode(model, folder), encode(model, other)

    both = merge([one, two])

    assert len(both) == 6
    assert both.texts == ("a fox", "a pear", "a train", "a boat")
    assert both.buckets[1].captions.tolist() == [0, 1, 0, 3, 0]
    torch.testing.assert_close(both.conditioning["context"][3], two.conditioning["context"][0])
    assert torch.equal(both.buckets[1].latents[3:], two.buckets[0].latents)


def test_merge_weights_are_shares_of_the_draws(model, folder, tmp_path):
    other = save_pictures(tmp_path / "other", {"k.png": "a boat"})
    both = merge([encode(model, folder), encode(model, other)], [1, 3])

    totals = [float(bucket.weights.sum()) for bucket in both.buckets]

    assert totals == pytest.approx([0.25, 0.75 + 3])
    assert both.buckets[1].weights.tolist() == [0.25, 0.25, 0.25, 3.0]


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0]])
def test_merge_needs_one_positive_weight_for_each_set(model, folder, weights):
    encoded = encode(model, folder)

    with pytest.raises(ValueError, match="merge"):
        merge([encoded, encoded], weights)
