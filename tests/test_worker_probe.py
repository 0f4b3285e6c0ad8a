"""The worker's probe on the demo: of a run before its export, stopped, gone on with, recorded."""

import json
from pathlib import Path

import pytest
from fakes_worker import finished_demo_run

from resalign.backend.checkpoint.inspect import inspect
from resalign.backend.cli import main as command_line
from resalign.backend.errors import ConfigError, RunError
from resalign.backend.jobs.live_state import LiveState
from resalign.backend.plan.attack import FineTuneAttack, MergeAttack
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.file import to_json
from resalign.backend.plan.images import ImageSet
from resalign.backend.plan.measurement import GenerationConfig, PromptSet
from resalign.backend.plan.probe import ProbeCheckpoint, ProbePlan
from resalign.backend.probe.subjects import RunSubject
from resalign.backend.run.folder import RunFolder
from resalign.backend.worker import exporting, probing, resuming
from resalign.backend.worker.protocol import Stopped
from resalign.backend.worker.requests import check_files, parse_request

PLAN = ProbePlan(
    concepts=(Concept("weapon", ("a pistol",)),),
    forget_set=ImageSet(prompts=("a pistol",), images=2, sampling_steps=2),
    retain_set=ImageSet(prompts=("a cat",), images=2, sampling_steps=2),
    fine_tunes=(FineTuneAttack(name="LoRA", steps=2, batch=1, rank=2, concept_share=0.5),),
    merges=(MergeAttack(name="half"),),
    prompts=(PromptSet(kind="retain", prompts=("a cat",)),),
    generation=GenerationConfig(steps=1),
)


@pytest.fixture
def run(tmp_path):
    return finished_demo_run(tmp_path)


def nobody():
    """The check for a stop, where nobody asks for one."""


def probe(run, folder, live, check=nobody):
    request = parse_request({
        "job": "probe", "plan": to_json(PLAN), "folder": str(folder),
        "checkpoints": [{"name": "original", "path": "demo"},
                        {"name": "hardened", "path": str(run)}],
    })  # fmt: skip
    check_files(request)
    return probing.probe(request, live, check, device="cpu")


@pytest.mark.slow
def test_a_run_is_probed_before_its_export_and_a_stopped_probe_goes_on(run, tmp_path):
    folder, live = tmp_path / "probe", LiveState("probe")

    def check():
        if "hardened: half" in live.state["curves"]:
            raise Stopped

    with pytest.raises(Stopped, match="complete evaluations are kept, Resume continues from there"):
        probe(run, folder, live, check)
    with pytest.raises(RunError, match="not a finished probe"):
        exporting.export(*export_to(run, tmp_path / "early.safetensors", folder), nobody)

    request = parse_request({"job": "resume", "run_folder": str(folder)})
    live = LiveState("resume")
    result, message = resuming.resume(request, live, nobody, device="cpu")
    assert live.state["kind"] == "probe" and result["complete"]
    assert live.state["curves"].keys() >= {"original: before", "hardened: half"}
    assert message.endswith(result["headline"]) and "esilience" in message
    rows = [(row["model"], row["attack"], row["step"]) for row in result["rows"]]
    assert rows == [
        (model, *evaluation)
        for model in ("original", "hardened")
        for evaluation in (("before", 0), ("half", 0), ("LoRA", 2))
    ]
    assert Path(result["report"]).read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [p["flagged"] for p in live.state["pictures"]] == [False] * len(live.state["pictures"])
    assert len(live.state["pictures"]) == 1  # one evaluation was left to take, of one picture
    json.dumps([result, live.state], allow_nan=False)

    exported, _ = exporting.export(*export_to(run, tmp_path / "out.safetensors", folder), nobody)
    recorded = inspect(Path(exported["path"])).hardened["probe"]
    assert recorded["headline"] == result["headline"]


def export_to(run, output, folder):
    request = {
        "job": "export", "run_folder": str(run), "output": str(output), "probe": str(folder)
    }  # fmt: skip
    return parse_request(request), LiveState("export")


def test_a_run_draws_what_its_export_draws(run, tmp_path):
    """Bit for bit, once rounded to half precision, in which the demo is stored."""
    import torch

    from resalign.backend.checkpoint.load import load_checkpoint

    output = tmp_path / "out.safetensors"
    request = parse_request({"job": "export", "run_folder": str(run), "output": str(output)})
    exporting.export(request, LiveState("export"), nobody)
    exported = load_checkpoint(output).denoiser.state_dict()
    with RunSubject(ProbeCheckpoint(name="hardened", path=str(run))).opened() as model:
        found = model.denoiser.state_dict()
        assert all(torch.equal(found[name].half(), exported[name].half()) for name in exported)


def test_an_unfinished_run_is_not_probed(run, tmp_path, capsys):
    import torch

    with RunFolder.open(run) as folder:
        folder.save_state(1, {"x": torch.zeros(1)}, {})
    with pytest.raises(ConfigError, match=r"hardened: .*run stopped after step 1 of 3: resume it"):
        probe(run, tmp_path / "probe", LiveState("probe"))
    # And so on the command line, which takes the folder as well.
    source = str(run.parent / "model.safetensors")
    arguments = ["probe", source, str(run), "--concept", "weapons", "--device", "cpu"]
    assert command_line([*arguments, "--output", str(tmp_path / "probe")]) == 2
    assert "resume it first" in capsys.readouterr().err


def test_a_checkpoint_to_probe_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"probe.checkpoints: .*gone does not exist"):
        probe(tmp_path / "gone", tmp_path / "probe", LiveState("probe"))
