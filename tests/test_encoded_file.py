"""Sets of latents and conditioning that someone else encoded."""

import pytest
import torch
from fakes_data import save_pictures, tiny_family

from resalign.backend.data.assembly import encode_texts
from resalign.backend.data.encoded_file import (
    count_encoded,
    digest_encoded,
    is_encoded,
    load_encoded,
    recaptioned,
    require_texts,
    write_encoded,
)
from resalign.backend.data.encoded_set import merge
from resalign.backend.data.latents import encode_image_set
from resalign.backend.errors import DataError
from resalign.backend.jobs.check import _check_images
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.fine_tune import FineTuneConfig
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.images import ImageSet


def given(model, texts=("a cat", "a dog", "a cat"), sides=(8, 8, 16)):
    """Raw latents and the model's own conditioning of texts, as a host hands them over."""
    random = torch.Generator().manual_seed(0)
    latents = [torch.randn(4, side, 8, generator=random) for side in sides]
    told = encode_texts(model, texts)
    return latents, [{n: part[i] for n, part in told.parts.items()} for i in range(len(texts))]


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_what_was_written_is_loaded_and_scaled(tmp_path, family):
    """Latents come back times the VAE's factor, by size, each with its own conditioning."""
    model = tiny_family(family)
    latents, texts = given(model)
    write_encoded(tmp_path, latents, texts)
    contexts = [text["context"] for text in texts]

    found = load_encoded(model, tmp_path)

    assert is_encoded(tmp_path) and count_encoded(tmp_path) == len(found) == 3
    small, tall = found.buckets
    torch.testing.assert_close(small.latents, torch.stack(latents[:2]) * 0.5)
    torch.testing.assert_close(tall.latents[0], latents[2] * 0.5)
    assert len(found.texts) == 2, "the two cats are one text"
    torch.testing.assert_close(
        found.conditioning["context"][small.captions], torch.stack(contexts[:2])
    )
    torch.testing.assert_close(found.conditioning["context"][tall.captions[0]], contexts[0])
    torch.testing.assert_close(found.empty["context"], encode_texts(model, [""])["context"])
    if family == "sdxl":
        torch.testing.assert_close(
            found.conditioning["pooled"][small.captions[1]], texts[1]["pooled"]
        )
        assert tall.own["time_ids"].tolist() == [[128, 64, 0, 0, 128, 64]]


def test_a_folder_of_latents_stands_for_an_image_set(tmp_path):
    """Mirrored, its latents are; it merges with a folder of pictures."""
    model = tiny_family()
    write_encoded(tmp_path / "given", *given(model))
    folder = save_pictures(tmp_path / "pictures", {"a.png": "a cat"})

    plain = encode_image_set(model, ImageSet(str(tmp_path / "given")))
    mirrored = encode_image_set(model, ImageSet(str(tmp_path / "given")), mirrored=True)
    both = merge([plain, encode_image_set(model, ImageSet(str(folder)))])

    torch.testing.assert_close(mirrored.buckets[0].latents, plain.buckets[0].latents.flip(-1))
    assert len(both) == 4 and len(both.texts) == 3
    batch, told = both.draw(torch.Generator().manual_seed(0), 2, caption_dropout=0.5)
    assert batch.shape[0] == len(told) == 2


def test_another_text_encoder_leaves_given_conditioning_as_it_is(tmp_path):
    """Its source is not known; captions beside it and the empty prompt are read anew."""
    model, other = tiny_family(), tiny_family(seed=5)
    write_encoded(tmp_path / "given", *given(model))
    folder = save_pictures(tmp_path / "pictures", {"a.png": "a bird"})
    plain = load_encoded(model, tmp_path / "given")
    both = merge([encode_image_set(model, ImageSet(str(folder))), plain])

    found = recaptioned(both, lambda texts: encode_texts(other, texts))

    own = encode_texts(other, ["", "a bird"])["context"]
    torch.testing.assert_close(found.empty["context"], own[:1])
    torch.testing.assert_close(found.conditioning["context"][:1], own[1:])
    torch.testing.assert_close(found.conditioning["context"][1:], plain.conditioning["context"])


