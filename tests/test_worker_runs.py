"""The worker's jobs on the embedded demo checkpoint, called in this process."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from fakes_lora import plain, write
from fakes_webui import write_checkpoint
from fakes_worker import finished_demo_run, small_disk
from PIL import Image

from resalign.backend.demo.plans import CHECKPOINT
from resalign.backend.errors import CheckpointError, ConfigError, ExportError, RunError
from resalign.backend.jobs.live_state import LiveState
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.file import to_json
from resalign.backend.plan.fine_tune import FineTuneConfig
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.images import ImageSet
from resalign.backend.run.folder import RunFolder
from resalign.backend.worker import checking, exporting, hardening, resuming, trying
from resalign.backend.worker.protocol import Stopped
from resalign.backend.worker.requests import parse_request

PLAN = HardeningPlan(
    concepts=(
        Concept("weapon", ("a pistol",), images=ImageSet(prompts=("a pistol",), images=2,
                                                         sampling_steps=2)),
    ),
    retain_set=ImageSet(prompts=("a cat",), images=2, sampling_steps=2),
    fine_tunes=(FineTuneConfig(name="user", steps=2),),
    outer_steps=3, warm_up_steps=1, forget_batch=1, retain_batch=1, save_every=50,
)  # fmt: skip


def nobody():
    """The check for a stop, where nobody asks for one."""


class StopsAfter:
    """Asks for a stop at the nth check."""

    def __init__(self, checks):
        self.left = checks

    def __call__(self):
        self.left -= 1
        if self.left < 0:
            raise Stopped


def harden(folder, *, check=nobody, live=None, previews=0, **changes):
    request = {
        "job": "harden", "checkpoint": "demo", "plan": to_json(PLAN), "run_folder": str(folder),
        "preview_every": previews, **changes,
    }  # fmt: skip
    return hardening.harden(
        parse_request(request), live or LiveState("harden"), check, device="cpu"
    )


def resume(folder, live=None):
    request = parse_request({"job": "resume", "run_folder": str(folder), "preview_every": 0})
    return resuming.resume(request, live or LiveState("resume"), nobody, device="cpu")


def export(folder, output, *, check=nobody, **more):
    request = {"job": "export", "run_folder": str(folder), "output": str(output), **more}
    return exporting.export(parse_request(request), LiveState("export"), check)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that went through, with previews: folder, result, live state."""
    folder, live = tmp_path_factory.mktemp("finished") / "run", LiveState("harden")
    result, _ = harden(folder, live=live, previews=2)
    return folder, result, live


def check(folder, *, stop=nobody, live=None, **changes):
    request = {"job": "check", "checkpoint": "demo", "plan": to_json(PLAN),
               "run_folder": str(folder), **changes}  # fmt: skip
    return checking.check(parse_request(request), live or LiveState("check"), stop, device="cpu")


@pytest.mark.slow
def test_a_check_predicts_the_memory_and_writes_nothing(tmp_path):
    told = []
    live = LiveState("check", on_change=lambda state: told.append(state["message"]))
    result, message = check(tmp_path / "run", live=live, budget=8)
    result = json.loads(json.dumps(result, allow_nan=False))
    assert message == "fits 8.0 GiB as it is" and result["problems"] == []
    assert result["prediction"]["fits"] and result["prediction"]["changes"] == {}
    assert result["prediction"]["parts"]["total"] == result["memory_bytes"] < 2**30
    assert "predicting the memory: as it is" in told
    assert not list(tmp_path.iterdir())
    with pytest.raises(Stopped):
        check(tmp_path / "run", stop=StopsAfter(0))


@pytest.mark.slow
def test_a_check_tells_every_problem(tmp_path):
    plan = to_json(PLAN) | {"retain_set": {"folder": str(tmp_path / "gone")}}
    result, message = check(tmp_path / "run", plan=plan)
    assert message == "1 problem to fix" and "gone" in result["problems"][0]


@pytest.fixture
def cheap(tmp_path):
    return finished_demo_run(tmp_path)


def adapter_bytes(folder):
    return (Path(folder) / "adapter.safetensors").read_bytes()


