"""Anima hardened, exported and written as a LoRA: what it has of its own.

What it shares with other families is in `test_family_export.py`.
"""

from dataclasses import replace

import fakes_anima as fakes
import family_cases
import family_exports
import pytest
import torch
from family_checks import (
    adapter_of,
    case_of,
    export_fixtures,
    linear_layers,
    link_companions,
    read_by_diffusers,
    tiny_plan,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import resalign as ra
from resalign.backend.checkpoint.verify import verify_export
from resalign.backend.families import find_family
from resalign.backend.jobs.check import check_job
from resalign.backend.memory.plan import plan_memory
from resalign.backend.plan.presets import preset_plan
from resalign.backend.report.card import write_card
from resalign.backend.report.licence_terms import licence_terms

ANIMA = find_family("anima")

case = case_of(family_cases.ANIMA)
source, model = export_fixtures()


# --- hardening ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["closed_form", "redirect", "project"])
def test_the_fast_methods_work(model, method):
    """Its text comes in by a cross-attention of its own, so the closed form has what to edit."""
    own = replace(tiny_plan(), method=method, fine_tunes=(), outer_steps=1, warm_up_steps=0)
    found = ra.harden(model, own).adapter
    assert any(found.delta(module).any() for module in found.modules)
    if method == "closed_form":
        assert {name.rpartition(".attn2.")[2] for name in found.modules} == {"to_k", "to_v"}


@pytest.mark.slow
def test_it_is_erased_and_distilled_and_the_result_exported(model, source, tmp_path):
    """All weights of the denoiser change, and nothing else of its file."""
    plan = tiny_plan()
    preset = preset_plan("durable", plan.concepts)
    own = replace(
        preset, forget_set=plan.forget_set, retain_set=plan.retain_set, outer_steps=1,
        varied=replace(preset.varied, images=2, sampling_steps=1, guidance=4),
        distil=replace(preset.distil, batch=2),
    )  # fmt: skip
    found = ra.harden(model, own)
    target = tmp_path / "distilled.safetensors"
    ra.export_merged(source, found.adapter, target)
    changed = set(verify_export(source, target, found.adapter).changed)
    denoiser = fakes.native_denoiser(fakes.build_networks()["transformer"].state_dict())
    assert changed and changed <= {f"net.{name}" for name in denoiser}


def test_a_job_is_checked_with_its_licence(source, tmp_path):
    output = str(tmp_path / "o.safetensors")
    job = ra.Job(checkpoint=str(source), output=output, plan=tiny_plan(), device="cpu")
    warnings = check_job(job).warnings
    (licence,) = (text for text in warnings if text.startswith("licence: "))
    assert "non-commercial" in licence and "NVIDIA Open Model License" in licence


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_published_size_fits_a_usual_gpu_by_the_planner():
    """True width and depth, on the meta device: 12 GB, without a quantised base."""
    concept = ra.Concept("weapons", prompts=("a gun",))
    found = plan_memory(preset_plan("balanced", (concept,)), ANIMA, budget=12)
    assert found.fits and found.plan.quantization == "none"
    assert found.plan.gradient_checkpointing and 10 * 2**30 < found.total <= 12 * 2**30


# --- export ------------------------------------------------------------------------------------


def test_one_module_changes_its_own_tensor_only(model, source, tmp_path):
    """Conditioner, counters and states of layers, empty ones too, pass through bit for bit."""
    module, target = "transformer_blocks.1.ff.net.2", tmp_path / "one.safetensors"
    adapter = adapter_of(model, module)
    ra.export_merged(source, adapter, target)
    name = "net.blocks.1.mlp.layer2.weight"
    assert verify_export(source, target).changed == (name,)
    before, after = load_file(source), load_file(target)
    assert torch.equal(after[name], (before[name].float() + adapter.delta(module)).bfloat16())
    assert before.keys() == after.keys() >= {f"net.{each}" for each in fakes.counters()}
    assert all(torch.equal(after[n], before[n]) and after[n].dtype == before[n].dtype
               for n in before if n != name)  # fmt: skip


def test_averages_are_hardened_with_it_and_the_conditioners_stay(case, model, source, tmp_path):
    tensors = load_file(source)
    averages = {n.replace("net.", "net_ema.", 1): t.clone() for n, t in tensors.items()}
    both, target = tmp_path / "both.safetensors", tmp_path / "out.safetensors"
    save_file(tensors | averages, both)
    link_companions(case, source, tmp_path)
    ra.export_merged(both, adapter_of(model, "transformer_blocks.0.attn1.to_q"), target)
    assert set(verify_export(both, target).changed) == {
        f"{prefix}.blocks.0.self_attn.q_proj.weight" for prefix in ("net", "net_ema")
    }


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16])
def test_the_effect_of_rounding_is_reported(case, model, source, tmp_path, dtype):
    """A small change moves few weights in bf16, and hardly any in fp8."""
    path = tmp_path / "small.safetensors"
    save_file({n: t.to(dtype) if t.is_floating_point() and t.dim() == 2 else t
               for n, t in load_file(source).items()}, path)  # fmt: skip
    link_companions(case, source, tmp_path)
    adapter = adapter_of(model, "transformer_blocks.0.attn1.to_q", size=1e-4)
    report = ra.export_merged(path, adapter, tmp_path / "out.safetensors")
    assert report.rounding_error > (0.9 if dtype == torch.float8_e4m3fn else 0.1)
    assert report.warnings


