"""`resalign pack`: what a publisher attaches to a release says what was measured, and no more."""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes_counting import counted_result, course
from fakes_probe import fake_plan, fake_result
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import save_file

from resalign.backend.cli import main
from resalign.backend.errors import ConfigError, ExportError, RunError
from resalign.backend.plan.file import from_json
from resalign.backend.plan.probe import ProbeJob
from resalign.backend.report import pack_files
from resalign.backend.report.build import write_report
from resalign.backend.report.pack import pack_report
from resalign.backend.report.pack_results import SCHEMA_FILE
from resalign.backend.report.schema import load_report

SCHEMA = json.loads(SCHEMA_FILE.read_text("utf-8"))
TYPES = {
    "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None),
    "integer": int, "number": (int, float),
}  # fmt: skip
CHECKED = {
    "type", "const", "enum", "required", "properties", "additionalProperties", "items", "pattern",
    "minimum", "maximum", "anyOf", "$ref", "$defs", "$schema", "title", "description",
}  # fmt: skip
WORKING = course("original", (80, 100), (200, 80, 100)) | course("safe", (5, 95), (200, 20, 95))
BROKEN = course("original", (80, 100), (200, 80, 100)) | course("grey", (0, 5), (200, 0, 4))


def faults(value: Any, schema: dict, where: str = "$") -> list[str]:
    """What breaks a schema; a keyword that this does not check is an error."""
    assert set(schema) <= CHECKED, f"{where}: {set(schema) - CHECKED}"
    found = []
    if "$ref" in schema:
        found += faults(value, SCHEMA["$defs"][schema["$ref"].rsplit("/", 1)[1]], where)
    if "anyOf" in schema and all(faults(value, each, where) for each in schema["anyOf"]):
        found.append(f"{where}: none of anyOf")
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    fits = [isinstance(value, TYPES[k]) and not (isinstance(value, bool) and k in
            ("integer", "number")) for k in kinds]  # fmt: skip
    if kinds and not any(fits):
        return [*found, f"{where}: {value!r} is not {kinds}"]
    if "const" in schema and (value != schema["const"] or type(value) is not type(schema["const"])):
        found.append(f"{where}: {value!r}")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{where}: {value!r}")
    if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
        found.append(f"{where}: {value!r}")
    if isinstance(value, int | float):
        low, high = schema.get("minimum", value), schema.get("maximum", value)
        found += [f"{where}: {value} is beyond"] * (not low <= value <= high)
    if isinstance(value, list):
        for place, item in enumerate(value):
            found += faults(item, schema.get("items", {}), f"{where}[{place}]")
    if isinstance(value, dict):
        found += [f"{where}.{k}: missing" for k in schema.get("required", []) if k not in value]
        other = schema.get("additionalProperties", {})
        for key, item in value.items():
            inner = schema.get("properties", {}).get(key, other)
            found += faults(item, inner, f"{where}.{key}")
    return found


def write(result, folder: Path) -> Path:
    write_report(result, folder)
    return folder


def results(pack: Path) -> dict:
    return json.loads((pack / "results.json").read_text("utf-8"))


def card(pack: Path) -> str:
    return (pack / "README.md").read_text("utf-8")


def body(pack: Path) -> str:
    """The card's first words after its title."""
    return card(pack).split("\n# ", 1)[1].split("\n\n", 1)[1]


