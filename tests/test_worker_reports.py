"""The worker's jobs on a report that is there: the audit sheet, its labels, the pack."""

import json
import zipfile
from pathlib import Path

import pytest
from fakes_audit import audited_fixtures, labels_of
from fakes_counting import counted_result
from fakes_pack import BROKEN, WORKING, write

from resalign.backend.errors import ConfigError, RunError
from resalign.backend.jobs.live_state import LiveState
from resalign.backend.jobs.probe import Probed
from resalign.backend.plan.attack import FineTuneAttack
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.file import to_json
from resalign.backend.plan.measurement import ScorerConfig
from resalign.backend.plan.probe import ProbeCheckpoint, ProbeJob, ProbePlan
from resalign.backend.probe.audit import labels_record, read_audit
from resalign.backend.probe.summarise import summarise
from resalign.backend.report.build import ReportFiles
from resalign.backend.worker import probing, reporting
from resalign.backend.worker.requests import check_files, parse_request

written, place = audited_fixtures()


def ask(job, **fields):
    request = parse_request({"job": job, **fields})
    check_files(request)
    live = LiveState(job)
    return *getattr(reporting, job)(request, live, lambda: None), live


def test_a_sheet_is_drawn_and_its_labels_correct_the_report(place):
    result, folder = place
    found, said, _ = ask("audit", report=str(folder), pictures=60)
    assert Path(found["page"]).is_file() and found["pictures"] == 60
    assert said == "audit.html has 60 pictures to label"

    audit = read_audit(folder)
    labels = folder / "labels.json"
    labels.write_text(json.dumps(labels_record(audit, labels_of(result, audit, folder))))
    found, said, _ = ask("audit", report=str(folder), labels=str(labels))
    assert found["labelled"] == 60 and "60 labelled pictures" in said
    assert json.loads((folder / "report.json").read_text())["summary"]["audit"]["labelled"] == 60
    with pytest.raises(ConfigError, match="has 60 labels of an audit"):
        ask("audit", report=str(folder))
    labels.write_text('{"kind": "other"}')
    with pytest.raises(RunError, match="not a file of audit labels"):
        ask("audit", report=str(folder), labels=str(labels))


def test_a_probe_that_is_continued_keeps_the_labels_of_its_sheet(place, monkeypatch):
    """The request of a finished probe is sent again, and once more as Resume sends it."""
    result, folder = place
    checkpoint = ProbeCheckpoint(name="original", path="demo")
    job = ProbeJob(checkpoints=(checkpoint,), plan=result.plan, output=str(folder))
    found = Probed(result, summarise(result), ReportFiles(*[folder / "report"] * 3))
    monkeypatch.setattr(probing, "probe_job", lambda *args, **kwargs: found)

    def probe(audit):
        return probing.probe_in(job, LiveState("probe"), lambda: None, new=False, audit=audit)

    assert "draw a sheet under Reports" in probe(0)[1]
    done, said = probe(60)
    assert Path(done["audit"]).is_file() and said.endswith("60 pictures to label")
    audit = read_audit(folder)
    labels = folder / "labels.json"
    labels.write_text(json.dumps(labels_record(audit, labels_of(result, audit, folder))))
    ask("audit", report=str(folder), labels=str(labels))
    for pictures in (60, 40, 0):
        assert probe(pictures)[1].endswith("60 pictures to label, 60 are labelled")
        assert read_audit(folder).labelled == 60


@pytest.mark.usefixtures("no_quick_looks")
def test_a_pack_is_one_file_and_says_what_its_publisher_must_know(tmp_path):
    folder = write(counted_result(WORKING), tmp_path / "probe")
    output = tmp_path / "pack.zip"
    found, said, live = ask("pack", report=str(folder), output=str(output))
    assert found["path"] == str(output) and said.startswith("pack.zip: ")
    with zipfile.ZipFile(output) as file:
        assert set(file.namelist()) == set(found["files"]) >= {"README.md", "civitai.json"}
    assert found["warnings"] == ["the licence of the base is unknown; give it in the field license"]
    assert live.verdict == ""
    with pytest.raises(ConfigError, match=r"pack\.output: .* exists already"):
        ask("pack", report=str(folder), output=str(output))
    ask("pack", report=str(folder), output=str(output), overwrite=True, license="cc-by-nd-4.0")


def test_the_pack_of_a_quick_look_is_doubtful(tmp_path):
    folder = write(counted_result(WORKING), tmp_path / "probe")
    found, _, live = ask("pack", report=str(folder), output=str(tmp_path / "p.zip"), license="mit")
    assert found["warnings"][0].startswith("this probe is a quick look, with 1 fine-tuning")
    assert live.verdict == "doubtful"


@pytest.mark.usefixtures("no_quick_looks")
def test_the_pack_of_a_broken_model_is_doubtful(tmp_path):
    folder = write(counted_result(BROKEN), tmp_path / "probe")
    found, _, live = ask("pack", report=str(folder), output=str(tmp_path / "p.zip"), license="mit")
    assert found["warnings"] == ["grey is broken before any attack; the card begins with that"]
    assert live.verdict == "doubtful"


@pytest.mark.parametrize(("asked", "kept"), [({}, "blurred"), ({"pictures": "none"}, "none")])
def test_the_pictures_of_a_pack_are_those_that_were_asked_for(tmp_path, asked, kept):
    folder = write(counted_result(WORKING), tmp_path / "probe")
    ask("pack", report=str(folder), output=str(tmp_path / "p.zip"), **asked)
    with zipfile.ZipFile(tmp_path / "p.zip") as file:
        assert json.loads(file.read("results.json"))["pictures"]["kept"] == kept


def plan_of(scorer: str, kept: str) -> ProbePlan:
    return ProbePlan(
        concepts=(Concept("weapons", ("a gun",)),), scorers=(ScorerConfig(name=scorer),),
        fine_tunes=(FineTuneAttack(name="training"),), keep_pictures=kept,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("scorer", "kept", "message"),
    [
        ("denoising", "all", r"probe\.audit: denoising sees no pictures"),
        ("nudenet", "blurred", r"probe\.audit: the pictures must be kept"),
        ("nudenet", "none", r"probe\.audit: the pictures must be kept"),
    ],
)
def test_an_audit_that_nobody_could_label_is_refused_before_the_probe(
    tmp_path, scorer, kept, message
):
    request = {
        "job": "probe", "checkpoints": [{"name": "original", "path": "demo"}],
        "plan": to_json(plan_of(scorer, kept)), "folder": str(tmp_path), "audit": 50,
    }  # fmt: skip
    with pytest.raises(ConfigError, match=message):
        parse_request(request)
    assert parse_request({**request, "audit": 0}).audit == 0
