"""Sets encoded once: buckets, captions, cache, synthesis."""

from __future__ import annotations

import logging

import pytest
import safetensors.torch
import torch
from fakes_data import Calls, picture, save_pictures, tiny_family

from resalign.backend.data import assembly, latents
from resalign.backend.data.cache import EncodingCache, _digest, content_key, fingerprint
from resalign.backend.data.encoded_set import merge
from resalign.backend.data.latents import encode_image_set, synthesise
from resalign.backend.data.pixels import frame, open_image
from resalign.backend.errors import DataError
from resalign.backend.model.encode import encode_images, encode_prompts, encode_tokens
from resalign.backend.model.generate import generate_latents
from resalign.backend.numerics.seeds import generator
from resalign.backend.plan.images import ImageSet


@pytest.fixture
def model():
    return tiny_family()


@pytest.fixture
def folder(tmp_path):
    """Three square pictures with two captions, and a wide one."""
    save_pictures(tmp_path / "set", {"a.png": "a fox", "b.png": "a pear", "c.png": "a fox"})
    picture(40, 96, seed=9).save(tmp_path / "set" / "wide.png")
    (tmp_path / "set" / "wide.txt").write_text("a train")
    return tmp_path / "set"


@pytest.fixture
def calls(monkeypatch):
    """How often images, texts and synthesised batches went through the networks."""
    counters = {
        "images": Calls(encode_images), "texts": Calls(encode_tokens),
        "batches": Calls(generate_latents),
    }  # fmt: skip
    monkeypatch.setattr(latents, "encode_images", counters["images"])
    monkeypatch.setattr(assembly, "encode_tokens", counters["texts"])
    monkeypatch.setattr(latents, "generate_latents", counters["batches"])

    def taken():
        counts = tuple(counter.count for counter in counters.values())
        for counter in counters.values():
            counter.count = 0
        return counts

    return taken


def encode(model, folder, **arguments):
    return encode_image_set(model, ImageSet(folder=str(folder)), **arguments)


def assert_same(one, other):
    assert one.texts == other.texts and len(one.buckets) == len(other.buckets)
    for first, second in zip(one.buckets, other.buckets, strict=True):
        assert torch.equal(first.latents, second.latents)
        assert torch.equal(first.captions, second.captions)
    assert torch.equal(one.conditioning["context"], other.conditioning["context"])
    assert torch.equal(one.empty["context"], other.empty["context"])


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


# The cache.


def test_what_is_in_the_cache_is_not_encoded_again(model, folder, tmp_path, calls):
    first = encode(model, folder, cache=tmp_path / "cache")
    assert calls() == (4, 4, 0)

    second = encode(model, folder, cache=tmp_path / "cache")

    assert calls() == (0, 0, 0)
    assert_same(first, second)
    assert_same(first, encode(model, folder))


def test_a_changed_image_or_caption_alone_is_encoded_again(model, folder, tmp_path, calls):
    encode(model, folder, cache=tmp_path / "cache")
    calls()
    picture(64, 64, seed=77).save(folder / "a.png")
    assert encode(model, folder, cache=tmp_path / "cache") and calls() == (1, 0, 0)

    (folder / "b.txt").write_text("a plum")
    encoded = encode(model, folder, cache=tmp_path / "cache")

    assert calls() == (0, 1, 0)
    assert encoded.texts == ("a fox", "a plum", "a train")


def test_other_weights_or_another_resolution_miss_the_cache(model, folder, tmp_path, calls):
    encode(model, folder, cache=tmp_path / "cache")
    calls()
    encode(model, folder, cache=tmp_path / "cache", resolution=128)
    assert calls() == (4, 0, 0)
    with torch.no_grad():
        model.vae.encoder.conv_in.weight[0, 0, 0, 0] += 1e-3
    encode(model, folder, cache=tmp_path / "cache")
    assert calls() == (4, 0, 0)
    with torch.no_grad():
        model.text_encoders[0].get_parameter(
            next(name for name, _ in model.text_encoders[0].named_parameters() if "bias" in name)
        )[0] += 1e-3
    encode(model, folder, cache=tmp_path / "cache")
    assert calls() == (0, 4, 0)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_entry_is_encoded_again_with_a_warning(
    model, folder, tmp_path, caplog, calls, damage
):
    first = encode(model, folder, cache=tmp_path / "cache")
    calls()
    for path in (tmp_path / "cache").iterdir():
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes({"cut": data[:-9], "flip": data, "empty": b""}[damage])

    with caplog.at_level(logging.WARNING):
        again = encode(model, folder, cache=tmp_path / "cache")

    assert calls() == (4, 4, 0)
    assert "is damaged" in caplog.text
    assert_same(first, again)
    assert_same(first, encode(model, folder, cache=tmp_path / "cache"))
    assert calls() == (0, 0, 0)