def index(pack: Path) -> dict[str, float]:
    """`model-index` as Hugging Face's own reader sees it."""
    data = ModelCard.load(pack / "README.md").data
    return {each.metric_type: each.metric_value for each in data.eval_results or []}


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Path:
    """A report of two models and their pictures, and its pack in `pack`."""
    folder = tmp_path_factory.mktemp("full")
    result = fake_result(folder, plan=fake_plan(pictures=1), models=("original", "hardened"))
    write_report(result, folder, pictures=folder)
    pack_report(folder, folder / "pack")
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A report without pictures, of a model whose figures are known."""
    return write(counted_result(WORKING), tmp_path_factory.mktemp("small"))


def test_every_file_has_its_hash_and_the_report_its_bytes(full):
    pack = full / "pack"
    lines = (pack / "SHA256SUMS").read_text("utf-8").splitlines()
    sums = {line[66:]: line[:64] for line in lines}
    files = {p.relative_to(pack).as_posix() for p in pack.rglob("*") if p.is_file()}
    assert files - {"SHA256SUMS"} == set(sums)
    for name, sha256 in sums.items():
        assert hashlib.sha256((pack / name).read_bytes()).hexdigest() == sha256
    for name in ("report.json", "report.html", "report.md"):
        assert (pack / name).read_bytes() == (full / name).read_bytes()
    assert {"README.md", "probe.json", "results.json", "results.schema.json"} < set(sums)
    assert not any("/home/ann" in (pack / n).read_text("utf-8") for n in sums if "png" not in n)


def test_pictures_are_those_of_the_report_and_as_it_holds_them(full):
    named = {
        name for evaluation in load_report(full).evaluations
        for part in evaluation.sets for name in part.pictures
    }  # fmt: skip
    packed = {f"pictures/{path.name}" for path in (full / "pack" / "pictures").iterdir()}
    assert packed == named
    assert all((full / "pack" / name).read_bytes() == (full / name).read_bytes() for name in named)
    flagged = sum(
        part.scores[0].flagged[0]
        for evaluation in load_report(full).evaluations for part in evaluation.sets
        if part.pictures
    )  # fmt: skip
    assert flagged and f"{flagged} of them were flagged and are not blurred" in card(full / "pack")


def with_pictures(folder: Path, names: list[str], digests: list[str]):
    """A result whose first evaluation kept these pictures; each is a PNG of one grey."""
    result = counted_result(WORKING)
    first = result.evaluations[0]
    part = replace(first.sets[0], pictures=tuple(names), digests=tuple(digests))
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            Image.new("RGB", (4, 4), (9, 9, 9)).save(path)
    changed = replace(first, sets=(part, *first.sets[1:]))
    return replace(result, evaluations=(changed, *result.evaluations[1:]))


def test_pictures_that_are_not_the_reports_stay_out(tmp_path):
    """Other pixels, paths out of the folder or around in it, links, and files of another kind."""
    folder = tmp_path / "probe"
    (folder / "pictures").mkdir(parents=True)
    (folder / "plan.png").write_text("not a picture")
    Image.new("RGB", (4, 4)).save(tmp_path / "mine.png")
    (folder / "link.png").symlink_to(tmp_path / "mine.png")
    good = "pictures/good.png"
    names = [
        good, "pictures/changed.png", "plan.png", "link.png", "../mine.png",
        "pictures/../pictures/good.png", str(tmp_path / "mine.png"), "pictures/good.gif",
    ]  # fmt: skip
    pixels = hashlib.sha256(bytes([9]) * 48).hexdigest()[:16]
    write(with_pictures(folder, names, [pixels, "0" * 16, *[""] * 6]), folder)
    found = pack_report(folder, tmp_path / "pack")
    assert [name for name in found.files if name.endswith((".png", ".gif"))] == [good]
    assert len(found.lost) == 7
    assert "7 pictures that the report names are missing or damaged" in card(found.path)
    assert "1 of them were flagged and are not blurred" in card(found.path)


def test_blurred_pictures_stay_blurred(tmp_path):
    """Their pixels are no longer those that were scored, and they are taken as they are."""
    folder = tmp_path / "probe"
    names = ["pictures/a-blurred.png", "pictures/b-blurred.png"]
    write(with_pictures(folder, names, ["0" * 16] * 2), folder)
    found = pack_report(folder, tmp_path / "pack")
    assert found.lost == () and set(names) < set(found.files)
    assert all((found.path / n).read_bytes() == (folder / n).read_bytes() for n in names)
    assert "those that a scorer flagged are blurred" in card(found.path)


@pytest.mark.parametrize("rates", [WORKING, BROKEN], ids=["working", "broken"])
@pytest.mark.parametrize("complete", [True, False], ids=["finished", "unfinished"])
def test_results_keep_to_their_schema(tmp_path, rates, complete):
    write(replace(counted_result(rates), complete=complete), tmp_path)
    pack = pack_report(tmp_path, tmp_path / "pack").path
    assert faults(results(pack), SCHEMA) == []
    assert (pack / "results.schema.json").read_bytes() == SCHEMA_FILE.read_bytes()


def test_the_schema_refuses_what_is_wrong(full):
    good = results(full / "pack")
    assert faults(good, SCHEMA) == []
    for key, value in (
        ("schema", 2), ("complete", 1), ("prompts", -1), ("tests_for_abuse_material", True),
        ("plan_sha256", "abc"), ("rows", [{}]), ("model", good["original"]),
    ):  # fmt: skip
        assert faults(good | {key: value}, SCHEMA), key
    assert faults({key: good[key] for key in good if key != "headline"}, SCHEMA)


def test_results_have_the_figures_of_the_report(small, tmp_path):
    """80 of 100 before, 20 of 100 at the worst: a resilience of .75."""
    found = results(pack_report(small, tmp_path / "pack").path)
    head = found["headline"]
    assert head["base_rate"]["value"] == 0.8 and head["before"]["unsafe"]["value"] == 0.05
    assert head["worst"]["attack"] == "training" and head["worst"]["step"] == 200
    assert head["worst"]["unsafe"]["flagged"] == 20 and head["worst"]["quality"]["value"] == 0.95
    assert head["resilience"]["value"] == 0.75
    assert found["seeds"] == {"fine_tuning": [0], "pictures": 42}
    assert found["license_of_base"] is None and found["released"] is None
    assert found["tests_for_abuse_material"] is False
    assert any("abuse material" in text for text in found["not_tested"])


def test_hugging_face_reads_the_same_figures(small, tmp_path):
    pack = pack_report(
        small, tmp_path / "pack", license="CreativeML-OpenRAIL-M", base_model="a/base: model"
    ).path
    assert index(pack) == {
        "benign_quality_share": 0.95, "unsafe_rate": 0.05, "worst_unsafe_rate": 0.2,
        "resilience": 0.75,
    }  # fmt: skip
    data = ModelCard.load(pack / "README.md").data
    assert data.license == "creativeml-openrail-m" and data.base_model == "a/base: model"
    assert data.model_name == "safe" and data.pipeline_tag == "text-to-image"


def test_a_rate_without_quality_is_marked_in_the_model_index(tmp_path):
    """A low rate may come from a broken model, and the index has no room for the card's warning."""
    nothing = dict.fromkeys(WORKING)
    write(counted_result(WORKING, benign=False, distance=nothing), tmp_path)  # type: ignore[arg-type]
    pack = pack_report(tmp_path, tmp_path / "pack").path
    found = ModelCard.load(pack / "README.md").data.eval_results or []
    rates = [each for each in found if each.metric_type.endswith("unsafe_rate")]
    assert len(rates) == 2
    assert all("benign quality not measured" in (each.metric_name or "") for each in rates)


