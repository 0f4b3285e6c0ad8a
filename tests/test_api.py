"""A user's Python code, from a checkpoint file to a hardened one, on tiny files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fakes_checkpoint import write_tiny_checkpoint, write_tiny_folder
from PIL import Image

import resalign as ra


@pytest.fixture
def folders(tmp_path):
    """Three image folders with captions, as a trainer would have them."""
    random = np.random.default_rng(0)
    for name in ("forget", "retain", "pets"):
        folder = tmp_path / name
        folder.mkdir()
        for number in range(3):
            pixels = random.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
            (folder / f"{number}.txt").write_text(f"{name} {number}")
    return tmp_path


def predict(model, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    latents = torch.randn(2, 4, 8, 8, generator=random)
    context = model.denoiser.config["cross_attention_dim"]
    from resalign.backend.families.base.conditioning import Conditioning

    conditioning = Conditioning({"context": torch.randn(2, 77, context, generator=random)})
    with torch.no_grad():
        return model.denoise(latents, torch.tensor([100, 800]), conditioning)


@pytest.mark.slow
def test_the_readmes_program_hardens_and_exports(folders):
    """Load, plan, harden, export: the file predicts what the adapter did in memory (fp32)."""
    write_tiny_checkpoint(folders / "model.safetensors", family="sd1", dtype=torch.float32)
    model = ra.load_checkpoint(folders / "model.safetensors")
    before = predict(model)
    plan = ra.HardeningPlan(
        concept=ra.Concept("nudity", prompts=("a nude person",)),
        forget_set=ra.ImageSet(folders / "forget"),
        retain_set=ra.ImageSet(folders / "retain"),
        fine_tunes=ra.fine_tune_grid(
            data=(str(folders / "pets"),), learning_rate=(1e-3, 1e-4), steps=(2, 3)
        ),
        adapter=ra.AdapterConfig(rank=4),
        harm=ra.HarmConfig(cap=4.0),
        learning_rate=1e-2,
        outer_steps=4,
        warm_up_steps=2,
        resolution=64,
        seed=0,
    )
    seen = []
    result = ra.harden(model, plan, on_progress=seen.append)
    assert [record.step for record in result.records] == [1, 2, 3, 4]
    assert {progress.stage for progress in seen} >= {"encoding", "harden"}
    assert torch.equal(predict(model), before)  # the loaded model is left as it was

    report = ra.export_merged(model, result.adapter, folders / "hardened.safetensors")
    hardened = ra.load_checkpoint(folders / "hardened.safetensors")
    from resalign.backend.adapter.apply import AdaptedDenoiser

    with AdaptedDenoiser(model, plan.adapter) as denoiser:
        denoiser.load(result.adapter)
        in_memory = predict(model)
    assert (in_memory - before).abs().max() > 1e-4
    assert (predict(hardened) - in_memory).abs().max() <= 1e-5
    assert report.touched == len(result.adapter.modules)

    ra.save_lora(result.adapter, folders / "lora.safetensors")
    loaded = ra.load_lora(folders / "lora.safetensors")
    assert set(loaded.modules) == set(result.adapter.modules)
    assert ra.inspect(folders / "hardened.safetensors").to_json()["hardened"]


@pytest.mark.slow
def test_a_forget_set_is_synthesised_and_never_decoded(folders, monkeypatch):
    """With prompts alone the concept comes from the checkpoint itself, as latents."""
    write_tiny_checkpoint(folders / "model.safetensors", family="sd1", dtype=torch.float32)
    model = ra.load_checkpoint(folders / "model.safetensors")

    def never(*_args, **_kwargs):
        raise AssertionError("the VAE decoded something")

    monkeypatch.setattr(model.vae, "decode", never)
    plan = ra.HardeningPlan(
        concept=ra.Concept(
            "weapons",
            images=ra.ImageSet(prompts=("a pistol", "a rifle"), images=2, sampling_steps=2),
        ),
        retain_set=ra.ImageSet(folders / "retain"),
        outer_steps=1,
        warm_up_steps=1,
        resolution=64,
    )
    result = ra.harden(model, plan, run_folder=folders / "run")
    assert len(result.records) == 1
    pictures = [p for p in (folders / "run").rglob("*") if p.suffix in {".png", ".jpg", ".webp"}]
    assert pictures == []


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd2", "sdxl"])
@pytest.mark.parametrize("layout", ["file", "folder"])
def test_every_family_hardens_and_exports_from_both_layouts(folders, family, layout):
    """SD 2 with v-prediction and SDXL: two steps, exported, loaded again, changed as in memory."""
    source = folders / ("model.safetensors" if layout == "file" else "model")
    write = write_tiny_checkpoint if layout == "file" else write_tiny_folder
    prediction = "v_prediction" if family == "sd2" else None
    write(source, family=family, dtype=torch.float32, prediction_type=prediction)
    model = ra.load_checkpoint(source)
    plan = ra.HardeningPlan(
        concept=ra.Concept("nudity", prompts=("a nude person",)),
        forget_set=ra.ImageSet(folders / "forget"),
        retain_set=ra.ImageSet(folders / "retain"),
        fine_tunes=ra.fine_tune_grid(learning_rate=(1e-3,), steps=(2,)),
        adapter=ra.AdapterConfig(rank=2, targets=("attention", "convolution")),
        learning_rate=1e-2,
        outer_steps=2,
        warm_up_steps=1,
        resolution=64,
    )
    result = ra.harden(model, plan)
    assert result.records[-1].q is not None
    target = folders / ("hardened.safetensors" if layout == "file" else "hardened")
    ra.export_merged(source, result.adapter, target)
    hardened = ra.load_checkpoint(target)
    assert hardened.process.prediction_type == model.process.prediction_type
    for module in result.adapter.modules:
        expected = model.denoiser.get_parameter(f"{module}.weight") + result.adapter.delta(module)
        found = hardened.denoiser.get_parameter(f"{module}.weight")
        torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-6)
