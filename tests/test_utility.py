"""Utility: predictions, pictures, CLIP scores and distances of sets, against references."""

import json

import numpy as np
import pytest
import torch
from fakes_data import tiny_tokenizer
from PIL import Image
from scipy.linalg import sqrtm
from scipy.ndimage import gaussian_filter

from fakes import random_set, tiny_model
from resalign.backend.data.encoded_set import merge
from resalign.backend.errors import ConfigError, DataError, DivergenceError
from resalign.backend.probe.set_distance import (
    ClipFeatures,
    frechet_and_kernel_distance,
    frechet_distance,
    kernel_distance,
    set_distance,
)
from resalign.backend.probe.utility import (
    ClipScore,
    image_distance,
    ms_ssim,
    prediction_drift,
    ssim_maps,
)


def pictures(count, side=64, seed=0):
    """Smooth random pictures, [count, 3, side, side] from −1 to 1."""
    noise = np.random.default_rng(seed).normal(size=(count, 3, side, side))
    smooth = gaussian_filter(noise, (0, 0, 3, 3)) * 8
    return torch.from_numpy(smooth).clamp(-1, 1).float()


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    shape = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "projection_dim": 12,
    }  # fmt: skip
    torch.manual_seed(1)
    config = CLIPConfig(
        text_config={**shape, "vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513},
        vision_config={**shape, "image_size": 32, "patch_size": 8},
        projection_dim=12,
    )
    CLIPModel(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


# predictions


def test_the_original_does_not_drift_from_itself():
    model, data = tiny_model(), random_set(10, seed=1)
    nothing, reference = prediction_drift(model, data, None, samples=6)
    again, predictions = prediction_drift(model, data, reference, samples=6)

    assert nothing == again == 0.0
    assert torch.equal(reference, predictions)
    assert reference.shape == (6 * 4 * 8 * 8,) and reference.dtype == torch.float32


def test_drift_is_the_share_of_the_variance_that_is_off():
    """A denoiser that predicts twice the original plus a constant, in closed form."""
    model, data = tiny_model(), random_set(9, seed=1)
    _, reference = prediction_drift(model, data, None, samples=9)
    denoise = model.denoiser.forward

    def changed(*args, **kwargs):
        return (2 * denoise(*args, **kwargs)[0] + 0.5,)

    model.denoiser.forward = changed
    drift, _ = prediction_drift(model, data, reference, samples=9)

    exact = reference.double()
    assert drift == pytest.approx(float((exact + 0.5).square().mean() / exact.var(correction=0)))


def test_drift_looks_at_every_size_and_spreads_over_the_schedule():
    small, large = random_set(4, seed=1), random_set(4, seed=2)
    wide = large.buckets[0].latents.repeat(1, 1, 1, 2)
    large.buckets[0].latents.resize_(wide.shape).copy_(wide)
    data, model, seen = merge([small, large]), tiny_model(), []
    denoise = model.denoiser.forward

    def watched(latents, timesteps, *args, **kwargs):
        seen.extend((latents.shape[-1], time) for time in timesteps.tolist())
        return denoise(latents, timesteps, *args, **kwargs)

    model.denoiser.forward = watched
    prediction_drift(model, data, None, samples=5)

    assert [width for width, _ in seen] == [8, 8, 8, 16, 16]
    assert sorted(time for _, time in seen) == [100, 300, 500, 700, 900]


def test_predictions_of_another_number_of_samples_cannot_be_compared():
    model, data = tiny_model(), random_set(6, seed=1)
    _, reference = prediction_drift(model, data, None, samples=3)
    with pytest.raises(ValueError, match="cannot be compared"):
        prediction_drift(model, data, reference, samples=4)
    assert prediction_drift(model, data, None, samples=0)[0] == 0.0


def test_a_broken_model_is_an_error_and_keeps_its_mode():
    model = tiny_model()
    model.denoiser.train()
    next(model.denoiser.parameters()).fill_(float("nan"))
    with pytest.raises(DivergenceError, match="not finite"):
        prediction_drift(model, random_set(4, seed=1), None, samples=2)
    assert model.denoiser.training


# pictures


def test_the_distance_of_a_picture_from_itself_is_zero_to_the_bit():
    images = pictures(11)
    assert image_distance(images, images.clone()) == [0.0] * 11


def test_the_distance_grows_with_the_noise_and_is_the_same_however_batched():
    images = pictures(9)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    near, far = image_distance(images, images + 0.1 * noise), image_distance(images, images + noise)

    assert all(0 < a < b < 1 for a, b in zip(near, far, strict=True))
    single = [image_distance(images[i : i + 1], (images + noise)[i : i + 1])[0] for i in range(9)]
    assert far == pytest.approx(single, abs=1e-12)


def test_a_colour_cast_is_seen_too():
    images = pictures(1)
    tinted = images + torch.tensor([0.4, 0.0, -0.4]).view(1, 3, 1, 1)
    assert image_distance(images, tinted)[0] > 0.01


def reference_ssim(first, second):
    """Wang et al. 2004 with scipy's Gaussian filter; mean over the places where it fits."""

    def blur(x):
        return gaussian_filter(x, 1.5, truncate=3.5)[5:-5, 5:-5]

    c1, c2 = 0.02**2, 0.06**2
    m1, m2 = blur(first), blur(second)
    v1, v2 = blur(first**2) - m1**2, blur(second**2) - m2**2
    cov = blur(first * second) - m1 * m2
    structure = (2 * cov + c2) / (v1 + v2 + c2)
    return ((2 * m1 * m2 + c1) / (m1**2 + m2**2 + c1) * structure).mean(), structure.mean()


def test_ssim_agrees_with_a_reference_at_each_pixel():
    first, second = pictures(1, seed=1)[0], pictures(1, seed=2)[0]
    second = 0.6 * first + 0.4 * second
    whole, structure = ssim_maps(first[None].double(), second[None].double())

    for channel in range(3):
        a, b = first[channel].double().numpy(), second[channel].double().numpy()
        expected = reference_ssim(a, b)
        assert float(whole[0, channel].mean()) == pytest.approx(expected[0], abs=1e-10)
        assert float(structure[0, channel].mean()) == pytest.approx(expected[1], abs=1e-10)


def test_ssim_agrees_with_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    first, second = pictures(1, seed=1)[0].double().numpy(), pictures(1, seed=2)[0].double().numpy()
    expected = metrics.structural_similarity(
        first, second, channel_axis=0, data_range=2.0, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False,
    )  # fmt: skip
    found, _ = ssim_maps(torch.from_numpy(first)[None], torch.from_numpy(second)[None])
    assert float(found.mean()) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(("side", "scales"), [(16, 1), (64, 3), (176, 5), (200, 5)])
def test_scales_are_multiplied_with_their_weights(side, scales):
    first = pictures(1, side, seed=1).double()
    second = 0.9 * first + 0.1 * pictures(1, side, seed=2).double()
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
    weights /= weights.sum()
    expected = []
    for channel in range(3):
        a, b, product = first[0, channel].numpy(), second[0, channel].numpy(), 1.0
        for scale, weight in enumerate(weights, start=1):
            whole, structure = reference_ssim(a, b)
            product *= (whole if scale == scales else structure) ** weight
            half = side // 2**scale
            a, b = (
                x[: 2 * half, : 2 * half].reshape(half, 2, half, 2).mean((1, 3)) for x in (a, b)
            )
        expected.append(product)

    assert float(ms_ssim(first, second)) == pytest.approx(np.mean(expected), abs=1e-9)


def test_opposite_pictures_have_the_distance_one_and_no_nan():
    images = pictures(2)
    assert image_distance(images, -images) == pytest.approx([1.0, 1.0], abs=0.2)
    assert max(image_distance(images, -images)) <= 1


def test_pictures_of_another_size_are_no_pairs():
    with pytest.raises(ValueError, match="pairs of images"):
        image_distance(pictures(2), pictures(3))


# CLIP


def test_the_clip_score_is_that_of_transformers(clip_folder):
    from transformers import CLIPModel

    images, prompts = pictures(8, 32), ["a cat", "a dog", *"uvwxyz"]
    model = CLIPModel.from_pretrained(clip_folder).eval()
    pixels = ((images + 1) * 127.5).round() / 255
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    tokens = tiny_tokenizer()(prompts, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        output = model(pixel_values=(pixels - mean) / deviation, **tokens)
    expected = (output.image_embeds * output.text_embeds).sum(1).clamp(min=0) * 100

    found = ClipScore(clip_folder).score(images, prompts)

    assert found == pytest.approx(expected.tolist(), abs=1e-3)
    assert max(found) > 0


def test_the_clip_score_is_the_same_in_any_batch_and_for_long_prompts(clip_folder):
    images, prompts = pictures(40, 32), [f"thing {i} " * 40 for i in range(40)]
    scorer = ClipScore(str(clip_folder))
    whole = scorer.score(images, prompts)
    single = [
        ClipScore(clip_folder).score(images[i : i + 1], prompts[i : i + 1])[0] for i in (0, 39)
    ]

    assert [whole[0], whole[39]] == pytest.approx(single, abs=1e-3)
    assert scorer.score(images[:0], []) == []
    with pytest.raises(ValueError, match="1 images, 2 prompts"):
        scorer.score(images[:1], ["a", "b"])


def test_weights_that_are_no_clip_model_are_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"utility: clip: .* holds no config\.json"):
        ClipScore(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match="is a pickle"):
        ClipFeatures(tmp_path)


def test_a_clip_model_without_its_tokenizer_is_an_error(clip_folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((clip_folder / name).read_bytes())
    with pytest.raises(ConfigError, match="holds no tokenizer"):
        ClipScore(tmp_path)


# distances of sets


def gaussian_features(count, width, seed, shift=0.0, scale=1.0):
    return np.random.default_rng(seed).normal(shift, scale, (count, width))


@pytest.mark.parametrize(("count", "width"), [(300, 6), (40, 39)])
def test_the_frechet_distance_is_that_of_the_matrix_square_root(count, width):
    first = gaussian_features(count, width, 1)
    second = gaussian_features(count + 5, width, 2, shift=0.4, scale=1.7)
    one, two = np.cov(first.T), np.cov(second.T)
    gap = first.mean(axis=0) - second.mean(axis=0)
    expected = gap @ gap + np.trace(one + two - 2 * sqrtm(one @ two).real)

    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-6)


def test_the_frechet_distance_of_two_gaussians_is_its_closed_form():
    first, second = gaussian_features(200_00, 3, 1), gaussian_features(200_00, 3, 2, 2.0, 3.0)
    assert frechet_distance(first, second) == pytest.approx(3 * (2.0**2 + (3 - 1) ** 2), rel=0.03)


def test_fewer_images_than_features_are_no_trouble_and_a_set_is_at_zero_from_itself():
    features = gaussian_features(8, 50, 1)
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(features, features + 1) == pytest.approx(50)


def test_the_kernel_distance_is_the_sum_over_pairs():
    first, second = gaussian_features(5, 4, 1), gaussian_features(7, 4, 2, 0.5)

    def k(a, b):
        return (sum(a * b) / 4 + 1) ** 3

    expected = (
        sum(k(first[i], first[j]) for i in range(5) for j in range(5) if i != j) / 20
        + sum(k(second[i], second[j]) for i in range(7) for j in range(7) if i != j) / 42
        - 2 * sum(k(a, b) for a in first for b in second) / 35
    )
    assert kernel_distance(first, second) == pytest.approx(expected)


def test_the_kernel_distance_of_like_sets_is_zero_on_average_and_frechet_is_not():
    """Unbiased: the mean over draws from one distribution lies within its standard error of 0."""
    draws = [
        set_distance(gaussian_features(12, 8, 2 * i), gaussian_features(12, 8, 2 * i + 1))
        for i in range(200)
    ]
    kernels = np.array([draw.kernel for draw in draws])

    assert abs(kernels.mean()) < 3 * kernels.std() / np.sqrt(200)
    assert min(draw.frechet for draw in draws) > 1


def test_sets_of_images_are_compared_through_a_local_clip_model(clip_folder, tmp_path):
    images = pictures(6, 32)
    for number, image in enumerate(images):
        pixels = ((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no picture")

    same = frechet_and_kernel_distance(images, tmp_path, clip_folder)
    other = frechet_and_kernel_distance(-images[:4], tmp_path, clip_folder)

    assert same.frechet == pytest.approx(0, abs=1e-6)
    assert other.frechet > same.frechet + 1e-3
    assert (other.images, other.references) == (4, 6)


def test_a_reference_folder_without_usable_images_is_an_error(clip_folder, tmp_path):
    network = ClipFeatures(clip_folder)
    with pytest.raises(DataError, match="has no images"):
        network.of_folder(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        network.of_folder(tmp_path / "missing")
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"a\.png cannot be read"):
        network.of_folder(tmp_path)
    with pytest.raises(DataError, match="2 images or more; these are 1, 3"):
        set_distance(np.zeros((1, 4)), np.zeros((3, 4)))