def test_a_run_ends_with_a_result_curves_and_blurred_previews(finished):
    folder, result, live = finished
    assert (result["run_folder"], result["steps"]) == (str(folder), 3)
    assert result["concepts"] == ["weapon"] and {"harm", "retain", "q"} <= set(result["last"])
    assert [x for x, _ in live.state["curves"]["harm"]] == [1, 2, 3]
    shown = [(picture["step"], picture["flagged"]) for picture in live.state["pictures"]]
    assert shown == [(0, True), (0, False), (3, True), (3, False)], "before, and at the end"
    json.dumps([result, live.state], allow_nan=False)


@pytest.mark.slow
def test_stopped_within_a_step_resume_ends_in_the_same_bytes(finished, tmp_path):
    """And previews change nothing: the run it is compared with had some."""
    live = LiveState("harden")
    with pytest.raises(Stopped, match=r"stopped after step 2 of 3; all .* Resume continues"):
        harden(tmp_path, live=live, previews=2, check=_in_the_middle_of_step(3, live))
    live = LiveState("resume")
    result, _ = resume(tmp_path, live)
    shown = [(picture["step"], picture["flagged"]) for picture in live.state["pictures"]]
    assert shown == [(0, True), (0, False)], "those of the first session"
    assert result["steps"] == 3 and live.state["kind"] == "harden"
    assert [x for x, _ in live.state["curves"]["harm"]] == [1, 2, 3]
    assert adapter_bytes(tmp_path) == adapter_bytes(finished[0])
    # Asked for once more, it is there at once.
    shutil.rmtree(tmp_path / "cache")
    assert harden(tmp_path)[0] == result


def _in_the_middle_of_step(step, live):
    def check():
        if live.state["step"] == step - 1 and live.state["micro_step"]:
            raise Stopped

    return check


def test_a_stop_before_the_first_step_leaves_a_run_that_harden_goes_on_with(tmp_path):
    with pytest.raises(Stopped, match="after step 0 of 3"):
        harden(tmp_path, check=StopsAfter(3))
    shutil.copy(CHECKPOINT, tmp_path / "other.safetensors")
    with pytest.raises(RunError, match=r"holds a run on .*, not on"):
        harden(tmp_path, checkpoint=str(tmp_path / "other.safetensors"))
    with pytest.raises(RunError, match="belongs to another plan"):
        harden(tmp_path, plan={**to_json(PLAN), "seed": 5})


def test_a_plan_that_cannot_be_run_leaves_no_folder(tmp_path):
    wrong = to_json(PLAN) | {"retain_set": {"folder": str(tmp_path / "none")}}
    with pytest.raises(ConfigError, match="none"):
        harden(tmp_path / "run", plan=wrong)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_checkpoint_deleted_in_mid_run_does_not_stop_it_and_is_missed_by_the_export(tmp_path):
    source = tmp_path / "model.safetensors"
    shutil.copy(CHECKPOINT, source)
    live = LiveState("harden")

    def check():
        if live.state["step"] == 1:
            source.unlink(missing_ok=True)

    harden(tmp_path / "run", checkpoint=str(source), live=live, check=check)
    assert not source.exists()
    with pytest.raises(
        RunError, match=r"model.safetensors, the checkpoint .* hardened, is missing"
    ):
        export(tmp_path / "run", tmp_path / "out.safetensors")
    result, _ = export(tmp_path / "run", tmp_path / "out.safetensors", checkpoint="demo")
    assert result["changed"] > 0 and Path(result["path"]).is_file()


def test_an_export_writes_checkpoint_and_card_and_counts_what_changed(cheap, tmp_path):
    result, message = export(cheap, tmp_path / "out.safetensors")
    assert not result["demo"], "it is of a copy"
    again, _ = export(cheap, tmp_path / "again.safetensors", checkpoint="demo")
    assert again["demo"], "which no host can draw with"
    assert (result["changed"], result["path"]) == (1, str(tmp_path / "out.safetensors"))
    assert Path(result["card"]).is_file() and len(result["tensor_sha256"]) == 64
    doubt, changed = message.splitlines()
    assert "measured yet" in doubt, "no report was given"
    assert changed == f"1 tensors changed, {result['kept']} left as they were"
    with pytest.raises(ExportError, match="exists"):
        export(cheap, tmp_path / "out.safetensors")


