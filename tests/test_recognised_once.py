"""A hardening job recognises its checkpoint once: for the check, for loading and for the export."""

import pytest
from toy_family import TOY, toy_is_registered, write_toy_checkpoint

import resalign as ra
from resalign.backend.jobs.harden import harden_job

PLAN = ra.HardeningPlan(
    concept=ra.Concept("weapons", prompts=("a gun",)),
    forget_set=ra.ImageSet(prompts=("a gun",), images=2, sampling_steps=1),
    retain_set=ra.ImageSet(prompts=("a cat",), images=2, sampling_steps=1),
    adapter=ra.AdapterConfig(rank=1),
    outer_steps=1, warm_up_steps=1, forget_batch=1, retain_batch=1,
)  # fmt: skip

__all__ = ["toy_is_registered"]  # a fixture, used by being here


@pytest.fixture
def described(monkeypatch):
    """Names of the files that were recognised."""
    seen: list[str] = []
    original = type(TOY.recognition).describe_file

    def describe_file(self, file):
        seen.append(file.name)
        return original(self, file)

    monkeypatch.setattr(type(TOY.recognition), "describe_file", describe_file)
    return seen


def job(folder):
    return ra.Job(
        checkpoint=str(write_toy_checkpoint(folder / "toy.safetensors")),
        output=str(folder / "hardened.safetensors"), plan=PLAN, device="cpu",
    )  # fmt: skip


def test_check_load_and_export_share_what_was_recognised(tmp_path, described):
    done = harden_job(job(tmp_path), export=True)

    assert described == ["toy.safetensors"]
    assert done.outputs is not None and done.outputs.touched > 0


def test_a_checkpoint_that_changes_while_it_is_hardened_is_recognised_again(tmp_path, described):
    """Its header says where each tensor lies; an old one would point into the wrong bytes."""
    asked = job(tmp_path)

    def replace_the_file(_run, _report):
        described.clear()
        path = write_toy_checkpoint(tmp_path / "other.safetensors", seed=1, marker=True)
        path.replace(asked.checkpoint)

    done = harden_job(asked, export=True, on_ready=replace_the_file)

    assert described and done.outputs is not None
    assert ra.load_checkpoint(done.outputs.checkpoint).family is TOY