# --- licence -----------------------------------------------------------------------------------


def test_headers_and_card_carry_both_licences(model, source, tmp_path):
    target = tmp_path / "one.safetensors"
    report = ra.export_merged(source, adapter_of(model, "transformer_blocks.0.attn1.to_q"), target)
    with safe_open(target, "pt") as file:
        found = file.metadata()
    assert "CircleStone Labs Non-Commercial License v1.2" in found["modelspec.license"]
    assert "NVIDIA Open Model License" in found["modelspec.license"]
    assert "modified" in found["modelspec.attribution"]
    front, _, body = write_card(report).read_text(encoding="utf-8").partition("\n---\n")
    assert "\nlicense: other\nlicense_name: " in front  # the hub knows identifiers alone
    assert "circlestone-labs-non-commercial" in front and "- anima" in front
    assert "## Licence" in body and "CircleStone Labs LLC" in body and "NVIDIA" in body


def test_a_pack_of_its_figures_says_what_the_licence_asks():
    (term,) = licence_terms(ANIMA.metadata.notices["modelspec.license"])
    assert term.forbids and "non-commercial" in term.text and "NVIDIA" in term.text
    assert term.commercial, "Civitai's form leaves commercial use open"


def test_the_licence_that_a_source_names_is_kept(case, model, source, tmp_path):
    own = tmp_path / "own.safetensors"
    save_file(load_file(source), own, {"modelspec.license": "mine", "other": "kept"})
    link_companions(case, source, tmp_path)
    target = tmp_path / "one.safetensors"
    ra.export_merged(own, adapter_of(model, "transformer_blocks.0.attn1.to_q"), target)
    with safe_open(target, "pt") as file:
        found = file.metadata()
    assert found["modelspec.license"] == "mine" and found["other"] == "kept"


# --- LoRA --------------------------------------------------------------------------------------


def test_an_alpha_beside_them_would_be_ignored(model, tmp_path):
    """Why alpha is multiplied into B: diffusers takes another strength, silently."""
    names = linear_layers(model.denoiser, *family_exports.ANIMA.blocks)
    adapter = adapter_of(model, *names)
    path = ra.save_lora(adapter, tmp_path / "lora.safetensors", family="anima")
    tensors = load_file(path)
    stems = {name.partition(".lora_")[0] for name in tensors}
    save_file(tensors | {f"{stem}.alpha": torch.tensor(1.0) for stem in stems}, path)
    found = read_by_diffusers(family_exports.ANIMA, path, names)
    torch.testing.assert_close(found[names[0]], adapter.delta(names[0]))  # not half of it


def test_users_loras_are_read_in_every_spelling(model):
    """Denoiser and conditioner; the adapter's own modules are ComfyUI's `llm_adapter`."""
    module = "transformer_blocks.0.attn2.to_out.0"
    found = ANIMA.lora.stems(
        {module: "blocks.0.cross_attn.output_proj"}, {"text_conditioner": ["blocks.0.mlp.0"]}
    )
    denoiser, conditioner = ("transformer", module), ("text_conditioner", "blocks.0.mlp.0")
    assert found["diffusion_model.blocks.0.cross_attn.output_proj"] == denoiser
    assert found["lora_unet_blocks_0_cross_attn_output_proj"] == denoiser
    assert found["transformer." + module] == denoiser
    assert found["diffusion_model.llm_adapter.blocks.0.mlp.0"] == conditioner
    assert found["lora_unet_llm_adapter_blocks_0_mlp_0"] == conditioner