def test_whoever_trains_text_encoders_cannot_use_given_conditioning(tmp_path):
    model = tiny_family()
    write_encoded(tmp_path, *given(model))
    with pytest.raises(DataError, match="give images with captions"):
        require_texts(load_encoded(model, tmp_path), "an attack")


def test_long_captions_are_cut_to_what_clip_reads_at_once(tmp_path, caplog):
    model = tiny_family()
    latents, texts = given(model)
    contexts = [text["context"] for text in texts]
    write_encoded(tmp_path, latents, [{"context": torch.cat([c, c + 1])} for c in contexts])
    found = load_encoded(model, tmp_path)
    torch.testing.assert_close(found.conditioning["context"][0], contexts[0])
    assert "only their beginning" in caplog.text


def test_a_caption_that_is_cut_as_its_family_reads_it_is_counted_too(tmp_path, caplog):
    """FLUX.2 klein reads 512 tokens; a host pads shorter captions, and gives longer ones whole."""
    texts = [{"context": torch.randn(tokens, 12)} for tokens in (600, 512)]
    write_encoded(tmp_path, [torch.randn(128, 4, 4)] * 2, texts)
    assert "1 of 2 captions are longer" in caplog.text


def test_a_digest_tells_sets_apart():
    model = tiny_family()
    latents, texts = given(model)
    same = digest_encoded([part.clone() for part in latents], texts)
    assert same == digest_encoded(latents, texts)
    assert same != digest_encoded([latents[0] + 1, *latents[1:]], texts)
    assert same != digest_encoded(latents, [texts[0], texts[0], texts[1]])


@pytest.mark.parametrize(
    ("latent", "context", "message"),
    [
        ((12, 8, 8), (77, 16), "VAE of the model that is hardened"),
        ((4, 8, 8), (80, 16), "CLIP of the checkpoint"),
        ((4, 8, 8), (1, 77, 16), "CLIP of the checkpoint"),
    ],
)
def test_shapes_of_other_models_are_refused(tmp_path, latent, context, message):
    with pytest.raises(DataError, match=message):
        write_encoded(tmp_path, [torch.zeros(latent)], [{"context": torch.zeros(context)}])
    assert not is_encoded(tmp_path), "nothing half-written stays"


def test_conditioning_of_another_model_is_an_error(tmp_path):
    """By its width, or by the pooled part that SDXL needs."""
    small, large = tiny_family(), tiny_family("sdxl")
    latents, texts = given(small)
    write_encoded(tmp_path / "small", latents, texts)
    write_encoded(tmp_path / "wide", latents, [{"context": torch.zeros(77, 40)}] * 3)
    with pytest.raises(DataError, match="the model's"):
        load_encoded(large, tmp_path / "small")
    with pytest.raises(DataError, match="no pooled conditioning"):
        load_encoded(large, tmp_path / "wide")


def test_values_that_are_not_finite_and_damaged_files_are_errors(tmp_path):
    model = tiny_family()
    latents, texts = given(model)
    latents[0][0, 0, 0] = float("nan")
    write_encoded(tmp_path, latents, texts)
    with pytest.raises(DataError, match="not finite"):
        load_encoded(model, tmp_path)
    (tmp_path / "encoded.safetensors").write_bytes(b"damaged")
    with pytest.raises(DataError, match="make the set anew"):
        load_encoded(model, tmp_path)


def test_the_check_counts_given_latents_as_images(tmp_path):
    """Without a picture in the folder, and without reading the tensors."""
    write_encoded(tmp_path, *given(tiny_family()))
    plan = HardeningPlan(
        concept=Concept("cat", ("a cat",)),
        retain_set=ImageSet(str(tmp_path)),
        fine_tunes=(FineTuneConfig(name="one", data=str(tmp_path)),),
    )
    problems: list[str] = []
    assert _check_images(plan, problems, []) == {str(tmp_path): 3}
    assert problems == []
