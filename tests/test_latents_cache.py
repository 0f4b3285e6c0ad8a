"""Encoded sets in the cache: what they depend on, and damage."""

from __future__ import annotations

import logging

import pytest
import safetensors.torch
import torch
from fakes_data import picture, save_pictures
from fakes_latents import assert_same, encode, encoding_fixtures

from resalign.backend.data.cache import EncodingCache, _digest, content_key, fingerprint
from resalign.backend.data.latents import synthesise
from resalign.backend.errors import DataError

model, folder, calls = encoding_fixtures()


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


def test_a_fingerprint_reaches_the_end_of_a_table_as_large_as_that_of_clip():
    """float32 cannot count to 49408 · 768: the last place was rounded to one beyond it."""
    table = torch.nn.Embedding(49408, 768, _weight=torch.zeros(49408, 768, dtype=torch.float16))
    before = fingerprint(table)

    with torch.no_grad():
        table.weight[-1, -1] = 1

    assert fingerprint(table) != before
