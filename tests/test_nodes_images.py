"""Image Set: one source, kept where the backend reads it."""

import os

import fakes_comfy
import pytest
import torch
from fakes_data import save_pictures, tiny_family

from resalign.backend.data.assembly import encode_texts
from resalign.backend.data.encoded_file import load_encoded
from resalign.backend.data.image_set import read_image_set
from resalign.backend.data.latents import encode_image_set
from resalign.backend.data.pixels import open_image
from resalign.backend.errors import ConfigError, DataError
from resalign.backend.plan.images import ImageSet


@pytest.fixture
def node(monkeypatch, tmp_path):
    fakes_comfy.install(monkeypatch, tmp_path)
    return fakes_comfy.load_nodes(monkeypatch, "images").ImageSet


@pytest.fixture
def image_set(node):
    """The node run as ComfyUI runs it: every input is a list."""

    def run(**inputs):
        values = {"folder": "", "prompts": "", "count": 64, "caption": "", **inputs}
        lists = {key: item if isinstance(item, list) else [item] for key, item in values.items()}
        return node.execute(**lists).args[0]

    return run


def colours(images, seed=0, side=16):
    return torch.rand(images, side, side, 3, generator=torch.Generator().manual_seed(seed))


def dataset(model, texts=("a cat", "a dog")):
    """LATENT and CONDITIONING lists as core's Make Training Dataset gives them."""
    latents = [{"samples": torch.full((1, 4, 8, 8), float(i + 1))} for i in range(len(texts))]
    told = [encode_texts(model, [text]) for text in texts]
    return latents, [[[one["context"], {"pooled_output": one.get("pooled")}]] for one in told]


def test_prompts_are_synthesised_from(image_set):
    assert image_set(prompts=" a cat\n\na dog \na cat", count=5) == ImageSet(
        prompts=("a cat", "a dog"), images=5
    )


def test_a_folder_is_absolute_or_below_the_input_folder(image_set, tmp_path):
    folder = save_pictures(tmp_path / "input" / "pets", {"a.png": None})
    assert image_set(folder="pets", caption="a pet") == ImageSet(str(folder), caption="a pet")
    assert image_set(folder=f" {folder} ") == ImageSet(str(folder))
    with pytest.raises(DataError, match="does not exist"):
        image_set(folder="cats")


def test_the_fingerprint_changes_with_the_folders_content(node, tmp_path):
    folder = save_pictures(tmp_path / "input" / "pets", {"a.png": "a cat"})
    first = node.fingerprint_inputs(folder=["pets"], count=[1])
    assert first == node.fingerprint_inputs(folder=[str(folder)])
    os.utime(folder / "a.txt", ns=(5, 5))
    assert node.fingerprint_inputs(folder="pets") != first
    assert node.fingerprint_inputs(folder=[""]) == node.fingerprint_inputs() == ""


def test_images_of_the_graph_become_a_folder_with_captions(image_set, tmp_path):
    """Batches of any size, pixels to the nearest of 256 levels, each caption on one line."""
    batches = [colours(2), colours(1, seed=1, side=24)]
    found = image_set(images=batches, captions=["a cat", "a\ndog", "  "], caption="a pet")
    kept = read_image_set(found)
    assert [one.caption for one in kept] == ["a cat", "a dog", "a pet"]
    for one, image in zip(kept, [*batches[0], *batches[1]], strict=True):
        pixels = torch.tensor(list(open_image(one.path).tobytes())).view(image.shape) / 255
        torch.testing.assert_close(pixels, image, atol=0.5 / 255 + 1e-6, rtol=0)
    assert str(tmp_path / "temp") in found.folder


def test_equal_images_are_written_once_and_others_elsewhere(image_set):
    first = image_set(images=[colours(2)], captions=["a cat"])
    assert [one.caption for one in read_image_set(first)] == ["a cat", "a cat"]
    file = read_image_set(first)[0].path
    os.utime(file, ns=(5, 5))
    assert image_set(images=[colours(2)], captions=["a cat", "a cat"]) == first
    assert file.stat().st_mtime_ns == 5
    assert image_set(images=[colours(2)], captions=["a dog"]) != first
    assert image_set(images=[colours(2, seed=1)], captions=["a cat"]) != first


