"""Probe, LoRA to try and export: from what the tab's page sends to a request for the worker."""

import json
from datetime import datetime

import pytest
from fakes_webui import FakeHost, write_header, write_run

from resalign.backend.errors import ConfigError
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.file import from_json, to_json
from resalign.backend.plan.presets import preset_plan
from resalign.backend.plan.probe import ProbePlan
from resalign.backend.plan.probe_presets import preset_probe
from resalign.scripts.resalign_webui import host as hosts
from resalign.scripts.resalign_webui import measure_forms as forms
from resalign.scripts.resalign_webui.runs import read_probes, read_runs, with_adapter

CAT = Concept("cat", ("a cat",))
NOW = datetime(2026, 1, 31, 14, 5, 9)


@pytest.fixture
def host(tmp_path):
    made = FakeHost(tmp_path)
    write_header(made.checkpoint_folder() / "model.safetensors", {})
    write_header(made.checkpoint_folder() / "hard.safetensors", {"resalign.method": "ResAlign"})
    write_header(made.lora_folder() / "style.safetensors", {})
    plan = to_json(preset_plan("quick", [CAT], resolution=128))
    source = str(made.checkpoint_folder() / "model.safetensors")
    write_run(hosts.runs_folder(made) / "done", plan, source, 20)
    write_run(hosts.runs_folder(made) / "begun", plan, source, 0)
    probe = hosts.probes_folder(made) / "measured"
    probe.mkdir(parents=True)
    (probe / "probe.json").write_text("{}")
    (probe / "report.html").write_text("")
    return made


@pytest.fixture
def runs(host):
    return read_runs(hosts.runs_folder(host))


def test_a_probe_of_a_run_takes_its_concepts_and_its_pictures(host, runs):
    values = {"original": "model.safetensors", "hardened": "hard.safetensors",
              "probe_run": "done | finished", "attack_steps": 10, "probe_seed": 4}  # fmt: skip
    found = forms.probe_request(values, host, runs, NOW)
    plan = from_json(ProbePlan, json.loads(json.dumps(found["plan"])))
    assert plan.concepts == (CAT,) and plan.resolution == 128 and plan.seeds == (4,)
    assert plan.fine_tunes[0].steps == 10 and plan.fine_tunes[0].looks == (5, 10)
    assert [one["name"] for one in found["checkpoints"]] == ["original", "hardened"]
    assert found["folder"].endswith("cat quick 2026-01-31 14.05.09")


def test_a_run_can_be_probed_without_an_export(host, runs):
    values = {"original": forms.THE_RUN, "hardened": forms.THE_RUN, "probe_run": "done"}
    original, hardened = forms.probe_request(values, host, runs)["checkpoints"]
    assert original["path"] == str(host.checkpoint_folder() / "model.safetensors")
    assert hardened["path"] == str(hosts.runs_folder(host) / "done")
    exported = {**values, "hardened": "hard.safetensors"}
    original, hardened = forms.probe_request(exported, host, runs)["checkpoints"]
    assert original["path"] == str(host.checkpoint_folder() / "model.safetensors")
    assert hardened["path"] == str(host.checkpoint_folder() / "hard.safetensors")
    with pytest.raises(ConfigError, match="not finished"):
        forms.probe_request({**values, "probe_run": "begun"}, host, runs)
    with pytest.raises(ConfigError, match="not in the list"):
        forms.probe_request({**values, "probe_run": "none"}, host, runs)


def test_a_probe_can_look_for_other_concepts_on_pictures_of_ones_own(host, runs, tmp_path):
    values = {"original": hosts.DEMO, "hardened": "hard.safetensors", "attacks": "paper",
              "probe_own_concepts": "# dog\na dog", "attack_folder": str(tmp_path)}  # fmt: skip
    found = forms.probe_request(values, host, runs, NOW)
    plan = from_json(ProbePlan, found["plan"])
    assert plan.seeds == preset_probe("paper", [CAT]).seeds
    assert plan.concepts == (Concept("dog", ("a dog",)),)
    assert {attack.data for attack in plan.fine_tunes} == {str(tmp_path)}
    assert found["checkpoints"][0]["path"] == "demo"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hardened": "model.safetensors"}, "the same file"),
        ({"hardened": "no.safetensors"}, "not in the list"),
        ({"probe_run": "none"}, "choose the run"),
        ({"probe_run": "../done"}, "not in the list"),
        ({"attacks": "gentle"}, "choose from fast, quick"),
        ({"scorer": "command"}, "choose from denoising"),
        ({"attack_steps": -3}, "from 0"),
        ({"attack_folder": "/nowhere"}, "does not exist"),
    ],
)
def test_a_probe_that_cannot_be_is_refused(host, runs, values, message):
    values = {"original": "model.safetensors", "hardened": "hard.safetensors",
              "probe_run": "done", **values}  # fmt: skip
    with pytest.raises(ConfigError, match=message):
        forms.probe_request(values, host, runs)


