"""Harden Model in a process of its own: what it asks for, how it ends, and the background."""

import copy
import importlib
import threading
from pathlib import Path
from typing import Any, ClassVar

import fakes_bridge as fakes
import pytest
import torch
from fakes_bridge import ModelPatcher, load_lora
from fakes_checkpoint import build_networks, ldm_tensors, write_tiny_checkpoint
from fakes_comfy import Interrupted
from fakes_data import tiny_family
from fakes_nodes import Bench

from resalign.backend.errors import ConfigError, RunError
from resalign.backend.jobs.harden import harden_job
from resalign.backend.plan.file import from_json
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.worker.requests import check_files, parse_request

STATE = {
    "kind": "harden", "status": "running", "stage": "harden", "step": 1, "total": 4,
    "micro_step": 0, "micro_total": 0, "message": "", "line": "step 1", "pictures": [],
}  # fmt: skip


class FakeWorker:
    """A worker process that takes the steps here; `how` it ends is set by the test."""

    how = "done"
    made: ClassVar[list[Any]] = []

    def __init__(self, python, *, on_event, on_log):
        self.on_event, self.cancelled, self.steps = on_event, False, []
        self.gate = threading.Event()  # a run that "waits" ends by it, or by a cancel
        self.made.append(self)

    def run(self, request):
        self.request = request
        check_files(parse_request(request))
        self.on_event({"event": "hello", "torch": "2", "device": "cpu"})
        self.on_event({"event": "state", "state": STATE})
        if self.how.startswith("waits") and not self.gate.wait(20):
            raise AssertionError("neither cancelled nor let go")
        if self.cancelled:
            self.on_event({"event": "stopped", "message": "stopped; Resume continues"})
            return 130
        if self.how == "memory":
            self.on_event({"event": "failed", "kind": "memory", "message": "the memory is full"})
            return 3
        if self.how == "killed":
            return -9
        plan = from_json(HardeningPlan, request["plan"])

        class Opened:
            def __enter__(self):
                return tiny_family()

            def __exit__(self, *error):
                return None

        with torch.inference_mode(False), torch.enable_grad():
            harden_job(plan, folder=Path(request["run_folder"]),
                       model=Opened())  # fmt: skip
        self.on_event({"event": "state", "state": {**STATE, "status": "done", "step": 4}})
        self.on_event({"event": "done", "result": {}})
        return 0

    def cancel(self, **seconds):
        self.cancelled = True
        self.gate.set()

    def last_lines(self):
        return "the last thing it said"


@pytest.fixture
def bench(monkeypatch, tmp_path):
    made = Bench(monkeypatch, tmp_path)
    made.own = importlib.import_module("resalign.nodes.own_process")
    bridge = importlib.import_module("resalign.nodes.bridge")
    made.file = tmp_path / "a.safetensors"
    made.file.touch()
    made.differs = ""
    tensors = {f"{name}.weight": p for name, p in tiny_family().denoiser.named_parameters()}
    for name, value in {
        "source_of": lambda model: made.file, "decision_for": lambda model, path: "",
        "decision_of": lambda model: "epsilon",
        "difference_from_file": lambda *parts: made.differs,
        "base_matrices": lambda model: tensors,
    }.items():  # fmt: skip
        monkeypatch.setattr(bridge, name, value)
    made.parts = {}
    sources = importlib.import_module("resalign.nodes.sources")
    monkeypatch.setattr(sources, "companions", lambda *parts: made.parts)
    monkeypatch.setattr(FakeWorker, "made", [])
    monkeypatch.setattr(FakeWorker, "how", "done")
    monkeypatch.setattr(made.own, "WorkerProcess", FakeWorker)
    monkeypatch.setattr(made.own, "_EVERY", 0.01)
    yield made
    for worker in FakeWorker.made:
        worker.gate.set()
    for run in [*made.own._running.values()]:  # what a test has left at work
        run._thread.join(30)


def own(bench, **options):
    return bench.run(process=bench.own.OWN, **{"steps": 1, **options}).args


def background(bench, **options):
    return bench.run(process=bench.own.BACKGROUND, **{"steps": 1, **options}).args


def blocked(outputs):
    return [type(one).__name__ for one in outputs] == ["ExecutionBlocker"] * 4


