"""The embedded demo: its checkpoint is what it says, and the whole story runs."""

from __future__ import annotations

import json
import time

import pytest
import torch

from resalign.backend.checkpoint.detect import detect
from resalign.backend.checkpoint.load import load_checkpoint
from resalign.backend.checkpoint.verify import verify_export
from resalign.backend.demo.art import CLASSES, UNSAFE, render, sample_specs
from resalign.backend.demo.beds import find_bed
from resalign.backend.demo.evaluation import Meter
from resalign.backend.demo.judge import GARBAGE, Judge
from resalign.backend.demo.pictures import rate_bars
from resalign.backend.demo.plans import CHECKPOINT
from resalign.backend.demo.run import _plans, _refuse_another, run_demo
from resalign.backend.demo.threads import run_in_threads
from resalign.backend.errors import ConfigError, RunError
from resalign.backend.families.unet.names import unet_ldm_names
from resalign.backend.model.encode import decode_latents
from resalign.backend.progress import Progress
from resalign.backend.run.folder import RunFolder
from resalign.backend.statistics.intervals import wilson


@pytest.fixture(scope="module")
def model():
    return load_checkpoint(CHECKPOINT)


def test_the_checkpoint_is_small_and_has_sd1s_names():
    """At most 12 MB, and the U-Net's tensors are named exactly as SD 1.5's."""
    assert CHECKPOINT.stat().st_size <= 12_000_000
    info = detect(CHECKPOINT)
    assert info.family.name == "sd1" and info.prediction_type == "epsilon"
    sd15 = {
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "cross_attention_dim": 768,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    }
    from safetensors import safe_open

    with safe_open(str(CHECKPOINT), "pt") as file:
        found = {k for k in file.keys() if k.startswith("model.diffusion_model.")}  # noqa: SIM118
    assert found == set(unet_ldm_names(sd15).values())


def test_the_judge_knows_the_drawings_and_calls_decoded_noise_garbage(model):
    """At least 95 % of fresh drawings are recognised; what a broken model draws is none of them."""
    judge = Judge.load()
    specs = sample_specs(100, seed=77)
    import numpy as np

    rng = np.random.default_rng(5)
    images = np.stack([render(s.class_, s.style, s.background, rng) for s in specs])
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    seen = judge.classify(tensor)
    assert sum(a == s.class_ for a, s in zip(seen, specs, strict=True)) >= 95
    noise = torch.randn(50, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    scale = torch.linspace(0.5, 5, 50)[:, None, None, None]
    assert judge.classify(decode_latents(model, noise * scale)).count(GARBAGE) >= 48


@pytest.mark.slow
def test_the_base_model_draws_what_it_is_asked_for(model):
    """Recognised: at least 80 % of weapons and of other things."""
    meter = Meter(model, Judge.load(), unsafe=10, benign=2, seed=3)
    seen = meter._judge.classify(meter.images(model))
    weapons = [s in UNSAFE for s, c in zip(seen, meter.classes, strict=True) if c in UNSAFE]
    others = [s == c for s, c in zip(seen, meter.classes, strict=True) if c not in UNSAFE]
    assert sum(weapons) / len(weapons) >= 0.8
    assert sum(others) / len(others) >= 0.8
    assert set(meter.classes) == set(CLASSES)


def test_the_demo_refuses_a_method_that_it_lacks(tmp_path):
    with pytest.raises(ConfigError, match="no method 'fast', only durable, resalign"):
        run_demo(tmp_path / "demo", method="fast")
    assert not list(tmp_path.iterdir())


def test_a_folder_with_another_demo_is_refused_before_anything_is_written(tmp_path):
    data = {name: tmp_path / name for name in ("forget", "retain", "inner")}
    own = _plans(data, find_bed("sd"), "durable", False, 0)["hardened"]
    file = tmp_path / "demo_hardened.safetensors"
    _refuse_another(tmp_path, {file: own})
    RunFolder.create(file.with_suffix(".run"), own).close()
    _refuse_another(tmp_path, {file: own})
    for family, *options in (("dit", "durable", False, 0), ("sd", "resalign", False, 0),
                             ("sd", "durable", True, 0), ("sd", "durable", False, 1)):  # fmt: skip
        plan = _plans(data, find_bed(family), *options)["hardened"]
        with pytest.raises(RunError, match=r"holds a demo with other options .* another folder"):
            _refuse_another(tmp_path, {file: plan})


@pytest.mark.slow
@pytest.mark.parametrize("method", ["durable", "resalign"])
def test_the_demo_runs_and_writes_what_it_says(method, tmp_path):
    """Quick: files that load, a picture, a table of three models with intervals."""
    seen = []
    result = run_demo(tmp_path / "demo", method=method, quick=True, on_progress=seen.append)
    assert [row.model for row in result.rows] == ["base", "plainly unlearned", "hardened"]
    for name in ("pictures.png", "rates.png", "demo.json"):
        assert (tmp_path / "demo" / name).stat().st_size > 0
    assert json.loads((tmp_path / "demo" / "demo.json").read_text())["rows"][2]["model"]
    hardened = tmp_path / "demo" / "demo_hardened.safetensors"
    proof = verify_export(CHECKPOINT, hardened)
    assert proof is not None
    load_checkpoint(hardened)
    text = str(result)
    assert "LoRA, 20 % harmful, 5 steps" in text, "quick: as it was run"
    assert "95 % interval" in text and "hardened" in text
    stages = {progress.stage for progress in seen}
    assert {"encoding", "unlearning, plainly and hardened"} <= stages
    assert (tmp_path / "demo" / "demo_hardened.md").read_text().startswith("---")


def test_an_error_in_one_of_several_threads_stops_all_and_comes_out():
    """Pieces side by side: results by name; the first error ends the others at their next step."""

    def steps(count: int, fail_at: int = 0):
        def run(tell):
            for step in range(1, count + 1):
                if step == fail_at:
                    raise KeyError("broken")
                tell(Progress(stage="", step=step, total=count))
                time.sleep(0.005)
            return count

        return run

    seen = []
    found = run_in_threads("both", 7, {"a": steps(3), "b": steps(4)}, seen.append)
    assert found == {"a": 3, "b": 4}
    assert [p.step for p in seen] == sorted(p.step for p in seen)
    assert seen[-1].step == 7 and seen[-1].stage == "both"
    seen.clear()
    with pytest.raises(KeyError, match="broken"):
        run_in_threads("both", 9, {"a": steps(2000), "b": steps(5, fail_at=2)}, seen.append)
    assert len(seen) < 1900

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_threads("both", 9, {"a": steps(2000), "b": steps(2000)}, stop)


def test_bars_of_no_and_of_all_images_can_be_drawn(tmp_path):
    """0 of n and n of n, with their intervals."""
    rates = [[(0.0, *wilson(0, 48)), (1.0, *wilson(48, 48))]]
    rate_bars(tmp_path / "rates.png", ["base"], rates, ("before", "after"), "title")
    assert (tmp_path / "rates.png").stat().st_size > 0


def test_wilsons_interval_is_the_reference():
    """Values of the literature: 0 of 10, 5 of 10, 81 of 263 (Newcombe 1998)."""
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)
    for total in range(1, 200):
        assert wilson(0, total)[0] == 0 and wilson(total, total)[1] == 1
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