def test_a_lora_is_tried_on_a_run_or_on_two_files(host, runs):
    values = {"try_run": "done | finished", "lora": "style.safetensors", "prompt": " a cat "}
    found = forms.lora_request(values, host, runs)
    assert found["run_folder"].endswith("done") and found["original"].endswith("model.safetensors")
    assert (found["prompt"], found["strength"], found["steps"]) == ("a cat", 1.0, 20)
    files = {"try_run": "none", "try_original": "model.safetensors",
             "try_hardened": "hard.safetensors"}  # fmt: skip
    found = forms.lora_request({**values, **files}, host, runs)
    assert "run_folder" not in found and found["hardened"].endswith("hard.safetensors")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": "  "}, "write what to draw"),
        ({"lora": "/etc/passwd"}, "not in the list"),
        ({"width": 100}, "multiple of 8"),
        ({"count": 100}, "from 1 to 16"),
        ({"try_run": "none"}, "choose one from the list"),
    ],
)
def test_a_lora_that_cannot_be_tried_is_refused(host, runs, values, message):
    values = {"try_run": "done", "lora": "style.safetensors", "prompt": "a cat", **values}
    with pytest.raises(ConfigError, match=message):
        forms.lora_request(values, host, runs)


def test_an_export_goes_into_the_host_s_folder_and_can_carry_a_report(host, runs):
    probes = read_probes(hosts.probes_folder(host))
    values = {"export_run": "done | finished", "export_name": "sub/new.safetensors",
              "export_probe": "measured"}  # fmt: skip
    found = forms.export_request(values, host, runs, probes)
    assert found["output"] == str(host.checkpoint_folder() / "sub" / "new.safetensors")
    assert found["probe"].endswith("measured") and not found["unfinished"]
    values |= {"export_folder": forms.OUTPUT, "export_probe": "none"}
    found = forms.export_request(values, host, runs, probes)
    assert found["output"] == str(hosts.work_folder(host) / "sub" / "new.safetensors")
    assert "probe" not in found


def test_a_lora_goes_into_the_host_s_folder_of_loras(host, runs):
    found = forms.save_lora_request({"export_run": "done", "lora_name": "hardening"}, host, runs)
    assert found["output"] == str(host.lora_folder() / "hardening.safetensors")
    assert (found["job"], found["format"]) == ("lora", "")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"export_run": None}, "choose the run"),
        ({"export_run": "begun | step 0 of 20"}, "not in the list"),
        ({"export_name": "sub/CON.x"}, "Windows keeps"),
        ({"export_name": "a" * 300}, "has 300 characters"),
        ({"export_name": "../up"}, "not a file name"),
        ({"export_name": "/abs"}, "not a file name"),
        ({"export_name": "a:b"}, "not a file name"),
        ({"export_name": "a/ ./b"}, "not a file name"),
        ({"export_name": "link/new"}, "leads out"),
        ({"export_name": "model"}, "exists"),
        ({"export_name": "model.safetensors/new"}, "cannot be made"),
        ({"export_folder": "/tmp"}, "choose from"),
        ({"export_probe": "../../done"}, "not in the list"),
    ],
)
def test_an_export_that_leads_elsewhere_or_overwrites_is_refused(
    host, runs, tmp_path, values, message
):
    (tmp_path / "private").mkdir()
    (host.checkpoint_folder() / "link").symlink_to(tmp_path / "private")
    probes = read_probes(hosts.probes_folder(host))
    values = {"export_run": "done", "export_name": "new", **values}
    with pytest.raises(ConfigError, match=message):
        forms.export_request(values, host, with_adapter(runs), probes)


def test_runs_are_read_without_their_tensors_and_damaged_ones_are_left_out(host, runs):
    assert {run.name: (run.steps, run.total, run.finished) for run in runs} == {
        "done": (20, 20, True), "begun": (0, 20, False),
    }  # fmt: skip
    assert [run.name for run in with_adapter(runs)] == ["done"]
    folder = hosts.runs_folder(host)
    (folder / "done" / "plan.json").write_text("{")
    (folder / "begun" / "state.safetensors").write_bytes(b"no header")
    assert read_runs(folder) == [] and read_runs(folder / "nowhere") == []
