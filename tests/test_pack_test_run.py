"""A pack, a report and a card say plainly that a test run hardened the model."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from fakes_counting import counted_result
from fakes_pack import SCHEMA, WORKING, body, faults, results, write
from safetensors.torch import load_file, save_file

from resalign.backend.checkpoint.header import read_header
from resalign.backend.checkpoint.metadata import Provenance
from resalign.backend.cli import main
from resalign.backend.demo.plans import CHECKPOINT
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.fine_tune import FineTuneConfig
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.methods import TEST_RUN, steps_of_test_run, without_test_run
from resalign.backend.plan.probe import TEST_PROBE, ProbeCheckpoint, quick_look
from resalign.backend.probe.folder import ProbeFolder
from resalign.backend.probe.results_io import by_short_probe, by_test_runs
from resalign.backend.probe.subjects import FileSubject
from resalign.backend.report.card import model_card, provenance_of
from resalign.backend.report.pack import pack_report
from resalign.backend.report.pack_words import pack_warnings

SAID = f"safe comes from {TEST_RUN}"


def plan_of(steps: int) -> HardeningPlan:
    return HardeningPlan(
        concepts=(Concept("weapons", prompts=("a gun",)),), fine_tunes=(FineTuneConfig(name="a"),),
        configurations_per_step=1, warm_up_steps=0, outer_steps=steps,
    )  # fmt: skip


def with_steps(steps: int) -> Provenance:
    """Return the provenance of a run that took so many."""
    provenance = provenance_of(plan_of(steps))
    return replace(provenance, training={**provenance.training, "steps": steps})


def exported(path, steps: int):
    """Write a file with the header of an export."""
    save_file({"w": torch.zeros(1)}, path, metadata=with_steps(steps).to_metadata())
    return path


def probed(folder, method: str = ""):
    """Write a report whose second model has this method."""
    result = counted_result(WORKING)
    original, safe = result.models
    models = (original, replace(safe, method=method))
    result = replace(result, models=models, warnings=by_test_runs(models))
    return write(result, folder)


def said_everywhere(found) -> bool:
    """True if every text of a pack says it, False if none does."""
    pack = found.path
    names = ("report.html", "report.md", "results.json", "report.json", "civitai.json")
    texts = [(pack / name).read_text("utf-8") for name in names]
    said = [TEST_RUN in text for text in texts]
    said += [body(pack).startswith(f"**This model comes from {TEST_RUN}.**")]
    said += [found.test_run, results(pack)["model"]["test_run"]]
    said += [any(SAID in text for text in pack_warnings(found))]
    assert len(set(said)) == 1, said
    assert faults(results(pack), SCHEMA) == []
    return said[0]


@pytest.mark.parametrize(("steps", "test"), [(1, True), (39, True), (40, False)])
def test_the_file_s_header_says_it(tmp_path, steps, test):
    report = probed(tmp_path / "report")
    file = exported(tmp_path / "safe.safetensors", steps)
    assert said_everywhere(pack_report(report, tmp_path / "pack", checkpoint=file)) is test


def test_the_probe_of_a_run_says_it_without_a_file(tmp_path):
    report = probed(tmp_path / "report", "adapter of a run: test run of 20 steps, 0123456789abcdef")
    assert said_everywhere(pack_report(report, tmp_path / "pack"))
    other = probed(tmp_path / "other", "adapter of a run, 0123456789abcdef")
    assert not said_everywhere(pack_report(other, tmp_path / "pack2"))


@pytest.mark.parametrize("tested", [True, False])
def test_a_pack_of_a_test_probe_says_not_to_publish_its_figures(tmp_path, tested):
    result = counted_result(WORKING)
    plan = replace(result.plan, test_run=tested)
    result = replace(result, plan=plan, warnings=by_short_probe(plan))
    found = pack_report(write(result, tmp_path / "report"), tmp_path / "pack")
    assert result.warnings == (TEST_PROBE if tested else quick_look(plan),)
    names = ("report.html", "report.md", "results.json", "report.json", "civitai.json", "README.md")
    for name in names:
        assert (TEST_PROBE[1:] in (found.path / name).read_text("utf-8")) is tested, name
    assert any(TEST_PROBE in text for text in pack_warnings(found)) is tested
    assert body(found.path).startswith("**This probe is a test run") is tested


def test_a_method_without_users_may_have_few_steps(tmp_path):
    """One step of an edit is the whole of it."""
    plan = HardeningPlan(concepts=plan_of(20).concepts, method="closed_form", outer_steps=1,
                         warm_up_steps=0)  # fmt: skip
    provenance = provenance_of(plan)
    assert steps_of_test_run({**provenance.training, "steps": 1}) == 0


def test_the_command_warns_and_says_it_to_programs(tmp_path, capsys):
    report = probed(tmp_path / "report")
    file = exported(tmp_path / "safe.safetensors", 20)
    command = ["pack", str(report), "--output", str(tmp_path / "pack"), "--checkpoint", str(file)]
    assert main([*command, "--json"]) == 0
    shown = capsys.readouterr()
    assert SAID in shown.out + shown.err
    done = json.loads(shown.out.splitlines()[-1])
    assert done["test_run"] is True


def test_the_card_of_an_export_says_it():
    short, long = (model_card(with_steps(steps)) for steps in (20, 40))
    assert f"**This checkpoint comes from {TEST_RUN}.**" in short
    assert "test run" not in long


def test_a_probe_that_was_begun_before_this_was_recorded_can_be_continued(tmp_path):
    result = counted_result(WORKING)
    method = "adapter of a run: test run of 20 steps, 0123456789abcdef"
    models = (result.models[0], replace(result.models[1], method=method))
    before = [replace(model, method=without_test_run(model.method)) for model in models]
    assert before[1].method == "adapter of a run, 0123456789abcdef"
    with ProbeFolder.begin(tmp_path, result.plan, before, {}):
        pass
    with ProbeFolder.begin(tmp_path, result.plan, models, {}):
        pass


def test_the_probe_of_a_file_names_it_in_the_method(tmp_path):
    weights, about = load_file(CHECKPOINT), read_header(CHECKPOINT).metadata
    path = tmp_path / "safe.safetensors"
    for steps, named in ((20, True), (40, False)):
        save_file(weights, path, metadata={**about, **with_steps(steps).to_metadata()})
        info = FileSubject(ProbeCheckpoint(name="safe", path=str(path))).info
        assert info.method == with_steps(20).method + ": test run of 20 steps" * named
        assert by_test_runs([info]) == ((SAID,) if named else ())
