"""Z-Image hardened, exported and written as a LoRA: what it has of its own.

What it shares with other families is in `test_family_export.py`.
"""

import fakes_z_image as fakes
import family_cases
import pytest
import torch
from family_checks import adapter_of, case_of, export_fixtures
from safetensors.torch import load_file

import resalign as ra
from resalign.backend.checkpoint.verify import verify_export
from resalign.backend.families import find_family
from resalign.backend.memory.plan import plan_memory
from resalign.backend.plan.presets import preset_plan

Z_IMAGE = find_family("z_image")

case = case_of(family_cases.Z_IMAGE)
source, model = export_fixtures()


# --- hardening ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_published_size_fits_a_usual_gpu_by_the_planner():
    """True width and depth, on the meta device."""
    concept = ra.Concept("weapons", prompts=("a gun",))
    found = plan_memory(preset_plan("balanced", (concept,)), Z_IMAGE, budget=24)
    assert found.fits and found.plan.precision == "bf16"


# --- export ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [True, False])
def test_an_adapter_that_changes_nothing_gives_the_same_bytes(model, tmp_path, fused):
    source = fakes.write_split(tmp_path, fused=fused, dtype=torch.bfloat16)
    names = [n for n, m in model.denoiser.named_modules() if isinstance(m, torch.nn.Linear)]
    target = source.with_name("same.safetensors")
    ra.export_merged(source, adapter_of(model, *names, size=0.0), target)
    assert not verify_export(source, target).changed
    before, after = load_file(source), load_file(target)
    assert before.keys() == after.keys() and ("norm_final.weight" in before) is fused


def test_the_spelling_of_diffusers_is_exported_in_it(model, tmp_path):
    module = "layers.0.attention.to_k"
    adapter = adapter_of(model, module)
    split = fakes.write_split(tmp_path, fused=False)
    target = split.with_name("out.safetensors")
    ra.export_merged(split, adapter, target)
    expected = fakes.build_networks()["transformer"].get_submodule(module).weight
    found = ra.load_checkpoint(target).denoiser.get_submodule(module).weight
    assert torch.equal(found, expected + adapter.delta(module))
    assert verify_export(split, target).changed == (f"{module}.weight",)


# --- LoRA --------------------------------------------------------------------------------------


def test_users_loras_are_read_but_for_fused_projections():
    sources = Z_IMAGE.tensors.denoiser_sources(Z_IMAGE.config("transformer"))
    names = {n.rpartition(".")[0]: s.name.rpartition(".")[0] for n, s in sources.items()}
    found = Z_IMAGE.lora.stems(names, {})
    query, out = "layers.0.attention.to_q", "layers.0.attention.to_out.0"
    assert found[f"diffusion_model.{query}"] == found[f"transformer.{query}"]
    assert found["lora_unet_layers_0_attention_to_q"] == ("transformer", query)
    assert found["diffusion_model.layers.0.attention.out"] == ("transformer", out)
    assert "diffusion_model.layers.0.attention.qkv" not in found
