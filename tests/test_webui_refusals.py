"""Jobs that cannot run are refused at the click, before the host gives up its model."""

import json
import sys
import types

import pytest
from fakes_webui import FakeHost, FakeJobs, write_checkpoint, write_run, write_tensors

from resalign.backend.plan.concept import Concept
from resalign.backend.plan.file import plan_hash, to_json
from resalign.backend.plan.presets import preset_plan
from resalign.backend.plan.probe_settings import probe_plan
from resalign.scripts.resalign_webui import graphics, refusals
from resalign.scripts.resalign_webui import host as hosts
from resalign.scripts.resalign_webui.actions import Actions

CAT = Concept("cat", ("a cat",))
LORA = {"lora_unet_mid_block_resnets_0_conv1.lora_down.weight": [4, 8, 1, 1],
        "lora_unet_mid_block_resnets_0_conv1.lora_up.weight": [8, 4, 1, 1]}  # fmt: skip
FLUX = {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": [4, 3072],
        "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": [9216, 4]}  # fmt: skip
PROBE = {"original": "model.safetensors", "hardened": "hard.safetensors",
         "probe_own_concepts": "a cat"}  # fmt: skip
TRY = {"try_run": "none", "try_original": "model.safetensors", "try_hardened": "hard.safetensors",
       "lora": "style.safetensors", "prompt": "a cat"}  # fmt: skip
HARDEN = {"checkpoint": "model.safetensors", "own_concepts": "a cat",
          "preset": "balanced"}  # fmt: skip


@pytest.fixture
def host(tmp_path):
    made = FakeHost(tmp_path)
    made.worker_python = lambda: sys.executable
    models = made.checkpoint_folder()
    write_checkpoint(models / "model.safetensors")
    write_checkpoint(models / "hard.safetensors", {"resalign.method": "ResAlign"})
    write_tensors(models / "a_lora.safetensors", LORA)
    write_tensors(made.lora_folder() / "style.safetensors", LORA)
    write_tensors(made.lora_folder() / "flux.safetensors", FLUX)
    write_checkpoint(made.lora_folder() / "whole.safetensors")
    (made.lora_folder() / "broken.safetensors").write_bytes(b"x" * 50)
    return made


@pytest.fixture
def actions(host):
    made = Actions(host, FakeJobs(steps=1, pause=0), lambda *names: "")
    yield made
    made.jobs.close()


def refused(actions, said, *words):
    assert "ra-error" in said and actions.jobs.requests == [], said
    assert all(word in said for word in words), said


def run_in(host, name, preset="balanced", steps=20):
    plan = to_json(preset_plan(preset, [CAT]))
    folder = hosts.runs_folder(host) / name
    write_run(folder, plan, str(host.checkpoint_folder() / "model.safetensors"), steps)
    return folder


@pytest.mark.parametrize("role", ["original", "hardened", "sibling", "plain", "oracle"])
def test_a_probe_of_a_lora_is_refused(actions, role):
    refused(actions, actions.probe({**PROBE, role: "a_lora.safetensors"}), "a_lora", "is a LoRA")


def test_a_probe_of_checkpoints_starts(actions):
    every = dict.fromkeys(("sibling", "plain", "oracle"), "hard.safetensors")
    assert "Probe started." in actions.probe({**PROBE, **every})


def test_a_detector_that_the_workers_environment_lacks_is_refused(actions, monkeypatch):
    packages = {"nudenet": (("json", "no_such_package"), "pip install nudenet")}
    monkeypatch.setattr(refusals, "DETECTOR_PACKAGES", packages)
    said = actions.probe({**PROBE, "scorer": "nudenet"})
    refused(actions, said, "no_such_package", "-m pip install nudenet", "choose denoising")
    said = actions.probe({**PROBE, "second_scorer": "nudenet"})
    refused(actions, said, "no_such_package")
    packages["nudenet"] = (("json",), "pip install nudenet")
    assert "Probe started." in actions.probe({**PROBE, "scorer": "nudenet"})


