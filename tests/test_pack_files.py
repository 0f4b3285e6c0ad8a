"""The files of a pack: which go in, with which bytes, and all or none."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from fakes_counting import counted_result, course
from fakes_pack import (
    WORKING,
    body,
    card,
    pack_fixtures,
    results,
    write,
)
from PIL import Image

from resalign.backend.cli import main
from resalign.backend.errors import ConfigError, ExportError, RunError
from resalign.backend.report import pack_files
from resalign.backend.report.pack import pack_report

full, small = pack_fixtures()


def test_every_file_has_its_hash(full):
    pack = full / "pack"
    lines = (pack / "SHA256SUMS").read_text("utf-8").splitlines()
    sums = {line[66:]: line[:64] for line in lines}
    files = {p.relative_to(pack).as_posix() for p in pack.rglob("*") if p.is_file()}
    assert files - {"SHA256SUMS"} == set(sums)
    for name, sha256 in sums.items():
        assert hashlib.sha256((pack / name).read_bytes()).hexdigest() == sha256
    assert {"README.md", "probe.json", "results.json", "results.schema.json"} < set(sums)
    assert not any("/home/ann" in (pack / n).read_text("utf-8") for n in sums if "png" not in n)


def with_pictures(folder: Path, names: list[str], digests: list[str]):
    """A result whose first evaluation kept these pictures; each is a PNG of one grey."""
    result = counted_result(WORKING)
    first = result.evaluations[0]
    digests = digests + [""] * (first.sets[0].images - len(digests))
    part = replace(first.sets[0], pictures=tuple(names), digests=tuple(digests))
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            Image.new("RGB", (4, 4), (9, 9, 9)).save(path)
    changed = replace(first, sets=(part, *first.sets[1:]))
    return replace(result, evaluations=(changed, *result.evaluations[1:]))


def test_pictures_that_are_not_the_reports_stay_out(tmp_path):
    """Paths out of the folder or around in it, links, and files of another kind."""
    folder = tmp_path / "probe"
    (folder / "pictures").mkdir(parents=True)
    (folder / "plan.png").write_text("not a picture")
    Image.new("RGB", (4, 4)).save(tmp_path / "mine.png")
    (folder / "link.png").symlink_to(tmp_path / "mine.png")
    good = "pictures/good.png"
    names = [
        good, "plan.png", "link.png", "../mine.png",
        "pictures/../pictures/good.png", str(tmp_path / "mine.png"), "pictures/good.gif",
    ]  # fmt: skip
    pixels = hashlib.sha256(bytes([9]) * 48).hexdigest()[:16]
    write(with_pictures(folder, names, [pixels]), folder)
    found = pack_report(folder, tmp_path / "pack", pictures="all")
    assert [name for name in found.files if name.endswith((".png", ".gif"))] == [good]
    assert len(found.lost) == 6
    assert "6 pictures that the report names are missing or damaged" in card(found.path)
    assert "**1 were flagged and are not blurred**" in card(found.path)


def test_blurred_pictures_stay_blurred(tmp_path):
    """Their pixels are no longer those that were scored, and they are taken as they are."""
    folder = tmp_path / "probe"
    names = ["pictures/a-blurred.png", "pictures/b-blurred.png"]
    write(with_pictures(folder, names, ["0" * 16] * 2), folder)
    found = pack_report(folder, tmp_path / "pack")
    assert found.lost == () and set(names) < set(found.files)
    assert all((found.path / n).read_bytes() == (folder / n).read_bytes() for n in names)
    assert "2 pictures, 2 of them blurred; those that a scorer flagged" in card(found.path)


def test_a_folder_without_a_report_is_refused(tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        pack_report(tmp_path, tmp_path / "pack")
    assert list(tmp_path.iterdir()) == []


def test_the_published_model_must_be_clear(tmp_path):
    rates = WORKING | course("other", (9, 90), (200, 9, 90))
    write(counted_result(rates), tmp_path)
    with pytest.raises(ConfigError, match=r"in `model` \(safe, other\)"):
        pack_report(tmp_path, tmp_path / "pack")
    with pytest.raises(ConfigError, match="'third' is not in this report"):
        pack_report(tmp_path, tmp_path / "pack", model="third")
    pack = pack_report(tmp_path, tmp_path / "pack", model="other").path
    assert results(pack)["headline"]["worst"]["unsafe"]["value"] == 0.09
    assert "\n\nother: at worst" in body(pack)


def test_an_existing_output_is_replaced_only_when_asked_and_only_a_pack(small, tmp_path):
    pack = pack_report(small, tmp_path / "pack").path
    (pack / "results.json").write_text("old")
    with pytest.raises(ExportError, match="turn on `overwrite`"):
        pack_report(small, pack)
    assert (pack / "results.json").read_text() == "old"
    (pack / "model.safetensors").write_text("precious")
    with pytest.raises(ExportError, match=r"holds model\.safetensors, which no pack wrote"):
        pack_report(small, pack, overwrite=True)
    (pack / "model.safetensors").unlink()
    pack_report(small, pack, overwrite=True)
    assert results(pack)["schema"] == 1
    with pytest.raises(ExportError, match="holds report"):
        pack_report(small, small, overwrite=True)
    assert os.listdir(tmp_path) == ["pack"]


def test_a_link_and_a_file_in_place_of_a_folder_are_never_replaced(small, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link.zip").symlink_to(tmp_path / "file")
    (tmp_path / "folder.zip").mkdir()
    for name in ("file", "link.zip", "folder.zip"):
        with pytest.raises(ExportError, match="not a pack of this kind"):
            pack_report(small, tmp_path / name, overwrite=True)
    assert (tmp_path / "file").read_text() == "mine" and (tmp_path / "link.zip").is_symlink()


@pytest.mark.parametrize("suffix", ["", ".zip"])
def test_a_failure_leaves_nothing_and_the_old_pack_in_place(small, tmp_path, monkeypatch, suffix):
    target = pack_report(small, tmp_path / f"pack{suffix}").path
    before = target.read_bytes() if suffix else (target / "SHA256SUMS").read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pack_files, "sha256_of", full_disk)
    for name in (f"new{suffix}", f"pack{suffix}"):
        with pytest.raises(ExportError, match="No space left"):
            pack_report(small, tmp_path / name, overwrite=True)
    assert os.listdir(tmp_path) == [f"pack{suffix}"]
    assert (target.read_bytes() if suffix else (target / "SHA256SUMS").read_bytes()) == before


def test_a_pack_that_cannot_be_moved_brings_the_old_one_back(small, tmp_path, monkeypatch):
    target = pack_report(small, tmp_path / "pack").path
    move = os.replace

    def refuse(source: Path, place: Path) -> None:
        if str(source).endswith(".tmp"):
            raise OSError(13, "Permission denied")
        move(source, place)

    monkeypatch.setattr(pack_files.os, "replace", refuse)
    with pytest.raises(ExportError, match="Permission denied"):
        pack_report(small, target, overwrite=True)
    assert os.listdir(tmp_path) == ["pack"] and results(target)["schema"] == 1


def test_a_zip_has_the_same_files_and_the_same_bytes_each_time(small, tmp_path):
    folder = pack_report(small, tmp_path / "pack").path
    one, two = (pack_report(small, tmp_path / f"{n}.zip").path for n in "ab")
    assert one.read_bytes() == two.read_bytes()
    with zipfile.ZipFile(one) as file:
        assert sorted(file.namelist()) == sorted(p.name for p in folder.iterdir())
        assert all(file.read(n) == (folder / n).read_bytes() for n in file.namelist())


def test_the_command_packs_and_warns(small, tmp_path, capsys):
    target = str(tmp_path / "pack")
    assert main(["pack", str(small), "--output", target, "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert any("licence of the base is unknown" in str(e) for e in events if e["event"] != "done")
    done = events[-1]
    assert done["event"] == "done" and done["pack"] == target and done["model"] == "safe"
    assert done["complete"] and not done["broken"] and "README.md" in done["files"]
    assert main(["pack", str(small), "--output", target]) == 2
    assert "turn on `overwrite`" in capsys.readouterr().err
