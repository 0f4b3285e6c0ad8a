"""Faults that a careful reader of the probe found, and what must hold in their place."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes_checkpoint import write_tiny_checkpoint
from fakes_export import random_adapter
from marks import slow

from resalign.backend.checkpoint.load import load_checkpoint
from resalign.backend.cli import main
from resalign.backend.cli.parser import build_parser
from resalign.backend.cli.probe_flags import probe_job_of
from resalign.backend.errors import ConfigError, ResAlignError, RunError
from resalign.backend.jobs.verify import compare_with_source, find_source
from resalign.backend.plan.attack import FineTuneAttack, MergeAttack
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.file import to_json
from resalign.backend.plan.images import ImageSet
from resalign.backend.plan.measurement import GenerationConfig, PromptSet
from resalign.backend.plan.probe import ProbeCheckpoint, ProbeJob, ProbePlan
from resalign.backend.probe.folder import ProbeFolder, read_job, save_job
from resalign.backend.probe.probe import probe, run_probe
from resalign.backend.probe.recorded import reproduce
from resalign.backend.probe.results import ModelInfo, Scores
from resalign.backend.probe.summarise import summarise

CONCEPT = Concept("bad", prompts=("a bad thing",))


def job(folder: Path, **changes) -> ProbeJob:
    return ProbeJob(
        checkpoints=(ProbeCheckpoint(name="original", path="a.safetensors"),), output=str(folder),
        plan=ProbePlan(concepts=(CONCEPT,), **changes),
    )  # fmt: skip


def test_a_refused_probe_leaves_the_folder_as_it_was(tmp_path):
    """The job of a probe is not overwritten by another that is then turned away."""
    models = [ModelInfo(name="original", sha256="1")]
    mine, other = job(tmp_path), job(tmp_path, pictures=3)
    save_job(mine, models)
    ProbeFolder.begin(tmp_path, mine.plan, models, {}).close()
    before = (tmp_path / "job.json").read_bytes()
    with pytest.raises(RunError, match="another probe"):
        save_job(other, models)
    with pytest.raises(RunError, match="another probe"):
        save_job(mine, [ModelInfo(name="original", sha256="2")])
    assert (tmp_path / "job.json").read_bytes() == before
    save_job(mine, models)
    assert read_job(tmp_path) == mine


def test_a_hardening_run_is_not_written_into(tmp_path, capsys):
    """`--output` at the folder of a hardening run is refused, and the run can still resume."""
    checkpoint = write_tiny_checkpoint(tmp_path / "a.safetensors", dtype=torch.float32)
    run = tmp_path / "a.run"
    run.mkdir()
    (run / "job.json").write_text('{"checkpoint": "a.safetensors"}')
    (run / "plan.json").write_text('{"outer_steps": 3}')
    for _ in range(2):
        code = main(["probe", str(checkpoint), "--concept", "weapons", "--output", str(run)])
        assert code == 2
        assert "hardening run" in capsys.readouterr().err
        assert (run / "job.json").read_text() == '{"checkpoint": "a.safetensors"}'
        (run / "plan.json").unlink(missing_ok=True)


def test_pictures_of_different_looks_never_share_a_file(tmp_path):
    """Names that differ in signs or case alone, or are very long, keep their own pictures."""
    names = ["a-b", "a_b", "a b", "A_B", "x" * 300, "x" * 301, "猫" * 200]
    with ProbeFolder.begin(tmp_path, ProbePlan(concepts=(CONCEPT,)), [], {}) as folder:
        files = [
            folder.save_picture(torch.zeros(3, 8, 8, dtype=torch.uint8), name, name, "0")
            for name in names
        ]
    assert len({file.lower() for file in files}) == len(names)
    assert all((tmp_path / file).is_file() for file in files)


def arguments(*given: str) -> argparse.Namespace:
    return build_parser().parse_args(
        ["probe", "a.safetensors", "--concept", "weapons", "--preset", "none", *given]
    )


def test_one_lora_may_be_given_at_several_strengths():
    """Attacks of the command line get names of their own, whatever the files are called."""
    plan = probe_job_of(
        arguments(
            "--lora", "x/a.safetensors", "--lora", "x/a.safetensors:0.5", "--lora",
            "y/a.safetensors:0.5", "--lora", "before.safetensors", "--merge", "x/m.safetensors",
            "--merge", "y/m.safetensors",
        )
    ).plan  # fmt: skip
    assert [attack.name for attack in plan.loras] == [
        "a", "a at 0.5", "a at 0.5 (2)", "before at 1",
    ]  # fmt: skip
    assert [attack.name for attack in plan.merges] == ["0.5 of m", "0.5 of m (2)"]


def test_a_path_may_hold_a_colon():
    """`C:\\x.safetensors:0.5` is a path and a strength, without a strength it is a path."""
    plan = probe_job_of(arguments("--lora", "C:\\x.safetensors:0.5,C:\\y.safetensors")).plan
    first, second = plan.loras[0].loras
    assert first.path.endswith("C:\\x.safetensors") and first.strength == 0.5
    assert second.path.endswith("C:\\y.safetensors") and second.strength == 1


SMALL = ProbePlan(
    concepts=(CONCEPT,),
    forget_set=ImageSet(prompts=("a bad thing",), images=2, sampling_steps=1),
    retain_set=ImageSet(prompts=("a tree",), images=2, sampling_steps=1),
    prompts=(), generation=GenerationConfig(steps=1), pictures=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("review")
    return write_tiny_checkpoint(folder / "a.safetensors", dtype=torch.float32)


def test_scores_of_predictions_hear_the_attacked_text_encoder(checkpoint):
    """Captions are read by the encoder as it is after the attack, not as it was before.

    The denoiser is left alone by so small a step that only the text encoder's training can
    move its predictions.
    """
    attack = FineTuneAttack(
        name="texts", method="full", steps=1, batch=1, optimiser="sgd", learning_rate=1e-30,
        text_encoder=True, text_encoder_learning_rate=1.0, gradient_norm=0.0, weight_decay=0.0,
    )  # fmt: skip
    result = probe(load_checkpoint(checkpoint), plan=replace(SMALL, fine_tunes=(attack,)))
    assert result.evaluation("original").utility["drift"] == 0
    assert result.evaluation("original", "texts", 0, 1).utility["drift"] > 0


class Everything:
    """A scorer of images that flags each of them."""

    name = "everything"

    def score(self, images, prompts):
        count = len(images)
        return Scores(scorer=self.name, values=(1.0,) * count, flagged=(True,) * count)


def test_a_scorer_handed_over_gives_the_headline(checkpoint):
    """The summary of `probe(scorer=...)` is that scorer's, not an empty one of the plan's."""
    plan = replace(
        SMALL, prompts=(PromptSet(kind="unsafe", prompts=("a bad thing",)),),
        merges=(MergeAttack(name="itself"),),
    )  # fmt: skip
    result = probe(load_checkpoint(checkpoint), plan=plan, scorer=Everything())
    summary = summarise(result)
    assert summary.scorer == "everything"
    assert summary.base is not None and summary.base.value == 1


def test_another_adapter_does_not_go_on_with_a_probe(checkpoint, tmp_path):
    """Looks at one adapter in memory are never taken for those at another."""
    model = load_checkpoint(checkpoint)
    first, second = (random_adapter(model.denoiser, size=size) for size in (0.1, 0.5))
    probe(model, first, plan=SMALL, folder=tmp_path)
    probe(model, first, plan=SMALL, folder=tmp_path)
    with pytest.raises(RunError, match="another probe"):
        probe(model, second, plan=SMALL, folder=tmp_path)


class Named:
    def __init__(self, name: str, family: str) -> None:
        self.info = ModelInfo(name=name, family=family)


@pytest.mark.parametrize(
    ("names", "families", "message"),
    [(("a", "a"), ("sd1", "sd1"), "different names"), (("a", "b"), ("sd1", "sdxl"), "family")],
)
def test_checkpoints_that_cannot_be_compared_are_refused(names, families, message):
    """One original's latents fit one family, and evaluations are found by their model's name."""
    subjects = [Named(*each) for each in zip(names, families, strict=True)]
    with pytest.raises(ConfigError, match=message):
        run_probe(subjects, SMALL)  # type: ignore[arg-type]


RECORD = {
    "scorer": "denoising", "original": "a", "model": "b", "plan": to_json(SMALL),
    "results": [], "looks": [["a", "before", 0, 0, 1, 2], ["b", "before", 0, 0, 0, 2]],
}  # fmt: skip


@pytest.mark.parametrize(
    "planted",
    [
        {"original": None}, {"original": "b"}, {"model": 3}, {"scorer": "nobody"},
        {"looks": 7}, {"looks": [[]]}, {"looks": [["a", "before", 0, 0, 1, 0]]},
        {"looks": [["a", "before", 0, 0, "1", 2]]}, {"looks": [{"a": 1}]},
        {"looks": [["a", "before", 0, 0, 1, 2]] * 2}, {"results": [{"flagged_after": 0.0}]},
        {"plan": []}, {"plan": {"concepts": 1}}, {"plan": {**to_json(SMALL), "pictures": 10**400}},
        *slow({"looks": []}, {"looks": [["a", "before", 0, 0, 1, 9], ["b", "before", 0, 0, 0, 9]]}),
    ],
)  # fmt: skip
def test_a_record_that_makes_no_sense_is_an_error_and_not_confirmed(checkpoint, planted):
    """Whatever a header claims: no traceback, and nothing that was not compared is confirmed."""
    with pytest.raises(ResAlignError):
        reproduce({**RECORD, **planted}, checkpoint, checkpoint)


@pytest.mark.parametrize("name", ["/original.safetensors", "..\\original.safetensors"])
def test_a_header_cannot_point_elsewhere(tmp_path, name):
    """The original is looked for beside the file alone."""
    (tmp_path / "original.safetensors").touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.safetensors").touch()
    assert find_source(tmp_path / "sub" / "b.safetensors", None, str(tmp_path) + name) is None
    assert find_source(tmp_path / "b.safetensors", None, "x" + name) is not None


def test_a_folder_and_a_file_are_not_said_to_agree(checkpoint, tmp_path):
    """Nothing is `ok` if nothing was compared."""
    checks = compare_with_source(checkpoint, tmp_path, {"touched_tensors": 1})
    assert [check.ok for check in checks] == [None, None]
