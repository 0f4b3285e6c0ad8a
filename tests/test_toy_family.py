"""A family that only the tests know goes the whole way: load, harden, probe, export, inspect."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from toy_family import FUSED, TOY, WIDTH, toy_is_registered, write_toy_checkpoint

import resalign as ra
from resalign.backend.jobs.check import check_job
from resalign.backend.plan.stages import Stage

__all__ = ["toy_is_registered"]  # a fixture, used by being here


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    write_toy_checkpoint(folder / "toy.safetensors")
    return folder


@pytest.fixture(scope="module")
def plan():
    return ra.HardeningPlan(
        concept=ra.Concept("weapons", prompts=("a gun", "a knife")),
        forget_set=ra.ImageSet(prompts=("a gun",), images=3, sampling_steps=2),
        retain_set=ra.ImageSet(prompts=("a cat", "a tree"), images=4, sampling_steps=2),
        fine_tunes=ra.fine_tune_grid(learning_rate=(1e-3,), steps=(2,), concept_share=0.5),
        adapter=ra.AdapterConfig(rank=2),
        outer_steps=4, warm_up_steps=1, learning_rate=2e-2, forget_batch=2, retain_batch=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(folder, plan):
    """The hardened model's result, and the file that it was exported to."""
    model = ra.load_checkpoint(folder / "toy.safetensors")
    result = ra.harden(model, plan, run_folder=folder / "run")
    report = ra.export_merged(model, result.adapter, folder / "hardened.safetensors")
    return model, result, report


def test_it_is_recognised_by_the_one_line_that_registered_it(folder):
    found = ra.inspect(folder / "toy.safetensors")
    assert "Toy transformer" in str(found)
    assert ra.load_checkpoint(folder / "toy.safetensors").family is TOY


def test_it_hardens_with_its_own_noise_process_and_masked_text(run):
    _, result, _ = run
    assert [record.step for record in result.records] == [1, 2, 3, 4]
    assert all(math.isfinite(record.harm) for record in result.records)
    assert any(record.simulations for record in result.records)
    assert any("attention.to_q" in module for module in result.adapter.modules)


def test_the_export_writes_into_rows_of_the_fused_tensor(folder, run):
    _, result, report = run
    before, after = load_file(folder / "toy.safetensors"), load_file(report.target)
    block = FUSED.removeprefix("denoiser.").removesuffix(".attention.qkv.weight")
    for part, name in enumerate("qkv"):
        module = f"{block}.attention.to_{name}"
        rows = slice(part * WIDTH, (part + 1) * WIDTH)
        expected = before[FUSED][rows] + result.adapter.delta(module)
        torch.testing.assert_close(after[FUSED][rows], expected)
        assert not torch.equal(after[FUSED][rows], before[FUSED][rows])
    untouched = [name for name in before if name.startswith(("vae.", "text.", "denoiser.embed"))]
    assert untouched and all(torch.equal(before[name], after[name]) for name in untouched)


def test_the_exported_file_is_the_hardened_model(run):
    model, result, report = run
    from resalign.backend.adapter.merge_in_place import merged

    exported = ra.load_checkpoint(report.target)
    with merged(model, result.adapter):
        expected = {name: t.clone() for name, t in model.denoiser.state_dict().items()}
    for name, tensor in exported.denoiser.state_dict().items():
        torch.testing.assert_close(tensor, expected[name])
    assert "weapons" not in str(ra.inspect(report.source))


def test_all_its_weights_are_erased_from_distilled_and_exported(folder, plan):
    """A flow process, masked text, linear layers alone, and biases fused like their weights."""
    model = ra.load_checkpoint(folder / "toy.safetensors")
    own = replace(
        plan, method="distil", before=(Stage(method="erase"),), outer_steps=2, warm_up_steps=0,
        fine_tunes=(), varied=ra.VariedConfig(images=4, sampling_steps=2),
        erase=ra.EraseConfig(samples=8, batch=4, ratio=1.5),
        distil=ra.DistilConfig(batch=4, learning_rate=1e-3, warm_up_steps=0),
    )  # fmt: skip
    result = ra.harden(model, own, run_folder=folder / "dense")
    report = ra.export_merged(model, result.adapter, folder / "dense.safetensors")
    before, after = load_file(folder / "toy.safetensors"), load_file(report.target)
    block = FUSED.removeprefix("denoiser.").removesuffix(".attention.qkv.weight")
    for leaf in ("weight", "bias"):
        name = FUSED.removesuffix("weight") + leaf
        for part, one in enumerate("qkv"):
            rows = slice(part * WIDTH, (part + 1) * WIDTH)
            change = result.adapter.change(f"{block}.attention.to_{one}.{leaf}")
            torch.testing.assert_close(after[name][rows], before[name][rows] + change)
            assert change.any()
    kept = [name for name in before if name.startswith(("vae.", "text."))]
    assert kept and all(torch.equal(before[name], after[name]) for name in kept)


def test_a_lora_of_it_is_written_and_read_back(folder, run):
    _, result, _ = run
    path = ra.save_lora(result.adapter, folder / "lora.safetensors", family=TOY.name)
    read = ra.load_lora(path)
    assert set(read.modules) == set(result.adapter.modules)
    for module in read.modules:
        torch.testing.assert_close(read.delta(module), result.adapter.delta(module))


def test_it_is_probed_with_images_drawn_by_its_own_sampler(run, plan):
    model, result, _ = run
    held_out = ra.fine_tune_grid(learning_rate=(5e-3,), steps=(3,), concept_share=0.5)
    found = ra.probe(model, result.adapter, plan=plan, fine_tunes=held_out,
                     scorer=ra.DenoisingScorer(images=3, timesteps=2))  # fmt: skip
    markdown = ra.build_report(plan, result, found).to_markdown()
    assert "hardened" in markdown and found.complete


def test_a_job_on_it_is_checked_before_any_weight_is_loaded(folder, plan):
    job = ra.Job(
        checkpoint=str(folder / "toy.safetensors"), output=str(folder / "out.safetensors"),
        plan=plan, device="cpu",
    )  # fmt: skip
    report = check_job(job, memory=True)
    assert not report.problems and "Toy transformer" in str(report)


def test_a_lora_names_its_family(folder, run):
    """Its module names say which family a LoRA was made for."""
    _, result, _ = run
    path = ra.save_lora(result.adapter, folder / "own.safetensors", family=TOY.name)
    from resalign.backend.families.registry import bases_of_lora

    shapes = {name: tuple(t.shape) for name, t in load_file(path).items()}
    assert bases_of_lora(shapes, {})[0] == (TOY,)