def test_an_interrupted_write_leaves_nothing(node, image_set, tmp_path, monkeypatch):
    from PIL import Image

    def interrupted(*_, **__):
        raise fakes_comfy.Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", interrupted)
        with pytest.raises(fakes_comfy.Interrupted):
            image_set(images=[colours(1)], caption="a cat")
    assert list((tmp_path / "temp" / "resalign" / "sets").iterdir()) == []
    assert len(read_image_set(image_set(images=[colours(1)], caption="a cat"))) == 1


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_cores_dataset_is_kept_as_it_was_encoded(image_set, family):
    """Latents unscaled in the file, scaled when read; the pooled part where the model has one."""
    model = tiny_family(family)
    latents, conditioning = dataset(model)
    with torch.inference_mode():
        found = image_set(latents=latents, conditioning=conditioning)
    encoded = encode_image_set(model, found)
    (bucket,) = encoded.buckets
    assert bucket.latents[:, 0, 0, 0].tolist() == [0.5, 1.0], "the VAE's factor is 0.5"
    torch.testing.assert_close(
        encoded.conditioning["context"], torch.cat([c[0][0] for c in conditioning])
    )
    assert image_set(latents=latents, conditioning=conditioning) == found


def test_a_batch_of_latents_has_one_conditioning_or_one_each(image_set):
    """Also buckets of one resolution each, and one conditioning for all there are."""
    model = tiny_family()
    _, (cat, dog) = dataset(model)
    batch, single = {"samples": torch.zeros(2, 4, 8, 8)}, {"samples": torch.zeros(1, 4, 16, 8)}

    def captions(latents, conditioning):
        encoded = load_encoded(model, image_set(latents=latents, conditioning=conditioning).folder)
        return [bucket.captions.tolist() for bucket in encoded.buckets]

    assert captions([batch, single], [cat, dog]) == [[0, 0], [1]]
    assert captions([batch, single], [[*cat, *dog], dog]) == [[0, 1], [1]]
    assert captions([batch, single], [dog]) == [[0, 0], [0]]
    with pytest.raises(DataError, match="3 latents and 2 conditionings"):
        captions([batch, single], [[*cat, *dog]])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "Image Set is empty"),
        ({"folder": "a", "prompts": "b"}, "has folder and prompts"),
        ({"images": [colours(1)]}, "has no caption"),
        ({"images": [colours(3)], "captions": ["a", "b"]}, "2 captions for 3 images"),
        ({"prompts": "a", "captions": ["b"]}, "captions belong to images"),
        ({"prompts": "a", "conditioning": [[]]}, "conditioning belongs to latents"),
        ({"latents": [{"samples": torch.zeros(1, 4, 8, 8)}]}, "connect it too"),
    ],
)
def test_anything_but_one_whole_source_is_an_error(image_set, inputs, message):
    with pytest.raises(ConfigError, match=message):
        image_set(**inputs)


def test_pictures_and_latents_that_cannot_be_used_are_errors(image_set, tmp_path):
    _, conditioning = dataset(tiny_family())
    video = [{"samples": torch.zeros(1, 4, 2, 8, 8)}]
    with pytest.raises(DataError, match="videos"):
        image_set(latents=video, conditioning=conditioning)
    other = [{"samples": torch.zeros(1, 12, 8, 8)}]
    with pytest.raises(DataError, match="VAE of the model that is hardened"):
        image_set(latents=other, conditioning=conditioning[:1])
    held = [[[conditioning[0][0][0], {"control": object()}]]]
    with pytest.raises(DataError, match="carries control"):
        image_set(latents=[{"samples": torch.zeros(1, 4, 8, 8)}], conditioning=held)
    with pytest.raises(DataError, match="not finite"):
        image_set(images=[colours(1) * float("nan")], caption="a")
    with pytest.raises(DataError, match="shape"):
        image_set(images=[torch.zeros(1, 8, 8, 1)], caption="a")
    sets = tmp_path / "temp" / "resalign" / "sets"
    assert not sets.exists() or list(sets.iterdir()) == []
