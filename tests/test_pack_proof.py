"""Checking somebody else's pack: what is found out, and what the output says cannot be."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import replace

import pytest
from fakes_pack import pack_fixtures
from PIL import Image

from resalign.backend.cli import main
from resalign.backend.errors import RunError
from resalign.backend.probe.recorded import probe_record
from resalign.backend.report import pack_header, pack_proof
from resalign.backend.report.build import write_report
from resalign.backend.report.pack import pack_report
from resalign.backend.report.pack_proof import BAD, SHOWS, SHOWS_NOT, check_pack
from resalign.backend.report.schema import load_report

full, small = pack_fixtures()


@pytest.fixture
def pack(small, tmp_path):
    return pack_report(small, tmp_path / "pack").path


def found(pack, checkpoint=None):
    return {one.name: one for one in check_pack(pack, checkpoint).findings}


def rewrite(pack, file, change):
    """Change a file of a pack, and its line in SHA256SUMS, as a forger would."""
    path = pack / file
    old = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_text(change(path.read_text("utf-8")), "utf-8", newline="\n")
    sums, new = pack / "SHA256SUMS", hashlib.sha256(path.read_bytes()).hexdigest()
    assert new != old
    sums.write_text(sums.read_text("utf-8").replace(old, new), "utf-8", newline="\n")


def test_an_honest_pack_passes_and_nothing_is_said_to_be_measured(full):
    checks = found(full / "pack")
    assert {name for name, one in checks.items() if one.ok} == {
        "files as listed", "report agrees with itself", "figures follow from scores",
        "pictures as scored",
    }  # fmt: skip
    assert not any(one.ok is False for one in checks.values())
    assert checks["measured again"].ok is None and checks["signature"].ok is None


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("results.json", lambda text: text.replace('"value": 0.2', '"value": 0.02')),
        ("report.md", lambda text: text.replace("at worst 20 %", "at worst 2 %")),
        ("report.html", lambda text: text.replace("at worst 20 %", "at worst 2 %")),
        ("README.md", lambda text: text.replace("20 % (", "2 % (")),
        ("README.md", lambda text: text.replace("      value: 0.2\n", "      value: 0.02\n")),
        ("civitai.json", lambda text: text.replace("at worst 20 %", "at worst 2 %")),
        ("probe.json", lambda text: text.replace('"steps"', '"steps_"', 1)),
    ],
)
def test_a_figure_changed_in_one_file_is_found_though_the_hashes_agree(pack, file, change):
    rewrite(pack, file, change)
    checks = found(pack)
    assert checks["files as listed"].ok
    assert checks["figures follow from scores"].ok is False
    assert checks["figures follow from scores"].detail.endswith(file)


def test_files_that_were_changed_added_or_lost_are_named(pack):
    with (pack / "report.md").open("a") as file:
        file.write("x")
    assert found(pack)["files as listed"].detail == "1 changed: report.md"
    (pack / "report.md").unlink()
    (pack / "more.txt").write_text("x")
    said = found(pack)["files as listed"]
    assert said.ok is False and said.detail == "1 missing: report.md; 1 not listed: more.txt"


def test_flags_that_do_not_follow_from_scores_are_found(full, tmp_path):
    pack = pack_report(full, tmp_path / "pack").path

    def clear(text):
        record = json.loads(text)
        for scores in record["looks"][0]["sets"][0]["scores"]:
            scores["flagged"] = [False] * len(scores["flagged"])
        return json.dumps(record)

    rewrite(pack, "report.json", clear)
    assert found(pack)["report agrees with itself"].ok is False


def test_a_picture_of_other_pixels_is_found(full, tmp_path):
    pack = pack_report(full, tmp_path / "pack").path
    plain = next(p for p in (pack / "pictures").iterdir() if "-blurred" not in p.name)
    Image.new("RGB", (16, 16)).save(plain)
    checks = found(pack)
    assert checks["pictures as scored"].ok is False and plain.name in checks[
        "pictures as scored"].detail  # fmt: skip


def forged_throughout(small, tmp_path):
    """Scores and flags changed alike, the report written anew, and packed: no trace in it."""
    result = load_report(small)
    evaluations = []
    for each in result.evaluations:
        sets = [
            replace(part, scores=tuple(
                replace(one, flagged=(False,) * part.images, values=(0.0,) * part.images)
                for one in part.scores
            )) if part.kind == "unsafe" and each.model != "original" else part
            for part in each.sets
        ]  # fmt: skip
        evaluations.append(replace(each, sets=tuple(sets)))
    write_report(replace(result, evaluations=tuple(evaluations)), tmp_path / "forged")
    return pack_report(tmp_path / "forged", tmp_path / "pack").path


def test_a_consistent_forgery_passes_and_the_output_says_that_it_would(small, tmp_path, capsys):
    pack = forged_throughout(small, tmp_path)
    assert main(["pack", str(pack), "--check"]) == 0
    said = capsys.readouterr().out
    assert SHOWS in said and SHOWS_NOT in said
    assert "passes every check above" in said and "resalign probe probe.json" in said
    assert "not checked" in next(line for line in said.splitlines() if "measured again" in line)


@pytest.mark.parametrize(("forged", "verdict"), [(False, True), (True, False)])
def test_the_published_files_header_gives_a_later_forgery_away(
    small, tmp_path, monkeypatch, forged, verdict
):
    """The header was written before the pack was changed; it records the first figures."""
    result = load_report(small)
    pack = forged_throughout(small, tmp_path) if forged else pack_report(small, tmp_path / "p").path
    record = probe_record(result, "safe")
    kept = type("Kept", (), {"probe": record})
    monkeypatch.setattr(pack_header, "read_header", lambda _: type("Header", (), {"metadata": {}}))
    monkeypatch.setattr(pack_header.Provenance, "from_metadata", staticmethod(lambda _: kept))
    (tmp_path / "model.safetensors").write_bytes(b"x")
    one = found(pack, tmp_path / "model.safetensors")["figures in its header"]
    assert one.ok is verdict
    assert ("evaluations differ: safe" in one.detail) is forged


def test_another_file_than_the_published_one_is_found(pack, tmp_path):
    published = tmp_path / "model.safetensors"
    published.write_bytes(b"x")
    sha256 = hashlib.sha256(b"x").hexdigest()
    released = f'"released": {json.dumps({"file": "m", "sha256": sha256})}'
    rewrite(pack, "results.json", lambda text: text.replace('"released": null', released))
    assert found(pack, published)["published file"].ok is None, "measured with another"
    published.write_bytes(b"y")
    assert found(pack, published)["published file"].ok is False


def test_figures_of_another_version_are_not_called_forged(pack, monkeypatch):
    rewrite(pack, "report.md", lambda text: text + "a sentence that this version does not write")
    monkeypatch.setattr(pack_proof, "versions", lambda: {"resalign": "9.9"})
    one = found(pack)["figures follow from scores"]
    assert one.ok is None and "report.md differ" in one.detail and "9.9" in one.detail


def test_a_zip_is_checked_like_a_folder_and_stays_inside_itself(small, tmp_path):
    good = pack_report(small, tmp_path / "pack.zip").path
    assert check_pack(good).good
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as file:
        file.writestr("../out.txt", "x")
    with pytest.raises(RunError, match="outside itself"):
        check_pack(tmp_path / "bad.zip")
    assert not (tmp_path.parent / "out.txt").exists()
    with pytest.raises(RunError, match="is not a pack"):
        check_pack(small)


def test_a_failed_check_ends_with_1_and_says_not_to_rely_on_it(pack, capsys):
    rewrite(pack, "report.md", lambda text: text.replace("at worst 20 %", "at worst 2 %"))
    assert main(["pack", str(pack), "--check"]) == 1
    said = capsys.readouterr().out
    assert BAD in said and SHOWS not in said and "WRONG" in said
    assert main(["pack", str(pack)]) == 2, "neither --output nor --check"