def test_an_interpreter_that_does_not_answer_refuses_nothing(tmp_path):
    assert refusals._lacking(str(tmp_path / "gone"), ["json"]) == []
    assert refusals._lacking(sys.executable, ["json", "no_such_package"]) == ["no_such_package"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"lora": "whole.safetensors"}, ("whole.safetensors is a whole checkpoint",)),
        ({"lora": "broken.safetensors"}, ("broken.safetensors is not a safetensors file",)),
        ({"lora": "flux.safetensors"}, ("it looks like a LoRA for Flux",)),
        ({"try_original": "a_lora.safetensors"}, ("original:", "is a LoRA")),
        ({"try_hardened": "a_lora.safetensors"}, ("hardened:", "is a LoRA")),
    ],
)
def test_files_that_are_not_what_they_are_given_as_are_refused(actions, values, words):
    refused(actions, actions.try_lora({**TRY, **values}), *words)


def test_a_file_that_nobody_hardened_is_not_called_hardened(actions, host):
    """Whatever was chosen stood in report and pictures as `hardened`."""
    models = host.checkpoint_folder()
    for name, metadata in (("other", {}), ("first", {"resalign.method": "ResAlign"})):
        write_checkpoint(models / f"{name}.safetensors", metadata)
    for given, names, warning in (
        ({}, ["original", "hardened"], ""),
        ({"hardened": "other.safetensors"}, ["original", "other"],
         "other.safetensors does not say that it was hardened"),
        ({"original": "first.safetensors"}, ["original", "hardened"],
         "first.safetensors, chosen as the original, says that it was"),
    ):  # fmt: skip
        tried = {f"try_{name}": file for name, file in given.items()}
        for start, values in ((actions.probe, {**PROBE, **given}), (actions.try_lora, TRY | tried)):
            said = start(values)
            assert "started" in said or "Generating" in said
            assert warning in said and ("ra-doubtful" in said) == (warning != "")
            actions.jobs.close()
        asked = actions.jobs.requests[-2]["checkpoints"]
        assert [one["name"] for one in asked] == names


def test_the_same_file_under_two_names_is_refused(actions, host):
    models = host.checkpoint_folder()
    (models / "link.safetensors").symlink_to(models / "model.safetensors")
    refused(actions, actions.probe({**PROBE, "hardened": "link.safetensors"}), "the same file")
    said = actions.try_lora({**TRY, "try_hardened": "link.safetensors"})
    refused(actions, said, "the same file")


def test_a_lora_on_two_checkpoints_starts(actions):
    assert "Generating" in actions.try_lora(TRY)


@pytest.mark.parametrize("field", ["concept_folder", "retain_folder", "users_folder"])
def test_a_folder_without_pictures_is_refused(actions, tmp_path, field):
    folder = tmp_path / "mine"
    (folder / "sub").mkdir(parents=True)
    (folder / "notes.txt").write_text("a cat")
    (folder / ".hidden.png").write_bytes(b"")
    refused(actions, actions.harden({**HARDEN, field: str(folder)}), "has none that can be read")
    (folder / "sub" / "one.png").write_bytes(b"")
    assert "Hardening started" in actions.harden({**HARDEN, field: str(folder)})


def test_a_probe_on_a_folder_without_pictures_is_refused(actions, tmp_path):
    (tmp_path / "mine").mkdir()
    for field in ("attack_folder", "style_folder"):
        said = actions.probe({**PROBE, field: str(tmp_path / "mine")})
        refused(actions, said, "has none that can be read")


def test_the_name_of_another_run_is_refused(actions, host):
    values = {**HARDEN, "run_name": "mine", "own_concepts": "# cat\na cat"}
    folder = run_in(host, "mine", steps=0)
    said = actions.harden({**values, "seed": 3})
    refused(actions, said, "mine is the name of another run already, with other settings")
    other = {**values, "checkpoint": "hard.safetensors"}
    refused(actions, actions.harden(other), "of another checkpoint")
    assert "Hardening started" in actions.harden(values), "the same run goes on"
    actions.jobs.close()
    actions.jobs.requests.clear()
    (folder / "plan.json").write_text("{")
    refused(actions, actions.harden(values), "cannot be read")


def test_a_run_whose_checkpoint_is_gone_is_not_probed(actions, host):
    run_in(host, "mine")
    write_checkpoint(host.checkpoint_folder() / "moved.safetensors")
    (host.checkpoint_folder() / "model.safetensors").unlink()
    values = {"probe_run": "mine", "original": "moved.safetensors"}
    refused(actions, actions.probe(values), "model.safetensors", "is missing")