def test_an_unfinished_run_is_exported_only_on_purpose(cheap, tmp_path):
    with RunFolder.open(cheap) as run:
        run.save_state(2, {"x": torch.zeros(1)}, {})
    with pytest.raises(RunError, match="stopped after step 2 of 3"):
        export(cheap, tmp_path / "out.safetensors")
    assert export(cheap, tmp_path / "out.safetensors", unfinished=True)[0]["changed"] == 1


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", 16) as folder:
        yield folder


def test_a_disk_that_fills_up_during_an_export_costs_the_file_and_not_the_run(cheap, disk):
    filler = disk / "filler"

    def others_write():
        if not filler.exists():
            filler.write_bytes(b"\0" * (8 << 20))

    before = {path.name: path.read_bytes() for path in cheap.iterdir()}
    with pytest.raises(ExportError, match="No space left on device"):
        export(cheap, disk / "out.safetensors", check=others_write)
    assert os.listdir(disk) == ["filler"]
    assert {path.name: path.read_bytes() for path in cheap.iterdir()} == before
    filler.unlink()
    export(cheap, disk / "out.safetensors")


def test_a_lora_of_the_run_is_written(cheap, tmp_path):
    request = {"job": "lora", "run_folder": str(cheap), "output": str(tmp_path / "l.safetensors")}
    result, _ = exporting.lora(parse_request(request), LiveState("lora"), nobody)
    assert result == {"path": str(tmp_path / "l.safetensors"), "format": "kohya"}
    assert (tmp_path / "l.safetensors").is_file()


def try_lora(lora, live=None, check=nobody, **more):
    request = parse_request({
        "job": "try_lora", "original": "demo", "lora": str(lora), "prompt": "a cat", "steps": 1,
        **more,
    })  # fmt: skip
    return trying.try_lora(request, live or LiveState("try_lora"), check, device="cpu")


@pytest.mark.parametrize(
    ("metadata", "titles", "warned"),
    [
        ({"resalign.method": "ResAlign"}, ("original + LoRA", "hardened + LoRA"), False),
        ({}, ("original + LoRA", "mine + LoRA"), True),
    ],
)
def test_pictures_of_a_lora_are_called_what_the_headers_say(
    monkeypatch, tmp_path, metadata, titles, warned
):
    """Any two files were called original and hardened."""
    write_checkpoint(tmp_path / "mine.safetensors", metadata)
    seen, picture = {}, Image.new("RGB", (8, 8))
    monkeypatch.setattr(
        trying, "try_lora_job", lambda *_, **given: seen.update(given) or [(picture, picture)]
    )
    sheet = trying.contact_sheet
    monkeypatch.setattr(
        trying, "contact_sheet", lambda *a, **given: seen.update(drawn=given) or sheet(*a, **given)
    )
    _, said = try_lora(tmp_path / "l.safetensors", hardened=str(tmp_path / "mine.safetensors"))
    assert seen["columns"] == seen["drawn"]["columns"] == titles
    assert ("mine.safetensors does not say that it was hardened" in said) is warned


@pytest.mark.slow
def test_a_lora_is_tried_on_both_side_by_side_and_blurred(cheap, tmp_path):
    lora, live = write(tmp_path / "l.safetensors", plain()), LiveState("try_lora")
    result, message = try_lora(lora, live, run_folder=str(cheap), count=2)
    captions = [(p["caption"], p["flagged"]) for p in result["pictures"]]
    assert captions == [("seed 0: a cat", True), ("seed 1: a cat", True)]
    assert all(p["url"].startswith("data:image/jpeg;base64,") for p in result["pictures"])
    assert message == "2 pictures of each generated" and live.state["total"] == 4
    shown, _ = try_lora(lora, run_folder=str(cheap), count=2, show_pictures=True)
    assert [picture["flagged"] for picture in shown["pictures"]] == [False, False]
    assert shown["pictures"][0]["url"] != result["pictures"][0]["url"]


def test_a_lora_that_fits_nothing_is_the_users_mistake(tmp_path):
    wide = {name: tensor.repeat(20, 20) for name, tensor in plain().items()}
    lora = write(tmp_path / "l.safetensors", wide)
    with pytest.raises(CheckpointError, match=r"l\.safetensors: .* is for a layer from 640"):
        try_lora(lora, hardened="demo")
