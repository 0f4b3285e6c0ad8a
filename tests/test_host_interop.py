"""Our nodes between ComfyUI's own, and a run that outlives its ComfyUI."""

import time

import pytest
from host_comfyui import (
    CHECKPOINT,
    comfyui,
    failure,
    largest,
    latent,
    node,
    sampled,
    states,
    until,
    working,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("interop")


def hardening(host, *, steps=2, seed=0):
    """Harden Model on what core's nodes encode, as its Train LoRA would be given it."""
    settings = {"preset": "fast", "resolution": 64, "outer_steps": steps, "random_seed": seed,
                "learning_rate": 0.01}  # fmt: skip
    graph = {
        "1": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "60": node("EmptyImage", width=64, height=64, batch_size=2, color=0x3366AA),
        "61": node("ResAlign_ImageSet", prompts="a pistol", count=2),
        "62": node("ResAlign_ImageSet"),
        "2": node("ResAlign_ConceptList", preset="weapons", images=["61", 0]),
        "3": node("ResAlign_HardeningSettings", **settings),
        "5": node(
            "ResAlign_HardenModel", model=["1", 0], clip=["1", 1], vae=["1", 2],
            concepts=["2", 0], settings=["3", 0], retain=["62", 0], preview_every=0,
        ),
    }  # fmt: skip
    if "MakeTrainingDataset" in host.info:
        graph["63"] = node("MakeTrainingDataset", images=["60", 0], vae=["1", 2], clip=["1", 1])
        given = {"latents": ["63", 0], "conditioning": ["63", 1]}
    else:  # before it there were the two encoders
        graph["63"] = node("VAEEncode", pixels=["60", 0], vae=["1", 2])
        graph["64"] = node("CLIPTextEncode", clip=["1", 1], text="a blue square")
        given = {"latents": ["63", 0], "conditioning": ["64", 0]}
    graph["62"]["inputs"] |= given
    return graph


def test_data_lora_losses_and_model_pass_between_our_nodes_and_core_s(base, root):
    with comfyui(base, root, 8214) as host:
        graph = hardening(host) | {
            "70": node("CLIPTextEncode", clip=["1", 1], text="a cat"),
            "71": node("EmptyLatentImage", width=64, height=64, batch_size=1),
            "72": node("LoraModelLoader", model=["1", 0], lora=["5", 1], strength_model=1.0),
            "73": node("LossGraphNode", loss=["5", 2], filename_prefix="loss"),
            "74": node("CheckpointSave", model=["5", 0], clip=["1", 1], vae=["1", 2],
                       filename_prefix="core_saved"),
            **sampled(80, ["1", 0], "original"), **sampled(82, ["5", 0], "ours"),
            **sampled(84, ["72", 0], "loader"),
        }  # fmt: skip
        outputs = host.run(graph)

        assert outputs["5"]["resalign_run"][0]["steps"] == 2
        assert len(outputs["73"]["images"]) == 1
        original, ours, loader = (latent(host, name) for name in ("original", "ours", "loader"))
        change, difference = largest(ours, original), largest(ours, loader)
        (saved,) = (host.base / "output").glob("core_saved*.safetensors")
        saved.rename(host.base / "models/checkpoints/core_saved.safetensors")
        host.info = host.get("/object_info")
        again = {key: graph[key] for key in ("1", "70", "71")} | sampled(86, ["1", 0], "saved")
        again["1"] = node("CheckpointLoaderSimple", ckpt_name="core_saved.safetensors")
        host.run(again)
        reloaded = largest(ours, latent(host, "saved"))
        print(f"hardening {change:.3g}; LoRA loader {difference:.3g}, core's file {reloaded:.3g}")
        assert change > 1e-2
        assert difference < 1e-5 and reloaded < 1e-4

        if "TrainLoraNode" in host.info and "MakeTrainingDataset" in host.info:
            trained = {
                key: graph[key] for key in ("1", "2", "3", "5", "60", "61", "62", "63", "70", "71")
            } | {
                "75": node("TrainLoraNode", model=["5", 0], latents=["63", 0],
                           positive=["63", 1], steps=1, rank=2, training_dtype="none"),
                "76": node("LoraModelLoader", model=["5", 0], lora=["75", 0], strength_model=1.0),
                **sampled(88, ["76", 0], "trained"),
            }  # fmt: skip
            history = host.wait(host.queue(trained))
            assert history["status"]["status_str"] == "success", failure(history)


def test_a_run_goes_on_after_the_host_was_killed_and_started_again(base, root):
    with comfyui(base, root, 8215) as host:
        host.queue(hardening(host, steps=16, seed=5))
        until(lambda: working(host) and states(host)["step"] >= 6)
        host.process.kill()
        host.process.wait()
    with comfyui(base, root, 8216) as host:
        prompt = host.queue(hardening(host, steps=16, seed=5))
        until(lambda: working(host))
        began = states(host)["step"]
        history = host.wait(prompt)
        assert history["status"]["status_str"] == "success", failure(history)
        assert history["outputs"]["5"]["resalign_run"][0]["steps"] == 16
        assert began >= 5  # a state is saved every five steps
        asked = time.monotonic()
        host.run(hardening(host, steps=16, seed=5))
        assert time.monotonic() - asked < 30