@pytest.mark.parametrize(
    ("device", "known", "said"),
    [
        ("cuda:7", 2, "cuda:0 to cuda:1"), ("cuda", 0, "no GPU for CUDA"), ("cuda:1", 2, ""),
        ("cuda", 1, ""), ("cuda:7", None, ""), ("cpu", 0, ""), ("auto", 0, ""),
    ],
)  # fmt: skip
def test_a_device_that_is_not_there_is_refused(actions, monkeypatch, device, known, said):
    monkeypatch.setattr(graphics, "count", lambda: known)
    for start, values in (
        (actions.harden, HARDEN), (actions.probe, PROBE), (actions.try_lora, TRY),
    ):  # fmt: skip
        answer = start({**values, "device": device})
        if said:
            refused(actions, answer, said)
        else:
            assert "ra-error" not in answer
            actions.jobs.close()


def test_gpus_are_counted_without_torch_or_by_that_of_the_host(monkeypatch):
    monkeypatch.delenv("RESALIGN_PYTHON", raising=False)
    cuda = types.SimpleNamespace(device_count=lambda: 3)
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert graphics.count() == 3
    monkeypatch.setenv("RESALIGN_PYTHON", "/another/python")
    assert graphics.count() is None, "its torch is another"
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert graphics.count() == 0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert graphics.count() is None, "what the numbers stand for is not known"


def test_a_lora_of_a_run_that_changed_all_weights_is_refused(actions, host):
    run_in(host, "lasting", "durable", 300)
    said = actions.save_lora({"export_run": "lasting", "lora_name": "new"})
    refused(actions, said, "changes all weights and has no LoRA: export the checkpoint")
    run_in(host, "mine", steps=300)
    assert "Saving" in actions.save_lora({"export_run": "mine", "lora_name": "new"})


def test_a_sheet_of_a_report_without_pictures_is_refused(actions, host):
    folder = hosts.probes_folder(host) / "measured"
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("")
    plan = to_json(probe_plan("fast", [CAT]))
    (folder / "plan.json").write_text(json.dumps({"schema": 1, "plan": plan}))
    said = actions.audit({"report": "measured"})
    refused(actions, said, "denoising sees no pictures")
    plan = to_json(probe_plan("fast", [CAT], scorer="nudenet", show_pictures=True))
    (folder / "plan.json").write_text(json.dumps({"schema": 1, "plan": plan}))
    assert "Drawing" in actions.audit({"report": "measured"})


def test_a_report_of_something_else_is_not_exported_with_a_run(actions, host):
    """Its figures would stand in the header of a checkpoint that nobody measured."""
    mine, other = run_in(host, "mine"), run_in(host, "other", "edit", 1)
    models = host.checkpoint_folder()
    own = plan_hash(preset_plan("balanced", [CAT]))
    write_checkpoint(
        models / "mine.safetensors", {"resalign.method": "x", "resalign.plan_sha256": own}
    )
    write_checkpoint(
        models / "others.safetensors", {"resalign.method": "x", "resalign.plan_sha256": "0"}
    )
    values = {"export_run": "mine", "export_name": "new"}
    for name, hardened, says in (
        ("a", models / "model.safetensors", "model.safetensors, which was never hardened"),
        ("b", models / "others.safetensors", "others.safetensors, which another run hardened"),
        ("c", other, "measured the run other, not mine"),
        ("d", models / "mine.safetensors", ""), ("e", mine, ""),
    ):  # fmt: skip
        folder = hosts.probes_folder(host) / name
        folder.mkdir(parents=True)
        (folder / "report.html").write_text("")
        given = [{"path": "demo"}, {"path": str(hardened)}, {"path": str(other), "role": "plain"}]
        (folder / "job.json").write_text(json.dumps({"checkpoints": given}))
        said = actions.export({**values, "export_probe": name})
        if says:
            refused(actions, said, says, "choose its report, or none")
        else:
            assert "Export started" in said
            actions.jobs.close()
            (models / "new.safetensors").unlink()
