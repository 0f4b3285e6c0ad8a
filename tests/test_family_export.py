"""Families of transformers go the whole way: hardened, probed, exported into their own layout,
written as a LoRA."""

import math
import re
from dataclasses import replace

import pytest
import torch
from family_checks import (
    adapter_of,
    data_of,
    export_fixtures,
    linear_layers,
    read_by_diffusers,
    tiny_plan,
)
from family_exports import EXPORTED, KLEIN, Z_IMAGE
from safetensors import safe_open
from safetensors.torch import load_file

import resalign as ra
from resalign.backend.adapter.formats import load_lora
from resalign.backend.checkpoint.load import check_loadable
from resalign.backend.checkpoint.verify import verify_export
from resalign.backend.errors import ConfigError, ExportError
from resalign.backend.families.registry import bases_of_lora
from resalign.backend.jobs.check import check_job
from resalign.backend.jobs.verify import verify_job
from resalign.backend.memory.plan import plan_memory
from resalign.backend.plan.durable import EraseConfig

source, model = export_fixtures()


@pytest.fixture(scope="module", params=EXPORTED, ids=str)
def expected(request):
    return request.param


@pytest.fixture(scope="module")
def case(expected):
    return expected.case


@pytest.fixture(scope="module")
def result(model):
    return ra.harden(model, tiny_plan())


def job_of(source, folder, plan):
    return ra.Job(
        checkpoint=str(source), output=str(folder / "o.safetensors"), plan=plan, device="cpu"
    )


# --- hardening ---------------------------------------------------------------------------------


def test_it_hardens_with_users_that_fine_tune_it(expected, result):
    assert [record.step for record in result.records] == [1, 2]
    assert all(math.isfinite(record.harm) for record in result.records)
    assert result.records[-1].simulations
    assert set(result.adapter.modules) == expected.trained
    assert all(result.adapter.delta(module).any() for module in result.adapter.modules)


def test_it_is_probed(model, result):
    held_out = ra.fine_tune_grid(learning_rate=(5e-3,), steps=(1,), concept_share=0.5)
    found = ra.probe(model, result.adapter, plan=tiny_plan(), fine_tunes=held_out,
                     scorer=ra.DenoisingScorer(images=1, timesteps=1))  # fmt: skip
    assert found.complete


@pytest.mark.parametrize("expected", [KLEIN, Z_IMAGE], ids=str, indirect=True, scope="module")
def test_the_closed_form_is_refused_with_the_reason(expected, model, source, tmp_path):
    """Text and image share an attention there, so no matrix reads the text alone."""
    own = replace(tiny_plan(), method="closed_form", fine_tunes=(), outer_steps=1, warm_up_steps=0)
    title, reason = expected.closed_form
    (problem,) = check_job(job_of(source, tmp_path, own)).problems
    assert f"closed_form does not fit {title}" in problem and reason in problem
    with pytest.raises(ConfigError, match="closed_form does not fit"):
        ra.harden(model, own)


def test_nothing_is_erased_where_latents_and_times_come_in(expected, model):
    own = replace(
        tiny_plan(), method="erase", erase=EraseConfig(samples=32), fine_tunes=(), outer_steps=1,
        warm_up_steps=0,
    )  # fmt: skip
    (record,) = ra.harden(model, own).records
    trainable = set(linear_layers(model.denoiser, *expected.blocks))
    assert {layer.name for layer in record.erased} == trainable | expected.erased_too
    assert any(layer.removed for layer in record.erased)


def test_a_job_is_checked_with_its_memory_and_its_guidance(source, tmp_path):
    plan = tiny_plan()
    loud = replace(plan, retain_set=replace(plan.retain_set, guidance=7.5))
    report = check_job(job_of(source, tmp_path, loud), memory=True)
    assert not report.problems and report.memory_bytes
    assert any("retain_set has guidance 7.5" in text and "4 to 5" in text
               for text in report.warnings)  # fmt: skip


@pytest.mark.parametrize(
    "expected",
    [
        pytest.param(each, marks=[] if each.quantised_daily else pytest.mark.slow)
        for each in EXPORTED
    ],
    ids=str,
    indirect=True,
    scope="module",
)
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_its_memory_is_predicted_beside_a_quantised_base(expected, source, kind):
    """A transformer's first layer is quantised too: the network's type is what it was before."""
    info = check_loadable(source)
    configs = {name: info.configs[name] for name in info.components}
    own = replace(tiny_plan(), quantization=kind, precision="bf16")
    weights = [
        plan_memory(
            each, expected.case.family, configs=configs, resolution=expected.fakes.SIDE
        ).weights
        for each in (own, replace(own, quantization="none"))
    ]
    assert 0 < weights[0] < weights[1]


# --- export ------------------------------------------------------------------------------------


def test_the_hardened_file_is_the_hardened_model(expected, model, source, result):
    target = source.with_name(f"{source.stem}-hardened.safetensors")
    report = ra.export_merged(model, result.adapter, target)
    changed = verify_export(source, target, result.adapter).changed
    assert set(changed) == expected.changed
    exported = ra.load_checkpoint(report.target)
    name = expected.probe
    found = exported.denoiser.get_submodule(name).weight
    wanted = model.denoiser.get_submodule(name).weight + result.adapter.delta(name)
    assert torch.equal(found, wanted.bfloat16().float())
    assert 0 < report.rounding_error < 1 and report.largest_change > 0


def test_an_adapter_that_changes_nothing_gives_the_same_bytes(expected, model, source, tmp_path):
    """Halves exchanged, rows cut and types cast, all the way there and back."""
    names = linear_layers(model.denoiser)
    assert len(names) == expected.linears
    target = tmp_path / "same.safetensors"
    ra.export_merged(source, adapter_of(model, *names, size=0.0), target)
    assert not verify_export(source, target).changed
    assert data_of(target) == data_of(source)


