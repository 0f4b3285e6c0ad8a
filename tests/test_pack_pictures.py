"""The pictures of a pack: what is blurred in it, and how others can check the rest."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from fakes_pack import card, pack_fixtures, results
from PIL import Image

from resalign.backend.cli import main
from resalign.backend.errors import ConfigError
from resalign.backend.plan.measurement import ScorerConfig
from resalign.backend.report.pack import pack_report
from resalign.backend.report.pack_words import pack_warnings
from resalign.backend.report.schema import load_report
from resalign.backend.scorers.flag_rules import near_value

full, small = pack_fixtures()


def kept_pictures(folder):
    """Every kept picture: its set's kind, name, digest, score and flag by the judge."""
    return [
        (part.kind, name, part.digests[place], part.scores[0].values[place],
         part.scores[0].flagged[place])
        for evaluation in load_report(folder).evaluations for part in evaluation.sets
        for place, name in enumerate(part.pictures)
    ]  # fmt: skip


def pixels(path):
    with Image.open(path) as picture:
        return np.array(picture.convert("RGB"))


def test_flagged_pictures_and_those_almost_flagged_are_blurred(full):
    """The threshold is .5, so an unsafe prompt's picture of .25 is blurred and a cat's is not."""
    before, pack = kept_pictures(full), full / "pack"
    hidden = {n for kind, n, _, v, flag in before if flag or (kind == "unsafe" and v >= 0.25)}
    near = {n for kind, n, _, v, flag in before if kind == "unsafe" and v >= 0.25 and not flag}
    shown = {name for _, name, *_ in before} - hidden
    assert near and shown and any(flag for *_, flag in before)
    packed = {path.relative_to(pack).as_posix() for path in (pack / "pictures").iterdir()}
    assert packed == {f"{n.removesuffix('.png')}-blurred.png" for n in hidden} | shown
    assert all((pack / name).read_bytes() == (full / name).read_bytes() for name in shown)
    assert results(pack)["pictures"]["blurred"] == len(hidden)
    assert results(pack)["pictures"]["flagged_not_blurred"] == 0
    assert "are not blurred" not in card(pack)
    assert "almost flagged, kept blurred" in (pack / "report.html").read_text("utf-8")


def test_a_blurred_picture_has_lost_what_it_showed_and_keeps_the_originals_digest(full):
    pack = full / "pack"
    before, after = kept_pictures(full), kept_pictures(pack)
    assert [each[2:] for each in before] == [each[2:] for each in after]
    old, new = next((a[1], b[1]) for a, b in zip(before, after, strict=True) if a[1] != b[1])
    sharp, soft = pixels(full / old), pixels(pack / new)
    assert sharp.shape == soft.shape
    edges = [np.abs(np.diff(each.astype(int), axis=1)).max() for each in (sharp, soft)]
    assert edges[0] > 60 and edges[1] < 10, "no edge is left"


def test_the_page_of_a_pack_shows_no_flagged_picture(full):
    page = (full / "report.html").read_text("utf-8")
    packed = (full / "pack" / "report.html").read_text("utf-8")
    assert "data-src=" in page and "data-src=" not in packed
    assert ">flagged, kept blurred" in packed


def test_without_pictures_a_pack_names_none(full, tmp_path):
    pack = pack_report(full, tmp_path / "pack", pictures="none")
    assert not any(name.endswith(".png") for name in pack.files)
    assert kept_pictures(pack.path) == []
    assert "data:image" not in (pack.path / "report.html").read_text("utf-8")
    assert results(pack.path)["pictures"]["kept"] == "none" and "left out" in card(pack.path)


def test_all_pictures_are_as_the_probe_kept_them_and_so_is_the_report(full, tmp_path):
    found = pack_report(full, tmp_path / "pack", pictures="all")
    pack = found.path
    flagged = sum(flag for *_, flag in kept_pictures(full))
    assert flagged and f"**{flagged} were flagged and are not blurred**" in card(pack)
    assert f"{flagged} flagged pictures in the pack are not blurred" in pack_warnings(found)
    for name in ("report.json", "report.html", "report.md"):
        assert (pack / name).read_bytes() == (full / name).read_bytes()
    for _, name, *_ in kept_pictures(full):
        assert (pack / name).read_bytes() == (full / name).read_bytes()


def test_a_digest_can_be_computed_as_the_pack_says(full):
    """All of red, then green, then blue; not over the file's bytes."""
    pack = full / "pack"
    said = results(pack)["pictures"]["digests"]
    assert said in card(pack)
    assert all(word in said for word in ("SHA-256", "all of red", "first 16", "Not over the bytes"))
    name, digest = next(e[1:3] for e in kept_pictures(pack) if not e[1].endswith("-blurred.png"))
    data = b"".join(pixels(pack / name)[..., channel].tobytes() for channel in range(3))
    assert hashlib.sha256(data).hexdigest()[:16] == digest


def test_a_scorer_without_a_threshold_has_nothing_near():
    near = {n: near_value(ScorerConfig(name=n)) for n in ("nudenet", "denoising", "x", "demo")}
    assert near == {"nudenet": 0.225, "denoising": None, "x": None, "demo": 0.25}
    assert near_value(ScorerConfig(name="x", threshold=0.8)) == 0.4


def test_the_command_takes_the_option(small, tmp_path, capsys):
    with pytest.raises(ConfigError, match="pictures: 'some' is not known; choose from none, blurr"):
        pack_report(small, tmp_path / "pack", pictures="some")
    target = str(tmp_path / "pack")
    assert main(["pack", str(small), "--output", target, "--pictures", "none", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["pack"] == target
    assert results(tmp_path / "pack")["pictures"]["kept"] == "none"
