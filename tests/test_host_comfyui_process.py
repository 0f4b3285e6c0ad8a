"""Harden Model's own process in a real ComfyUI: it dies alone, and it leaves the queue free."""

import importlib.util
import os
import re
import signal
from pathlib import Path

import pytest
from host_comfyui import CHECKPOINT, comfyui, failure, node, reduced, states, until, working

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
OWN, BACKGROUND = "own process", "own process, in the background"


@pytest.fixture(scope="module")
def host(tmp_path_factory, root):
    with comfyui(tmp_path_factory.mktemp("comfyui"), root, 8213) as running:
        yield running


@pytest.fixture(scope="module")
def harden(root):
    """A graph that hardens and draws with the result; steps and process as asked."""
    spec = importlib.util.spec_from_file_location("workflows", root / "tools" / "workflows.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def graph(process, *, steps=2, seed=0, **changes):
        name = "1 Quick harden and compare"
        made = reduced(module.api(name), outer_steps=steps, random_seed=seed, **changes)
        made["5"]["inputs"] |= {"process": process, "preview_every": 1}
        return made

    return graph


def workers(host):
    """Process ids of the workers that this ComfyUI has started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        ours = any(word.endswith(b"backend/worker/__main__.py") for word in words)
        if ours and parent == host.process.pid:
            found.append(int(folder.name))
    return found


def saved(host):
    """Runs that have saved a step."""
    return {*host.base.glob("output/resalign/runs/*/state.safetensors")}


def only_harden(graph):
    return {key: graph[key] for key in ("1", "2", "3", "5", "90", "91")}


def test_a_run_in_its_own_process_gives_what_the_queue_needs(host, harden):
    outputs = host.run(harden(OWN))
    summary = outputs["5"]["resalign_run"][0]
    assert summary["steps"] == 2 and summary["source"] == CHECKPOINT
    shown = states(host)
    assert shown["status"] == "done" and len(shown["pictures"]) == 4
    assert workers(host) == []
    again = host.run(only_harden(harden("inside ComfyUI")))
    assert again["5"]["resalign_run"][0]["key"] == summary["key"]
    assert "kept from an earlier run" in states(host)["message"]


def test_a_killed_worker_leaves_the_server_and_the_run_goes_on_in_either_place(host, harden):
    graph = only_harden(harden(OWN, steps=16, seed=3))
    known = saved(host)
    prompt = host.queue(graph)
    until(lambda: saved(host) - known)
    (worker,) = workers(host)
    os.kill(worker, signal.SIGKILL)
    said = failure(host.wait(prompt))
    assert "was killed (SIGKILL)" in said and "ComfyUI is not affected" in said
    assert states(host)["status"] == "failed"
    step = int(re.search(r"run the workflow again to continue from step (\d+)", said)[1])

    inside = only_harden(harden("inside ComfyUI", steps=16, seed=3))
    prompt = host.queue(inside)
    until(lambda: working(host))
    assert states(host)["step"] >= step > 0, "not from the beginning"
    host.post("/interrupt", {})
    host.wait(prompt)
    assert host.run(graph)["5"]["resalign_run"][0]["steps"] == 16


def test_an_interrupt_stops_the_worker(host, harden):
    prompt = host.queue(only_harden(harden(OWN, steps=40, seed=4)))
    until(lambda: working(host) and states(host)["step"] >= 1)
    host.post("/interrupt", {})
    history = host.wait(prompt)
    assert any(name == "execution_interrupted" for name, _ in history["status"]["messages"])
    assert workers(host) == []
    assert "run the workflow again" in states(host)["message"]


def test_in_the_background_pictures_are_made_meanwhile_and_the_result_comes_later(host, harden):
    graph = harden(BACKGROUND, steps=12, seed=5)
    outputs = host.run(graph, timeout=120)
    assert "30" not in outputs and states(host)["status"] == "running"
    picture = {
        "1": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "2": node("CLIPTextEncode", clip=["1", 1], text="a cat"),
        "3": node("EmptyLatentImage", width=64, height=64),
        "4": node("KSampler", model=["1", 0], positive=["2", 0], negative=["2", 0],
                  latent_image=["3", 0], steps=2, seed=1),
        "6": node("VAEDecode", samples=["4", 0], vae=["1", 2]),
        "7": node("PreviewImage", images=["6", 0]),
    }  # fmt: skip
    assert len(host.run(picture)["7"]["images"]) == 1
    assert states(host)["status"] == "running" and len(workers(host)) == 1

    outputs = host.run(graph)
    assert outputs["5"]["resalign_run"][0]["steps"] == 12
    drawn = [one for one in outputs.values() if "images" in one]
    assert drawn, "what depends on the run is done now"
    assert states(host)["status"] == "done" and workers(host) == []


def test_a_model_with_a_lora_is_refused_before_any_work(host, harden):
    graph = only_harden(harden("inside ComfyUI"))
    graph["9"] = node("ResAlign_SaveHardeningLora", run=["5", 3], filename="own", overwrite=True)
    host.run(graph)
    host.info = host.get("/object_info")
    graph = only_harden(harden(OWN, seed=6))
    graph["50"] = node("LoraLoaderModelOnly", model=["1", 0], lora_name="own.safetensors",
                       strength_model=1.0)  # fmt: skip
    graph["5"]["inputs"]["model"] = ["50", 0]
    assert "LoRAs or merges" in failure(host.wait(host.queue(graph)))


def test_another_device_inside_comfyui_is_refused_at_queue(host, harden):
    graph = only_harden(harden("inside ComfyUI"))
    graph["5"]["inputs"]["device"] = "cuda:1"
    with pytest.raises(AssertionError, match="hardens on its own device"):
        host.queue(graph)