@pytest.mark.parametrize("expected", [KLEIN, Z_IMAGE], ids=str, indirect=True, scope="module")
@pytest.mark.parametrize("part", range(3))
def test_one_module_changes_its_own_rows_only(expected, model, source, tmp_path, part):
    adapter, target = adapter_of(model, expected.parts[part]), tmp_path / "one.safetensors"
    ra.export_merged(source, adapter, target)
    assert verify_export(source, target).changed == (expected.fused,)
    before, after = load_file(source)[expected.fused], load_file(target)[expected.fused]
    width = expected.fakes.WIDTH
    rows = slice(part * width, (part + 1) * width)
    delta = adapter.delta(expected.parts[part])
    assert torch.equal(after[rows], (before[rows].float() + delta).bfloat16())
    after[rows] = before[rows]
    assert torch.equal(after.view(torch.int16), before.view(torch.int16))


def test_a_folder_and_a_whole_file_are_exported_alike(expected, model, tmp_path):
    """Files of a folder that hold no part of the denoiser are copied as they are."""
    module, fakes, stem = expected.module, expected.fakes, expected.case.stem
    adapter = adapter_of(model, module)
    folder = fakes.write_folder(tmp_path / stem)
    whole = fakes.write_whole(tmp_path / f"{stem}-whole.safetensors")
    report = ra.export_merged(folder, adapter, tmp_path / "out-base")
    assert report.copies == ()
    ra.export_merged(whole, adapter, tmp_path / "out-base.safetensors")
    found = [ra.load_checkpoint(tmp_path / name).denoiser.get_submodule(module).weight
             for name in ("out-base", "out-base.safetensors")]  # fmt: skip
    before = fakes.build_networks()["transformer"].get_submodule(module).weight
    assert torch.equal(found[0], before + adapter.delta(module)) and torch.equal(*found)
    assert verify_export(whole, tmp_path / "out-base.safetensors").changed == (expected.whole,)
    files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    others = {path for path in files if path.parts[0] != "transformer"}
    assert len(others) > 5
    for name in others:
        assert (tmp_path / "out-base" / name).read_bytes() == (folder / name).read_bytes()


def test_verify_needs_no_text_encoder_near(expected, model, source, tmp_path):
    """The denoiser's own file is enough to look for copies."""
    target = tmp_path / "out.safetensors"
    ra.export_merged(source, adapter_of(model, expected.module), target)
    with pytest.raises(ra.CheckpointError, match="has no text encoder"):
        check_loadable(target)
    assert verify_job(target, probe=False).checks[3].detail == "the denoiser is there only once"


def test_headers_carry_licence_and_origin(expected, model, source, tmp_path):
    target = tmp_path / "one.safetensors"
    ra.export_merged(source, adapter_of(model, expected.module), target)
    with safe_open(target, "pt") as file:
        found = file.metadata()
    assert found["modelspec.architecture"] == expected.architecture
    for key, pattern in expected.entries.items():
        assert re.fullmatch(pattern, found[key]), (key, found[key])
    assert found["format"] == "pt" and found["resalign.source"] == source.name


# --- LoRA --------------------------------------------------------------------------------------


def test_a_lora_is_written_in_the_form_that_hosts_read(expected, result, tmp_path):
    """Dots, A and B, alpha multiplied into B: never a key of its own."""
    path = ra.save_lora(result.adapter, tmp_path / "lora.safetensors")
    tensors = load_file(path)
    assert {name.rpartition(".lora_")[2] for name in tensors} == {"A.weight", "B.weight"}
    assert all(name.startswith(expected.loras.prefix) for name in tensors)
    assert expected.loras.key in tensors and len(tensors) == 2 * len(expected.trained)
    read = load_lora(path)
    for module in result.adapter.modules:
        torch.testing.assert_close(read.delta(module), result.adapter.delta(module))
    with safe_open(path, "pt") as file:
        assert file.metadata()["modelspec.architecture"] == f"{expected.architecture}/lora"


def test_kohyas_form_which_no_host_reads_completely_is_refused(result, tmp_path):
    with pytest.raises(ExportError, match=r"not read completely.*`diffusers`"):
        ra.save_lora(result.adapter, tmp_path / "lora.safetensors", format="kohya")


def test_diffusers_reads_the_lora_completely(expected, model, tmp_path):
    """The regression of the table of key forms: those modules that people train, each with its
    true strength."""
    names = linear_layers(model.denoiser, *expected.blocks)
    assert len(names) == expected.trainable
    adapter = adapter_of(model, *names)
    path = ra.save_lora(adapter, tmp_path / "lora.safetensors", family=expected.loras.family)
    found = read_by_diffusers(expected, path, names)
    assert found.keys() == set(names)
    for name in names:
        torch.testing.assert_close(found[name], adapter.delta(name))


@pytest.mark.parametrize(
    ("expected", "name", "width", "claimed"),
    [(expected, *claim) for expected in EXPORTED for claim in expected.loras.claims],
    ids=[f"{each}-{name}-{width}" for each in EXPORTED for name, width, _ in each.loras.claims],
    indirect=["expected"],
    scope="module",
)
def test_a_lora_is_told_from_those_of_relatives(expected, name, width, claimed):
    down, up = expected.loras.ends
    shapes = {f"{name}.{down}.weight": (4, width), f"{name}.{up}.weight": (9, 4)}
    assert (expected.case.family in bases_of_lora(shapes, {})[0]) is claimed
