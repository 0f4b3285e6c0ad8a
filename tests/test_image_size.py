"""A side that a model cannot take is named before any weight is loaded.

Fields allow multiples of 8; Z-Image and Anima take two elements of a latent as a token, FLUX.2
packs them in its latents: all need multiples of 16.
"""

from dataclasses import replace
from pathlib import Path

import fakes_z_image as fakes
import pytest
from fakes_checkpoint import write_tiny_checkpoint

from resalign.backend.errors import ConfigError, DataError
from resalign.backend.jobs.check import check_job
from resalign.backend.jobs.check_probe import check_probe_job
from resalign.backend.jobs.try_lora import Sampling, try_lora_job
from resalign.backend.memory.plan import plan_memory
from resalign.backend.plan.attack import LoraFile
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.job import Job
from resalign.backend.plan.measurement import GenerationConfig
from resalign.backend.plan.presets import preset_plan
from resalign.backend.plan.probe import ProbeCheckpoint, ProbeJob, ProbePlan


@pytest.fixture(scope="module")
def z_image(tmp_path_factory):
    return fakes.write_split(tmp_path_factory.mktemp("sizes") / "models")


@pytest.fixture(scope="module")
def sd1(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("sizes") / "sd1.safetensors", "sd1")


def problems(path: Path, resolution: int, memory: bool) -> str:
    plan = replace(preset_plan("quick", (Concept("a", ("a gun",)),)), resolution=resolution)
    job = Job(plan=plan, checkpoint=str(path), output=str(path.parent / "new.safetensors"))
    return "\n".join(check_job(job, memory=memory).problems)


def test_check_names_a_resolution_that_the_family_cannot_take(z_image):
    """With the prediction of memory, which would run the plan's own code on it."""
    said = "resolution is 1000; Z-Image takes multiples of 16"
    assert said in problems(z_image, 1000, memory=True)
    assert "resolution" not in problems(z_image, 1008, memory=False)


def test_other_families_take_multiples_of_8(sd1):
    assert "resolution" not in problems(sd1, 1000, memory=False)


@pytest.mark.parametrize("family", ["z_image", "anima"])
def test_the_prediction_of_memory_refuses_it(family):
    plan = replace(preset_plan("quick", (Concept("a", ("a gun",)),)), resolution=1000)
    with pytest.raises(DataError, match="multiples of 16"):
        plan_memory(plan, family)


def test_check_names_both_resolutions_of_a_probe(z_image):
    plan = ProbePlan(
        concepts=(Concept("a", ("a gun",)),), resolution=1000,
        generation=GenerationConfig(resolution=72),
    )  # fmt: skip

    def check(plan):
        one = ProbeCheckpoint(name="original", path=str(z_image))
        return check_probe_job(ProbeJob(checkpoints=(one,), output="x", plan=plan, device="cpu"))

    said = check(plan).problems
    assert "resolution is 1000; Z-Image takes multiples of 16" in said
    assert "generation.resolution is 72; Z-Image takes multiples of 16" in said
    fitting = replace(plan, resolution=0, generation=GenerationConfig(resolution=64))
    assert not [text for text in check(fitting).problems if "resolution" in text]


def test_a_lora_is_not_tried_in_a_size_that_the_model_cannot_take(z_image):
    with pytest.raises(ConfigError, match="width is 1000; Z-Image takes multiples of 16"):
        try_lora_job(
            z_image, LoraFile(path="lora.safetensors"), Sampling(prompt="x", width=1000),
            hardened=z_image,
        )  # fmt: skip
