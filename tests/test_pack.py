"""A pack says what was measured, and no more: card, model-index, results.json."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from fakes_counting import counted_result
from fakes_pack import (
    BROKEN,
    SCHEMA,
    WORKING,
    body,
    card,
    faults,
    index,
    pack_fixtures,
    results,
    write,
)
from huggingface_hub import ModelCard
from safetensors.torch import save_file

from resalign.backend.plan.file import from_json
from resalign.backend.plan.probe import ProbeJob
from resalign.backend.report.pack import pack_report
from resalign.backend.report.pack_results import SCHEMA_FILE
from resalign.backend.report.schema import load_report

full, small = pack_fixtures()


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
    why = "every attack was too weak to change even the original"
    assert f"| Worst attack that counts | none: {why} |" in card(pack)
    assert f"| Resilience | not given: {why} |" in card(pack)
    assert "worst_unsafe_rate" not in index(pack) and "resilience" not in index(pack)
    assert faults(results(pack), SCHEMA) == []


@pytest.mark.usefixtures("no_quick_looks")
def test_a_card_begins_with_its_status_then_the_table_then_the_sentence(small, tmp_path):
    pack = pack_report(small, tmp_path / "pack").path
    text = body(pack)
    assert text.startswith("- **Signature:** not signed")
    places = [text.index(part) for part in (
        "Every figure is the submitter's statement", "This is not a test for abuse material",
        "## Evidence", "| Resilience | 0.75", "safe: at worst 20 %", "## What was not tested",
    )]  # fmt: skip
    assert places == sorted(places)


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
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest() if same else "fe" * 32
    result = counted_result(WORKING)
    models = (result.models[0], replace(result.models[1], sha256=sha256))
    write(replace(result, models=models), tmp_path / "probe")
    pack = pack_report(tmp_path / "probe", tmp_path / "pack", checkpoint=file).path
    assert body(pack).startswith("**`final.safetensors` is not byte for byte") is not same
    assert results(pack)["released"]["measured"] is same