def test_an_unfinished_report_says_so_first_and_states_no_results(tmp_path):
    write(replace(counted_result(WORKING), complete=False), tmp_path)
    pack = pack_report(tmp_path, tmp_path / "pack").path
    assert body(pack).startswith("**This probe is not finished**: 4 evaluations are missing.")
    assert index(pack) == {} and "model-index" not in card(pack)
    assert results(pack)["complete"] is False and results(pack)["missing_evaluations"] == 4


def test_a_broken_model_says_so_first_and_its_rate_is_no_result(tmp_path):
    """It draws nothing unsafe because it draws nothing."""
    found = pack_report(write(counted_result(BROKEN), tmp_path), tmp_path / "pack")
    assert found.broken and body(found.path).startswith("**This model is broken before any attack")
    assert index(found.path) == {"benign_quality_share": 0.05}
    assert results(found.path)["model"]["broken"] is True
    assert results(found.path)["headline"]["resilience"]["value"] is None


def test_where_no_attack_counts_the_card_says_why(tmp_path):
    """An attack without effect leaves no worst case; a blank would read as a good one."""
    still = {key: (0.0 if key[0] == "original" else 0.2) for key in WORKING}
    write(counted_result(WORKING, drift=still, distance=still), tmp_path)
    pack = pack_report(tmp_path, tmp_path / "pack").path
    why = "every attack had no effect on the original"
    assert f"| Worst attack that counts | none: {why} |" in card(pack)
    assert f"| Resilience | not given: {why} |" in card(pack)
    assert "worst_unsafe_rate" not in index(pack) and "resilience" not in index(pack)
    assert faults(results(pack), SCHEMA) == []


def test_a_working_finished_model_begins_with_its_headline(small, tmp_path):
    pack = pack_report(small, tmp_path / "pack").path
    assert body(pack).startswith("safe: at worst 20 %")
    assert "This is not a test for abuse material" in body(pack)[:900]


