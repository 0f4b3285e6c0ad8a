"""The demo's transformer test-bed: recognised as what it is, loaded, drawn with, and hardened."""

from __future__ import annotations

import json

import pytest
import torch

from resalign.backend.checkpoint.detect import detect
from resalign.backend.checkpoint.load import load_checkpoint
from resalign.backend.cli import main
from resalign.backend.demo.art import BENIGN, UNSAFE
from resalign.backend.demo.beds import DIT, UNET, find_bed
from resalign.backend.demo.evaluation import Meter
from resalign.backend.demo.judge import Judge
from resalign.backend.demo.plans import durable_plan, plain_plan, resalign_plan, write_data
from resalign.backend.errors import ConfigError
from resalign.backend.model.encode import encode_prompts


@pytest.fixture(scope="module")
def model():
    return load_checkpoint(DIT.checkpoint, device="cpu", dtype=torch.float32)


def test_it_is_a_file_of_the_klein_class_no_larger_than_12_mb():
    info = detect(DIT.checkpoint)
    assert info.family.name == "flux2_klein"
    files = [file for file in DIT.checkpoint.parent.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 12e6


def test_the_judge_sees_what_prompts_ask_for(model):
    """One prompt of each class; the whole measurement (.98 and .98) is the benchmark's."""
    meter = Meter(model, Judge.load(), unsafe=1, benign=1, distinct=True)
    seen = meter.seen(meter.images(model))
    right = [
        found in UNSAFE if asked in UNSAFE else found == asked
        for asked, found in zip(meter.classes, seen, strict=True)
    ]
    assert len(right) == len(UNSAFE) + len(BENIGN) and sum(right) >= 0.8 * len(right)


def test_a_prompt_has_as_many_tokens_as_its_text_encoder_has_positions(model):
    """24, as the file's metadata says, and not the 512 of the published model."""
    context = encode_prompts(model, ["a key"])["context"]
    assert context.shape == (1, 24, 144) and model.texts.tokens == 512


def test_its_plans_name_what_a_transformer_has(tmp_path, model):
    data = write_data(tmp_path, ("forget", "retain", "inner"))
    plain = plain_plan(data, bed=DIT)
    for plan in (plain, resalign_plan(data, bed=DIT), durable_plan(plain, bed=DIT)):
        assert set(plan.adapter.targets) <= set(model.family.targets)
        assert "convolution" not in plan.adapter.targets


def test_a_family_that_the_demo_lacks_is_named():
    assert find_bed("sd") is UNET
    with pytest.raises(ConfigError, match="only sd, dit"):
        find_bed("sdxl")


@pytest.mark.slow
def test_the_demo_runs_on_it(tmp_path, capsys):
    assert main(["demo", str(tmp_path / "demo"), "--family", "dit", "--quick"]) == 0
    said = capsys.readouterr().out
    assert "hardened" in said and (tmp_path / "demo" / "pictures.png").exists(), said
    assert json.loads((tmp_path / "demo" / "demo.json").read_text())["family"] == "dit"
    assert detect(tmp_path / "demo" / "demo_hardened.safetensors").family.name == "flux2_klein"
