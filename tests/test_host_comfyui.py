"""Our nodes in a real ComfyUI, through its HTTP API, on a reduced checkpoint."""

import importlib.util
import json
import re
import time
import urllib.error
import urllib.request

import pytest
import torch
from host_checkpoints import place_reduced_sdxl, write_reduced_checkpoint
from host_comfyui import (
    CHECKPOINT,
    comfyui,
    failure,
    largest,
    latent,
    node,
    reduced,
    states,
    until,
    working,
)

from resalign.backend.checkpoint.inspect import inspect

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def host(tmp_path_factory, root):
    with comfyui(tmp_path_factory.mktemp("comfyui"), root, 8211) as running:
        yield running


@pytest.fixture(scope="module")
def example(root):
    """An example workflow in the API format, made small."""
    spec = importlib.util.spec_from_file_location("workflows", root / "tools" / "workflows.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda name, **changes: reduced(module.api(name), **changes)


def alone(graph):
    """Harden Model with what it needs and no preview."""
    kept = {key: graph[key] for key in ("1", "2", "3", "5", "90", "91")}
    kept["5"]["inputs"]["preview_every"] = 0
    return kept


def test_all_nodes_are_there_with_help_templates_and_blueprint(host, root):
    ours = [name for name in host.info if name.startswith("ResAlign_")]
    assert len(ours) == 14
    assert "IMPORT FAILED" not in host.log()
    for name in ours:
        with urllib.request.urlopen(f"{host.address}/extensions/resalign/docs/{name}.md") as page:
            assert page.status == 200
    templates = {path.stem for path in (root / "example_workflows").glob("*.json")}
    assert set(host.get("/workflow_templates")["resalign"]) == templates


@pytest.mark.parametrize("name", ["1 Quick harden and compare", "Harden SDXL"])
def test_an_example_runs(host, example, name):
    outputs = host.run(example(name))
    summary = outputs["5"]["resalign_run"][0]
    assert summary["steps"] == 2 and summary["source"] == CHECKPOINT
    assert states(host)["status"] == "done"


def test_the_sdxl_example_runs_on_an_sdxl(host, example):
    """A narrow checkpoint with random weights."""
    source = place_reduced_sdxl(host.base / "models/checkpoints")
    host.info = host.get("/object_info")
    graph = example("Harden SDXL")
    graph["1"]["inputs"]["ckpt_name"] = source
    outputs = host.run(graph)
    assert outputs["5"]["resalign_run"][0]["source"] == source
    name = re.search(r"([^/\s]+): \d+ tensors changed", outputs["8"]["text"][0])
    assert name, outputs["8"]["text"]
    found = inspect(host.base / "models/checkpoints" / name[1])
    assert found.family == "sdxl" and found.hardened


def test_a_memory_plan_stops_the_queue_or_gives_settings_that_harden_model_takes(host, example):
    """Half a GiB is too little; the smallest settings, bf16 among them, then run to the end."""
    graph = alone(example("1 Quick harden and compare"))
    graph["5"]["inputs"]["settings"] = ["6", 0]
    inputs = {"model": ["1", 0], "settings": ["3", 0], "concepts": ["2", 0], "retain": ["91", 0]}
    graph["6"] = node("ResAlign_MemoryPlan", **inputs, budget=0.5)
    history = host.wait(host.queue(graph))
    assert "nothing fits 512 MiB" in failure(history)
    assert states(host, "6")["status"] == "failed" and states(host)["status"] != "running"

    graph["6"]["inputs"]["when_nothing_fits"] = "go on"
    outputs = host.run(graph)
    assert 'precision = "bf16"' in outputs["6"]["text"][0]
    assert outputs["5"]["resalign_run"][0]["steps"] == 2
    plans = host.base.glob("output/resalign/runs/*/plan.json")
    assert "bf16" in {json.loads(path.read_text())["precision"] for path in plans}

    graph["6"]["inputs"]["budget"] = 0.0
    (text,) = host.run({key: graph[key] for key in graph if key != "5"})["6"]["text"]
    assert "adapter and its state" in text and "fits" not in text, "no limit on the CPU"


@pytest.mark.parametrize(("preset", "steps"), [("edit", 1), ("redirect", 2)])
def test_the_fast_methods_run(host, example, preset, steps):
    outputs = host.run(alone(example("1 Quick harden and compare", preset=preset)))
    assert outputs["5"]["resalign_run"][0]["steps"] == steps
    assert f" in {steps} step{'s' * (steps > 1)}" in states(host)["message"]  # edited, or hardened


def test_the_full_example_probes_shows_and_exports(host, example):
    outputs = host.run(example("2 Full harden with probe"))

    report = outputs["7"]["resalign_report"][0]
    assert report["columns"] == ["original", "hardened"] and len(report["rows"]) >= 2
    with urllib.request.urlopen(host.address + report["url"]) as page:
        assert page.headers["X-Content-Type-Options"] == "nosniff"  # ComfyUI sets its own policy
        assert b"Resilience" in page.read()
    assert "tensors changed" in outputs["8"]["text"][0]
    assert (host.base / "models/checkpoints/hardened.safetensors").is_file()
    assert (host.base / "models/loras/hardening_lora.safetensors").is_file()


def test_a_lora_is_tried_on_both(host, example):
    graph = example("3 Try my LoRA")
    host.run({key: one for key, one in example("2 Full harden with probe").items()
              if key in ("1", "2", "3", "4", "5", "9", "90", "91")})  # fmt: skip
    host.info = host.get("/object_info")
    graph["12"]["inputs"]["lora"] = "hardening_lora.safetensors"
    outputs = host.run(graph)
    assert len(outputs["13"]["images"]) == 1


def test_the_hardened_model_samples_as_its_exported_file(host, example):
    """The file is stored in fp32, so that no rounding is between the two."""
    exact = host.base / "models/checkpoints/exact.safetensors"
    write_reduced_checkpoint(exact, unet=torch.float32)
    host.info = host.get("/object_info")
    graph = example("1 Quick harden and compare", outer_steps=3, learning_rate=0.01)
    graph["1"]["inputs"]["ckpt_name"] = exact.name
    graph |= {
        "40": node("ResAlign_ExportHardenedCheckpoint", run=["5", 3], filename="same",
                   overwrite=True),
        "41": node("SaveLatent", samples=["26", 0], filename_prefix="loaded"),
        "42": node("SaveLatent", samples=["23", 0], filename_prefix="original"),
    }  # fmt: skip
    host.run(graph)
    host.info = host.get("/object_info")
    again = example("1 Quick harden and compare")
    again = {key: again[key] for key in ("1", "20", "21", "22", "23")}
    again["1"]["inputs"]["ckpt_name"] = "same.safetensors"
    again["41"] = node("SaveLatent", samples=["23", 0], filename_prefix="file")
    host.run(again)

    loaded, original, file = (latent(host, name) for name in ("loaded", "original", "file"))
    change, difference = largest(loaded, original), largest(loaded, file)
    print(f"hardening changes latents by {change:.3g}, the reloaded file by {difference:.3g}")
    assert change > 1e-2
    assert difference < 1e-3 * change and difference < 1e-4


def test_an_interrupt_frees_memory_and_leaves_a_run_that_goes_on(host, example):
    graph = alone(example("1 Quick harden and compare", outer_steps=20, random_seed=11))
    host.run(alone(example("1 Quick harden and compare", outer_steps=1, random_seed=10)))
    rested = host.rss()
    prompt = host.queue(graph)
    until(lambda: working(host) and states(host)["step"] >= 2)

    busy, asked = host.rss(), time.monotonic()
    host.post("/interrupt", {})
    history = host.wait(prompt)
    heard = time.monotonic() - asked
    assert heard < 10
    assert any(name == "execution_interrupted" for name, _ in history["status"]["messages"])
    stopped = states(host)
    assert stopped["status"] == "stopped" and "run the workflow again" in stopped["message"]
    time.sleep(2)
    print(f"RSS in MiB: {rested} before, {busy} at work, {host.rss()} after; {heard:.1f} s to stop")
    assert host.rss() < 1.1 * rested

    prompt = host.queue(graph)
    until(lambda: working(host) or states(host)["status"] == "done")
    assert states(host)["step"] >= stopped["step"]  # not from the beginning
    history = host.wait(prompt)
    assert history["status"]["status_str"] == "success", failure(history)
    assert history["outputs"]["5"]["resalign_run"][0]["steps"] == 20


def test_unchanged_inputs_return_at_once_also_after_eviction(host, example):
    graph = alone(example("1 Quick harden and compare"))
    host.run(graph)
    worked = states(host)
    host.post("/free", {"unload_models": True, "free_memory": True})
    time.sleep(2)
    outputs = host.run(graph)
    assert outputs["5"]["resalign_run"][0]["steps"] == 2
    again = states(host)
    assert again["message"].removeprefix("kept from an earlier run: ") == worked["message"]
    assert again["curves"] == worked["curves"]  # nothing was trained anew


def test_two_queued_prompts_both_finish(host, example):
    graphs = []
    for seed in (21, 22):
        graphs.append(alone(example("1 Quick harden and compare", random_seed=seed)))
    prompts = [host.queue(graph) for graph in graphs]
    histories = [host.wait(prompt) for prompt in prompts]
    keys = {history["outputs"]["5"]["resalign_run"][0]["key"] for history in histories}
    assert len(keys) == 2


def test_twenty_hardenings_in_a_row_do_not_grow_the_process(host, example):
    sizes = []
    for seed in range(100, 120):
        graph = example("1 Quick harden and compare", random_seed=seed, outer_steps=1)
        host.run(alone(graph))
        sizes.append(host.rss())
    print("RSS in MiB:", sizes)
    assert max(sizes[-5:]) < 1.1 * max(sizes[2:7])


def test_a_model_that_cannot_be_hardened_is_refused_with_the_way_out(host, example):
    graph = alone(example("1 Quick harden and compare"))
    graph["50"] = node("RescaleCFG", model=["1", 0], multiplier=0.7)
    graph["5"]["inputs"]["model"] = ["50", 0]
    history = host.wait(host.queue(graph))
    assert "connect the MODEL before that node" in failure(history)


def test_only_the_hardened_model_is_written_under_the_name_of_a_run(host, example):
    """A LoRA over the same modules is none of it: here the run's own at half its strength."""
    graph = alone(example("1 Quick harden and compare"))
    graph["9"] = node("ResAlign_SaveHardeningLora", run=["5", 3], filename="own", overwrite=True)
    host.run(graph)
    host.info = host.get("/object_info")
    export = {"run": ["5", 3], "write_from": "loaded model", "clip": ["1", 1], "vae": ["1", 2]}

    def exported(model, name):
        graph["60"] = node("ResAlign_ExportHardenedCheckpoint", **export, model=model,
                           filename=name)  # fmt: skip
        return host.wait(host.queue(graph))

    for strength in (0.5, 1.0):  # at 1 on the hardened model, so twice in all
        graph["61"] = node("LoraLoaderModelOnly", model=["1", 0] if strength < 1 else ["5", 0],
                           lora_name="own.safetensors", strength_model=strength)  # fmt: skip
        assert "not the" in failure(exported(["61", 0], "wrong"))
    assert "not the hardened one" in failure(exported(["1", 0], "wrong"))
    assert exported(["5", 0], "right")["status"]["status_str"] == "success"
    names = [path.name for path in (host.base / "models/checkpoints").glob("*.safetensors")]
    assert "right.safetensors" in names and "wrong.safetensors" not in names

    tried = {key: graph[key] for key in graph if key not in ("60", "61")}
    tried["62"] = node(
        "ResAlign_TryMyLora", before=["1", 0], after=["1", 0], clip=["1", 1], vae=["1", 2],
        lora="own.safetensors", width=64, height=64, steps=1,
    )  # fmt: skip
    tried["63"] = node("PreviewImage", images=["62", 2])
    assert "same MODEL" in host.run(tried)["62"]["text"][0]
    tried["62"]["inputs"]["after"] = ["5", 0]
    assert host.run(tried)["62"]["text"][0].startswith("original and hardened")


def test_an_export_that_would_refuse_the_run_stops_it_at_once(host, example):
    graph = alone(example("1 Quick harden and compare", random_seed=77))
    graph["61"] = node("LoraLoaderModelOnly", model=["1", 0], strength_model=0.5,
                       lora_name="own.safetensors")  # fmt: skip
    graph["5"]["inputs"]["model"] = ["61", 0]
    graph["60"] = node("ResAlign_ExportHardenedCheckpoint", run=["5", 3])
    said = failure(host.wait(host.queue(graph)))
    assert "could not rewrite the source file" in said and "'loaded model'" in said


def test_reports_of_other_folders_are_not_served(host):
    key = "0" * 20
    for name in ("../runs/x/plan.json", "%2e%2e/%2e%2e/log.txt", "report.html"):
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{host.address}/resalign/report/{key}/{name}")
