"""FLUX.2 klein hardened and exported: what it has of its own.

What it shares with other families is in `test_family_export.py`.
"""

import fakes_klein as fakes
import family_cases
import pytest
import torch
from family_checks import adapter_of, case_of, export_fixtures, link_companions
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import resalign as ra
from resalign.backend.adapter.dense import DenseAdapter
from resalign.backend.checkpoint.load import check_loadable
from resalign.backend.checkpoint.verify import verify_export
from resalign.backend.families import find_family
from resalign.backend.jobs.verify import verify_job
from resalign.backend.memory.plan import plan_memory
from resalign.backend.plan.presets import preset_plan
from resalign.backend.report.card import write_card

KLEIN = find_family("flux2_klein")
SWAPPED = "final_layer.adaLN_modulation.1.weight"

case = case_of(family_cases.KLEIN)
source, model = export_fixtures()


# --- hardening ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("budget", "quantised"), [(24, "none"), (16, "int8")])
def test_the_published_size_fits_the_usual_gpus_by_the_planner(budget, quantised):
    concept = ra.Concept("weapons", prompts=("a gun",))
    found = plan_memory(preset_plan("balanced", (concept,)), KLEIN, budget=budget)
    assert found.fits and found.plan.quantization == quantised and found.plan.precision == "bf16"


# --- export ------------------------------------------------------------------------------------


def test_a_dense_change_of_the_last_modulation_has_its_halves_exchanged(
    case, model, source, tmp_path
):
    name = "norm_out.linear.weight"
    change = torch.randn(2 * fakes.WIDTH, fakes.WIDTH, generator=torch.Generator().manual_seed(0))
    target = tmp_path / "dense.safetensors"
    adapter = DenseAdapter({name: change})
    ra.export_merged(source, adapter, target)
    assert verify_export(source, target, adapter).changed == (SWAPPED,)
    before, after = load_file(source)[SWAPPED].float(), load_file(target)[SWAPPED].float()
    scale, shift = change.chunk(2)
    torch.testing.assert_close(after - before, torch.cat([shift, scale]), atol=0.02, rtol=0.01)
    link_companions(case, source, tmp_path)
    exported = ra.load_checkpoint(target).denoiser.norm_out.linear.weight
    wanted = model.denoiser.norm_out.linear.weight + change
    assert torch.equal(exported, wanted.bfloat16().float())


def test_the_model_card_is_tagged_by_its_family(model, source, tmp_path):
    adapter = adapter_of(model, "transformer_blocks.0.attn.to_q")
    card = write_card(ra.export_merged(source, adapter, tmp_path / "one.safetensors"))
    tags = card.read_text(encoding="utf-8").partition("tags:")[2]
    assert "- flux\n" in tags and "stable-diffusion" not in tags


def test_verify_needs_no_text_encoder_near(model, source, tmp_path):
    """The denoiser's own file is enough to compare with the source, and to find a second one."""
    adapter = adapter_of(model, "single_transformer_blocks.0.attn.to_qkv_mlp_proj")
    target, alone = tmp_path / "out.safetensors", tmp_path / "alone" / "source.safetensors"
    ra.export_merged(source, adapter, target)
    alone.parent.mkdir()
    alone.symlink_to(source)
    with pytest.raises(ra.CheckpointError, match="has no text encoder"):
        check_loadable(target)
    found = verify_job(target, source=alone, probe=False)
    assert [check.ok for check in found.checks[:4]] == [True] * 4
    assert found.checks[3].detail == "the denoiser is there only once"
    tensors = load_file(target)
    tensors["ema.txt_in.weight"] = tensors["txt_in.weight"].clone()
    with safe_open(target, framework="pt") as file:
        save_file(tensors, tmp_path / "two.safetensors", metadata=file.metadata())
    assert "second" in verify_job(tmp_path / "two.safetensors", probe=False).checks[3].detail
