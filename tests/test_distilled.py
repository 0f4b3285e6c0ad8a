"""Distilled checkpoints are told by what names them, and every command says what that means."""

import pytest
from fakes_checkpoint import write_tiny_checkpoint
from fakes_export import random_adapter

from resalign.backend.checkpoint.inspect import inspect
from resalign.backend.checkpoint.load import load_checkpoint
from resalign.backend.checkpoint.save import export_merged
from resalign.backend.families.base.distilled import distilled_by


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("sd_xl_turbo_1.0_fp16", "Turbo"),
        ("dreamshaperXL_v21TurboDPMSDE", "Turbo"),
        ("juggernautXL_v9Rdphoto2Lightning", "Lightning"),
        ("sdxl_lightning_4step", "Lightning"),
        ("LCM_Dreamshaper_v7", "LCM"),
        ("realisticVision-hyper-sd-8step", "Hyper-SD"),
        ("photon_hyperSD", "Hyper-SD"),
        ("myModel_hyper8steps", "Hyper-SD"),
        ("sdxl-DMD2", "DMD"),
        ("hyperrealism_v3", ""),
        ("epicRealismHyperDetail", ""),
        ("turbotastic", ""),
        ("v1-5-pruned", ""),
        ("lcmfree", ""),
    ],
)
def test_distilled_models_are_told_by_their_names(name, method):
    assert distilled_by((name,), {}).partition(",")[0] == method


def test_check_inspection_and_card_say_what_distillation_means(tmp_path):
    from resalign.backend.jobs.check import check_job
    from resalign.backend.plan.concept import Concept
    from resalign.backend.plan.hardening import HardeningPlan
    from resalign.backend.plan.job import Job
    from resalign.backend.report.card import model_card

    path = write_tiny_checkpoint(tmp_path / "my_turbo.safetensors")
    job = Job(
        checkpoint=str(path), output=str(tmp_path / "out.safetensors"),
        plan=HardeningPlan(concepts=(Concept("a", ("a gun",)),)),
    )  # fmt: skip
    adapter = random_adapter(load_checkpoint(path).denoiser, ("cross_attention_kv",))
    report = export_merged(path, adapter, tmp_path / "out.safetensors")

    card = model_card(report.provenance, report=report)

    for text in (" ".join(check_job(job).warnings), card):
        assert "distilled checkpoint (Turbo" in text
        assert "undoes the distillation" in text
    assert "distilled       it looks so: Turbo" in str(inspect(path))


def test_a_probe_s_original_is_decided_too_and_distillation_is_told(tmp_path):
    from resalign.backend.jobs.check_probe import check_probe_job
    from resalign.backend.plan.concept import Concept
    from resalign.backend.plan.probe import ProbeCheckpoint, ProbeJob, ProbePlan

    path = write_tiny_checkpoint(
        tmp_path / "my_lightning.safetensors", prediction_type="v_prediction",
        metadata={"modelspec.prediction_type": "epsilon"},
    )  # fmt: skip

    def check(**fields):
        one = ProbeCheckpoint(name="original", path=str(path), **fields)
        plan = ProbePlan(concepts=(Concept("a", ("a gun",)),))
        return check_probe_job(ProbeJob(checkpoints=(one,), output="x", plan=plan, device="cpu"))

    assert any("contradicts itself" in text for text in check().problems)
    assert not check(prediction="v").problems
    assert "original: this looks like a distilled checkpoint (Lightning" in str(
        check(prediction="v").warnings
    )