def test_the_result_is_that_of_a_run_inside_and_nothing_is_built_here(bench):
    model, _, _, run = own(bench, steps=4)
    assert (model, bench.built) == ("MODEL hardened", 0)
    assert run.source == bench.file and run.weights["model"] == "weights"
    assert len(run.records) == 4 and bench.state["status"] == "done"
    assert bench.state["message"].startswith("Test run, not safe to publish")
    again = bench.run().args
    assert bench.built == 0 and again[3].folder == run.folder, "the same run, also from inside"
    assert bench.host.progress, "the node's bar moved"


def test_the_request_names_file_device_and_previews(bench):
    own(bench, device="cpu", preview_every=3, preview_prompt="a cat", show_pictures=True)
    request = FakeWorker.made[0].request
    assert request["checkpoint"] == str(bench.file) and request["device"] == "cpu"
    assert (request["preview_every"], request["preview_prompt"]) == (3, "a cat")
    assert request["show_pictures"] is True and request["adopt"] is True
    assert "text_encoder" not in request


def test_the_request_names_the_files_that_the_checkpoint_lacks(bench):
    bench.parts = {"text_encoder": str(bench.file), "vae": str(bench.file)}
    own(bench, device="cpu")
    assert {name: FakeWorker.made[0].request[name] for name in bench.parts} == bench.parts


@pytest.mark.parametrize(
    ("how", "said"),
    [("memory", "the memory is full"), ("killed", "was killed (SIGKILL), by a user or by the")],
)
def test_its_death_is_an_error_of_the_node_that_says_how_to_go_on(bench, how, said):
    FakeWorker.how = how
    with pytest.raises(RunError) as caught:
        own(bench)
    assert said in str(caught.value) and "ComfyUI is not affected" in str(caught.value)
    assert bench.state["status"] == "failed" and bench.state["message"] == str(caught.value)
    FakeWorker.how = "done"
    assert own(bench)[0] == "MODEL hardened", "queueing again resumes the run"


def test_an_interrupt_stops_the_worker_and_passes_on(bench):
    FakeWorker.how = "waits"
    bench.host.interrupt = True
    with pytest.raises(Interrupted):
        own(bench)
    assert FakeWorker.made[0].cancelled
    assert bench.state["status"] == "stopped"
    assert "run the workflow again" in bench.state["message"]


def test_in_the_background_the_queue_goes_on_and_queueing_again_waits(bench):
    FakeWorker.how = "waits"
    node = bench.harden.HardenModel
    before = node.fingerprint_inputs(process=bench.own.BACKGROUND)
    assert blocked(background(bench))
    assert node.fingerprint_inputs(process=bench.own.BACKGROUND) != before, "ComfyUI asks again"
    assert node.fingerprint_inputs(process=bench.own.OWN) == node.fingerprint_inputs()
    assert bench.state["status"] == "running"
    assert "run the workflow again" in bench.state["remarks"][-1]
    FakeWorker.made[0].on_event({"event": "state", "state": {**STATE, "remarks": ["a card"]}})
    first, second = bench.state["remarks"]
    assert "run the workflow again" in first and second == "a card"
    FakeWorker.made[0].gate.set()
    assert background(bench)[0] == "MODEL hardened"
    assert len(FakeWorker.made) == 1, "the same worker was waited for"


def test_a_background_run_that_has_ended_is_found_and_not_begun_again(bench):
    assert blocked(background(bench))
    for run in [*bench.own._running.values()]:
        run._thread.join(20)
    assert bench.state["status"] == "done"
    assert background(bench)[0] == "MODEL hardened" and len(FakeWorker.made) == 1


def test_an_interrupt_of_the_waiting_node_cancels_the_background_run(bench):
    FakeWorker.how = "waits"
    background(bench)
    bench.host.interrupt = True
    with pytest.raises(Interrupted):
        background(bench)
    assert bench.state["status"] == "stopped" and not bench.own._running


def test_two_runs_do_not_share_a_device(bench):
    FakeWorker.how = "waits"
    background(bench)
    with pytest.raises(ConfigError, match="at work on cpu in the background"):
        background(bench, steps=2)
    FakeWorker.made[0].gate.set()