def test_an_entry_under_anothers_name_is_encoded_again(tmp_path, caplog):
    """The checksum covers the key; entries of older versions have one without it."""
    cache = EncodingCache(tmp_path)
    for key, value in (("one", 1.0), ("two", 2.0)):
        cache.save(key, {"x": torch.full((2,), value)})
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    swapped = two.read_bytes()
    two.write_bytes(one.read_bytes())
    one.write_bytes(swapped)
    assert cache.load("one") is None and cache.load("two") is None
    assert "is damaged" in caplog.text
    tensors = {"x": torch.ones(2)}
    old = {**tensors, "sha256": torch.tensor(list(_digest(tensors)), dtype=torch.uint8)}
    safetensors.torch.save_file(old, one)
    assert torch.equal(cache.load("one")["x"], tensors["x"])


def test_a_cached_folder_is_the_same_when_it_grows(model, folder, tmp_path):
    alone = encode(model, folder)
    encode(model, folder, cache=tmp_path / "cache")
    save_pictures(folder, {"z.png": "a boat"})

    grown = encode(model, folder, cache=tmp_path / "cache")

    assert torch.equal(grown.buckets[1].latents[:3], alone.buckets[1].latents)


def test_the_cache_holds_tensors_only_and_no_unfinished_file(model, folder, tmp_path, monkeypatch):
    encode(model, folder, cache=tmp_path / "cache")
    for path in (tmp_path / "cache").iterdir():
        names = set(safetensors.torch.load_file(path))
        assert names in ({"latents", "frame", "sha256"}, {"context", "sha256"})

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", crash)
    with pytest.raises(KeyboardInterrupt):
        EncodingCache(tmp_path / "other").save("key", {"a": torch.zeros(1)})
    assert list((tmp_path / "other").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(DataError, match=r"cache .*file: cannot be written"):
        EncodingCache(tmp_path / "file").save("key", {"a": torch.zeros(1)})


def test_keys_do_not_run_into_each_other():
    assert content_key("a", "bc") != content_key("a", "b", "c")
    assert content_key("a", b"x", 1) == content_key("a", b"x", 1) != content_key("a", b"y", 1)


def test_a_fingerprint_follows_every_weight_and_the_type_but_not_gradients_or_mode(model):
    unet = model.denoiser
    before = fingerprint(unet)
    assert fingerprint(unet.train().requires_grad_(True)) == before
    weight = unet.get_parameter("mid_block.resnets.0.conv1.weight")
    with torch.no_grad():
        weight.view(-1)[77] += 1e-4
    changed = fingerprint(unet)
    with torch.no_grad():
        weight.view(-1)[77] -= 1e-4
        weight.view(-1)[[3, 4]] = weight.view(-1)[[4, 3]]
    assert len({before, changed, fingerprint(torch.nn.Module.to(unet, torch.bfloat16))}) == 3


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


def test_synthesis_is_cached_by_all_that_it_depends_on(model, tmp_path, calls):
    def make(images=10, **arguments):
        return synthesise(
            model, ["a fox"], images, cache=tmp_path, **({"steps": 1, "guidance": 1.0} | arguments)
        )

    first = make()
    assert calls() == (0, 2, 2)
    assert_same(first, make())
    assert calls() == (0, 0, 0)
    make(images=8)
    assert calls() == (0, 0, 0)
    for changed in ({"steps": 2}, {"guidance": 2.0}, {"seed": 1}, {"resolution": 32}):
        make(images=1, **changed)
        assert calls() == (0, 0, 1), changed
    with torch.no_grad():
        model.denoiser.conv_out.bias += 0.1
    make(images=1)
    assert calls() == (0, 0, 1)


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


def test_a_fingerprint_reaches_the_end_of_a_table_as_large_as_that_of_clip():
    """float32 cannot count to 49408 · 768: the last place was rounded to one beyond it."""
    table = torch.nn.Embedding(49408, 768, _weight=torch.zeros(49408, 768, dtype=torch.float16))
    before = fingerprint(table)

    with torch.no_grad():
        table.weight[-1, -1] = 1

    assert fingerprint(table) != before
