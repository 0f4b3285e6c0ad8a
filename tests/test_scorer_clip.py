"""Scorers on CLIP: a tiny random one against a computation by hand."""

import shutil

import numpy as np
import pytest
import torch
from fakes_scorers import in_parts, noise, rows
from PIL import Image
from safetensors.torch import load_file, save_file

from resalign.backend.errors import CheckpointError, ConfigError
from resalign.backend.plan.measurement import ScorerConfig
from resalign.backend.scorers.clip import NEUTRAL
from resalign.backend.scorers.registry import build_scorer

WIDTH = 12  # of the tiny CLIP's embeddings


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory, package_folder):
    """A CLIP of two layers with random weights, images of 28 pixels, and the true tokenizer."""
    from transformers import CLIPConfig, CLIPModel

    parts = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    parts |= {"num_attention_heads": 2, "projection_dim": WIDTH}
    config = CLIPConfig(
        text_config=parts | {"vocab_size": 49408, "max_position_embeddings": 77},
        vision_config=parts | {"image_size": 28, "patch_size": 14},
        projection_dim=WIDTH,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = CLIPModel(config).eval()
        for tensor in model.parameters():
            tensor.data.add_(torch.randn_like(tensor), alpha=0.05)
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    shutil.copytree(package_folder / "backend/families/clip/tokenizer", folder, dirs_exist_ok=True)
    return folder


def reference_pixels(images):
    """Resize the shorter side to 28 by bicubic interpolation, cut the middle, normalise."""
    made = []
    for image in images:
        picture = ((image.permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8).numpy()
        height, width = picture.shape[:2]
        size = (28 * width // height, 28) if width > height else (28, 28 * height // width)
        scaled = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
        top, left = (size[1] - 28) // 2, (size[0] - 28) // 2
        cut = scaled[top : top + 28, left : left + 28] / np.float32(255)
        made.append(torch.from_numpy(cut).permute(2, 0, 1))
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    return (torch.stack(made) - mean) / deviation


def test_clip_shares_are_the_softmax_over_all_descriptions(clip_folder):
    from transformers import AutoTokenizer, CLIPModel

    labels = ("a gun", "a knife")
    scorer = build_scorer(ScorerConfig(name="clip", weights=str(clip_folder), labels=labels))
    images = torch.cat([noise(3), torch.full((1, 3, 40, 56), 0.3)])
    model = CLIPModel.from_pretrained(clip_folder).eval()
    texts = [f"a picture of {label}" for label in (*labels, *NEUTRAL)]
    tokens = AutoTokenizer.from_pretrained(clip_folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model(**tokens, pixel_values=reference_pixels(images))
    expected = out.logits_per_image.softmax(1)[:3, :2].sum(1).tolist()
    scores = scorer.score(images, [""] * 4)
    assert scores.values[:3] == pytest.approx(expected, abs=1e-5)
    assert scores.labels[3] == "blank" and not scores.flagged[3]
    parts = in_parts(scorer, images, [""] * 4)
    assert [value for value, _, _ in parts] == pytest.approx(scores.values, abs=1e-6)


def test_clip_names_the_likeliest_label_of_what_it_flags(clip_folder):
    config = ScorerConfig(
        name="clip", weights=str(clip_folder), labels=("a gun", "a knife"), threshold=0.0
    )
    found = rows(build_scorer(config).score(noise(6), [""] * 6))
    assert all(flagged and label in ("a gun", "a knife") for _, flagged, label in found)


def without(source, target, *patterns):
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*patterns))
    return target


def test_a_folder_that_is_no_clip_says_what_it_lacks(clip_folder, tmp_path):
    def build(folder):
        return build_scorer(ScorerConfig(name="clip", weights=str(folder), labels=("a gun",)))

    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        build(tmp_path)
    pickled = without(clip_folder, tmp_path / "pickled", "*.safetensors")
    (pickled / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin is a pickle"):
        build(pickled)
    with pytest.raises(ConfigError, match="holds no tokenizer"):
        build(without(clip_folder, tmp_path / "mute", "vocab.json", "merges.txt", "tokenizer*"))
    other = without(clip_folder, tmp_path / "other", "config.json")
    (other / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="does not describe a CLIP model"):
        build(other)


def test_a_clip_with_missing_tensors_is_refused(clip_folder, tmp_path):
    folder = without(clip_folder, tmp_path / "torn", "nothing")
    tensors = load_file(folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors .*visual_projection"):
        build_scorer(ScorerConfig(name="clip", weights=str(folder), labels=("a gun",)))


# The multi-headed safety classifier


def head_tensors(seed, hidden=6):
    random = torch.Generator().manual_seed(seed)
    return {
        "0.weight": torch.randn(hidden, WIDTH, generator=random),
        "0.bias": torch.randn(hidden, generator=random),
        "3.weight": torch.rand(hidden, generator=random) + 0.5,
        "3.bias": torch.randn(hidden, generator=random),
        "3.running_mean": torch.randn(hidden, generator=random),
        "3.running_var": torch.rand(hidden, generator=random) + 0.5,
        "3.num_batches_tracked": torch.tensor(7),
        "4.weight": torch.randn(1, hidden, generator=random),
        "4.bias": torch.randn(1, generator=random),
    }


def head_by_hand(t, x):
    x = (x @ t["0.weight"].T + t["0.bias"]).clamp(min=0)
    x = (x - t["3.running_mean"]) / (t["3.running_var"] + 1e-5).sqrt() * t["3.weight"] + t["3.bias"]
    return torch.sigmoid(x @ t["4.weight"].T + t["4.bias"])[:, 0]


@pytest.fixture
def mhsc_folder(clip_folder, tmp_path):
    folder = tmp_path / "mhsc"
    shutil.copytree(clip_folder, folder / "clip")
    for seed, category in enumerate(("sexual", "violent")):
        save_file(head_tensors(seed), folder / f"{category}.safetensors")
    return folder


def test_mhsc_is_each_head_on_the_projected_embedding(mhsc_folder):
    from transformers import CLIPModel

    images = torch.cat([noise(5), torch.full((1, 3, 40, 56), 0.3)])
    model = CLIPModel.from_pretrained(mhsc_folder / "clip").eval()
    with torch.no_grad():
        pooled = model.vision_model(pixel_values=reference_pixels(images)).pooler_output
        embeddings = model.visual_projection(pooled)
    shares = torch.stack([head_by_hand(head_tensors(seed), embeddings) for seed in (0, 1)], 1)[:5]
    scorer = build_scorer(ScorerConfig(name="mhsc", weights=str(mhsc_folder)))
    found = rows(scorer.score(images, [""] * 6))
    assert [value for value, _, _ in found[:5]] == pytest.approx(shares.amax(1).tolist(), abs=1e-5)
    for (_, flagged, label), row in zip(found, shares, strict=False):
        assert flagged == bool(row.max() >= 0.5)
        assert label == (("sexual", "violent")[int(row.argmax())] if flagged else "")
    assert found[5] == (0.0, False, "blank")
    one = build_scorer(ScorerConfig(name="mhsc", weights=str(mhsc_folder), labels=("violent",)))
    assert one.score(images[:5], [""] * 5).values == pytest.approx(shares[:, 1].tolist(), abs=1e-5)


def test_a_clip_with_its_image_half_only_gives_the_same(mhsc_folder):
    from transformers import CLIPVisionModelWithProjection

    images = noise(3)
    whole = build_scorer(ScorerConfig(name="mhsc", weights=str(mhsc_folder)))
    expected = whole.score(images, [""] * 3).values
    half = CLIPVisionModelWithProjection.from_pretrained(mhsc_folder / "clip")
    shutil.rmtree(mhsc_folder / "clip")
    half.save_pretrained(mhsc_folder / "clip")
    scorer = build_scorer(ScorerConfig(name="mhsc", weights=str(mhsc_folder)))
    assert scorer.score(images, [""] * 3).values == pytest.approx(expected, abs=1e-6)


def test_a_pickled_head_is_refused_with_the_reason(mhsc_folder):
    (mhsc_folder / "sexual.safetensors").rename(mhsc_folder / "sexual.pt")
    with pytest.raises(ConfigError, match=r"sexual\.pt is a pickle.*run code; convert"):
        build_scorer(ScorerConfig(name="mhsc", weights=str(mhsc_folder), labels=("sexual",)))
    (mhsc_folder / "violent.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"sexual\.pt is a pickle"):
        build_scorer(ScorerConfig(name="mhsc", weights=str(mhsc_folder)))


def test_heads_that_are_missing_or_do_not_fit_are_named(mhsc_folder):
    def build(**changes):
        return build_scorer(ScorerConfig(name="mhsc", weights=str(mhsc_folder), **changes))

    with pytest.raises(ConfigError, match="unknown label 'hateful'; it has sexual, violent"):
        build(labels=("hateful",))
    wide = head_tensors(0) | {"0.weight": torch.zeros(6, WIDTH + 1)}
    save_file(wide, mhsc_folder / "sexual.safetensors")
    with pytest.raises(CheckpointError, match=r"width 12: 0\.weight is \(6, 13\), expected"):
        build()
    (mhsc_folder / "sexual.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        build()
    for path in mhsc_folder.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(ConfigError, match="holds no heads"):
        build()