def test_the_card_has_hashes_seeds_versions_and_replay(full):
    text, plan = card(full / "pack"), (full / "pack" / "probe.json").read_bytes()
    for info in load_report(full).models:
        assert f"`{info.source}` | `{info.sha256}`" in text
    assert "Seeds of fine-tuning | 0, 1" in text and "torch 2.9.1" in text
    assert f"`{hashlib.sha256(plan).hexdigest()}`" in text
    assert "resalign verify hardened.safetensors --source original.safetensors" in text
    assert "not in the pack: " in text and "`weapons.csv`" in text
    assert "Not tried: DoRA" in text.split("## What was not tested")[1]


def test_the_plan_in_the_pack_is_the_reports_own(full):
    job = from_json(ProbeJob, json.loads((full / "pack" / "probe.json").read_text("utf-8")))
    assert job.plan == load_report(full).plan
    assert [each.path for each in job.checkpoints] == [
        "original.safetensors", "hardened.safetensors",
    ]  # fmt: skip


def test_an_unknown_licence_is_said_and_not_made_up(small, tmp_path):
    pack = pack_report(small, tmp_path / "pack").path
    assert "licence of the base model is unknown" in card(pack)
    assert ModelCard.load(pack / "README.md").data.license is None


def test_the_header_of_the_published_file_gives_licence_method_and_hash(small, tmp_path):
    file = tmp_path / "final.safetensors"
    header = {
        "resalign.method": "ResAlign (mine)", "resalign.base_model": "some/base",
        "modelspec.license": "My Licence 1.0",
    }  # fmt: skip
    save_file({"x": torch.zeros(2)}, file, header)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    pack = pack_report(small, tmp_path / "pack", checkpoint=file).path
    data = ModelCard.load(pack / "README.md").data
    assert (data.license, data.license_name) == ("other", "my-licence-1.0")
    assert data.base_model == "some/base" and "| Method | ResAlign (mine) |" in card(pack)
    assert "`My Licence 1.0`, is carried over" in card(pack)
    expected = {"file": "final.safetensors", "sha256": sha256, "measured": None}
    assert results(pack)["released"] == expected
    assert faults(results(pack), SCHEMA) == []


@pytest.mark.parametrize("same", [True, False])
def test_a_published_file_that_was_not_measured_is_named_first(tmp_path, same):
    file = tmp_path / "final.safetensors"
    save_file({"x": torch.zeros(2)}, file)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest() if same else "f" * 64
    result = counted_result(WORKING)
    models = (result.models[0], replace(result.models[1], sha256=sha256))
    write(replace(result, models=models), tmp_path / "probe")
    pack = pack_report(tmp_path / "probe", tmp_path / "pack", checkpoint=file).path
    assert body(pack).startswith("**`final.safetensors` is not byte for byte") is not same
    assert results(pack)["released"]["measured"] is same


def test_a_folder_without_a_report_is_refused(small, tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        pack_report(tmp_path, tmp_path / "pack")
    (tmp_path / "report.json").write_bytes((small / "report.json").read_bytes())
    with pytest.raises(RunError, match=r"report\.html is missing"):
        pack_report(tmp_path / "report.json", tmp_path / "pack")
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_the_published_model_must_be_clear(tmp_path):
    rates = WORKING | course("other", (9, 90), (200, 9, 90))
    write(counted_result(rates), tmp_path)
    with pytest.raises(ConfigError, match=r"--model \(safe, other\)"):
        pack_report(tmp_path, tmp_path / "pack")
    with pytest.raises(ConfigError, match="'third' is not in this report"):
        pack_report(tmp_path, tmp_path / "pack", model="third")
    pack = pack_report(tmp_path, tmp_path / "pack", model="other").path
    assert results(pack)["headline"]["worst"]["unsafe"]["value"] == 0.09
    assert body(pack).startswith("other: at worst")


def test_an_existing_output_is_replaced_only_when_asked_and_only_a_pack(small, tmp_path):
    pack = pack_report(small, tmp_path / "pack").path
    (pack / "results.json").write_text("old")
    with pytest.raises(ExportError, match="--overwrite"):
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

    monkeypatch.setattr(pack_files.shutil, "copyfile", full_disk)
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
    assert "--overwrite" in capsys.readouterr().err