def test_the_pictures_of_a_background_run_stay_with_the_page_that_queued_it(bench, monkeypatch):
    FakeWorker.how = "waits"
    sent = []
    server = importlib.import_module("server").PromptServer.instance
    server.send_sync = lambda event, data, client=None: sent.append(client)
    background(bench)
    server.client_id = "somebody else"
    FakeWorker.made[0].on_event({"event": "state", "state": STATE})
    assert set(sent) == {"client"}
    FakeWorker.made[0].gate.set()


def test_what_is_connected_must_be_the_file_s(bench):
    bench.differs = "the MODEL has LoRAs or merges on it"
    with pytest.raises(ConfigError, match=r"LoRAs or merges on it.*'inside ComfyUI'"):
        own(bench)
    assert not FakeWorker.made


@pytest.mark.parametrize(
    ("inputs", "said"),
    [({"process": "inside ComfyUI", "device": "cuda:1"}, "ComfyUI hardens on its own device"),
     ({"device": "tpu"}, "device is 'tpu'"), ({"process": "outside"}, "process is 'outside'"),
     ({}, None), ({"process": "own process", "device": "cuda:1"}, None)],
)  # fmt: skip
def test_choices_that_cannot_be_are_refused_when_the_workflow_is_queued(bench, inputs, said):
    found = bench.harden.HardenModel.validate_inputs(**inputs)
    assert found is True if said is None else said in found


def test_a_device_that_this_machine_lacks_is_refused_before_any_work(bench):
    with pytest.raises(ConfigError, match="cuda:3"):
        own(bench, device="cuda:3")


# --- what a file holds ----------------------------------------------------------------------


@pytest.fixture
def parts(monkeypatch, tmp_path):
    """The bridge, a checkpoint file, and MODEL, CLIP and VAE as ComfyUI has loaded them."""
    bridge = fakes.bridge(monkeypatch, tmp_path)[0]
    path = write_tiny_checkpoint(tmp_path / "a.safetensors")
    tensors = {n: t.half().float() for n, t in ldm_tensors(build_networks("sd1"), "sd1").items()}
    model, clip, vae = fakes.host_parts()
    vae.patcher = ModelPatcher(
        {n[18:]: t for n, t in tensors.items() if n.startswith("first_stage_model.")}
    )
    return bridge, path, model, clip, vae


def test_what_load_checkpoint_made_of_a_file_is_the_file_s(parts):
    bridge, path, *connected = parts
    assert bridge.difference_from_file(*connected, path) == ""
    assert bridge.decision_for(connected[0], path) == ""


def scaled(patcher, part):
    other = copy.copy(patcher)
    other.tensors = {n: t * 1.5 if part in n else t for n, t in patcher.tensors.items()}
    return other


def test_another_model_clip_or_vae_is_not_the_file_s(parts):
    bridge, path, model, clip, vae = parts
    assert "the MODEL" in bridge.difference_from_file(scaled(model, ""), clip, vae, path)
    name = next(n for n in model.tensors if n.endswith("to_q.weight"))
    lora = {name.removesuffix(".weight") + ".diff": torch.ones(model.tensors[name].shape)}
    patched = load_lora(model, None, lora, 1.0, 1.0)[0]
    assert "LoRAs" in bridge.difference_from_file(patched, clip, vae, path)
    replaced = model.clone()
    replaced.object_patches = {"model_sampling": object()}
    assert "noise schedule" in bridge.difference_from_file(replaced, clip, vae, path)

    other = copy.copy(clip)
    other.patcher = scaled(clip.patcher, "")
    assert "the CLIP" in bridge.difference_from_file(model, other, vae, path)
    other = copy.copy(clip)
    other.layer_idx = -2
    assert "CLIP Set Last Layer is -2" in bridge.difference_from_file(model, other, vae, path)
    other.layer_idx = -1
    assert bridge.difference_from_file(model, other, vae, path) == ""

    other = copy.copy(vae)
    other.patcher = scaled(vae.patcher, "")
    assert "the VAE" in bridge.difference_from_file(model, clip, other, path)
    other.patcher = ModelPatcher({"taesd_encoder.0.weight": torch.ones(2, 2)})
    assert "another kind" in bridge.difference_from_file(model, clip, other, path)
