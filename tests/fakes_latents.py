"""Fixtures of the tests that encode folders of pictures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fakes_data import Calls, picture, save_pictures, tiny_family

from resalign.backend.data import assembly, latents
from resalign.backend.data.latents import encode_image_set
from resalign.backend.model.encode import encode_images, encode_tokens
from resalign.backend.model.generate import generate_latents
from resalign.backend.plan.images import ImageSet


def encoding_fixtures() -> tuple[Any, Any, Any]:
    """`model`, a `folder` of pictures, and `calls`, which counts what went through the networks."""

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

    return model, folder, calls


def encode(model, folder, **arguments):
    return encode_image_set(model, ImageSet(folder=str(folder)), **arguments)


def assert_same(one, other):
    assert one.texts == other.texts and len(one.buckets) == len(other.buckets)
    for first, second in zip(one.buckets, other.buckets, strict=True):
        assert torch.equal(first.latents, second.latents)
        assert torch.equal(first.captions, second.captions)
    assert torch.equal(one.conditioning["context"], other.conditioning["context"])
    assert torch.equal(one.empty["context"], other.empty["context"])
