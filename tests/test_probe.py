"""The probe as a whole: same weights same pictures, relapse found, nothing lost, nothing left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes_checkpoint import write_tiny_checkpoint
from fakes_export import random_adapter
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from resalign.backend.adapter.lora import Adapter
from resalign.backend.checkpoint.load import load_checkpoint
from resalign.backend.checkpoint.save import export_merged
from resalign.backend.errors import ConfigError, ResAlignError, RunError
from resalign.backend.plan.attack import ORIGINAL, FineTuneAttack, LoraAttack, LoraFile, MergeAttack
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.fine_tune import FineTuneConfig
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.images import ImageSet
from resalign.backend.plan.measurement import GenerationConfig, PromptSet, ScorerConfig
from resalign.backend.plan.probe import ProbeCheckpoint, ProbePlan
from resalign.backend.probe import evaluation as evaluation_module
from resalign.backend.probe.folder import EVALUATIONS
from resalign.backend.probe.kept_picture import kept_places
from resalign.backend.probe.probe import probe, run_probe
from resalign.backend.probe.results import Scores
from resalign.backend.probe.results_io import read_probe
from resalign.backend.probe.subjects import FileSubject, LoadedSubject
from resalign.backend.probe.summarise import summarise
from resalign.backend.scorers.denoising import DenoisingScorer

CONCEPT = Concept("bad", prompts=("a bad thing", "another bad thing", "the worst"))
SETS = {
    "forget_set": ImageSet(prompts=("a bad thing",), images=4, sampling_steps=2),
    "retain_set": ImageSet(prompts=("a good thing", "a tree"), images=4, sampling_steps=2),
}
TRAINING = FineTuneAttack(
    name="training", concept_share=0.5, steps=3, looks=(1, 3), batch=2, rank=2,
    learning_rate=1e-2,
)  # fmt: skip
HALF = MergeAttack(name="half")
BROKEN = LoraFile(path="BROKEN.safetensors")
BACK = MergeAttack(name="undone", weight=1.0)


class Brightness:
    """A scorer that flags every image brighter than its threshold, and counts its calls."""

    name = "brightness"

    def __init__(self, threshold: float = 0.0) -> None:
        self.threshold, self.calls, self.seen = threshold, 0, 0

    def score(self, images, prompts):
        self.calls += 1
        self.seen += len(images)
        assert images.dtype == torch.float32 and images.abs().max() <= 1
        assert len(prompts) == len(images)
        values = tuple(images.mean((1, 2, 3)).tolist())
        return Scores(
            scorer=self.name, values=values, flagged=tuple(v > self.threshold for v in values)
        )


def plan(**changes) -> ProbePlan:
    settings = {
        "concepts": (CONCEPT,),
        **SETS,
        "merges": (BACK, HALF),
        "fine_tunes": (TRAINING,),
        "prompts": (
            PromptSet(kind="unsafe", prompts=("a bad thing", "the worst"), images=2),
            PromptSet(kind="retain", prompts=("a tree",)),
        ),
        "generation": GenerationConfig(steps=2, batch=3),
        "pictures": 2,
    }
    return ProbePlan(**(settings | changes))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """An original, the same with a random adapter merged in, and with one that is the identity."""
    folder = tmp_path_factory.mktemp("checkpoints")
    original = write_tiny_checkpoint(folder / "original.safetensors", dtype=torch.float32)
    model = load_checkpoint(original)
    adapter = random_adapter(model.denoiser, size=0.5)
    zero = {name: torch.zeros_like(tensor) for name, tensor in adapter.tensors.items()}
    identity = Adapter(zero, adapter.rank, adapter.alpha)
    export_merged(original, adapter, folder / "changed.safetensors")
    tensors = load_file(original)
    with safe_open(original, framework="pt") as file:
        metadata = file.metadata()
    tensors["model.diffusion_model.out.2.weight"] *= 30  # predicts far from any noise
    save_file(tensors, folder / "lost.safetensors", metadata=metadata)
    export_merged(original, identity, folder / "same.safetensors")
    return {path.stem: path for path in folder.glob("*.safetensors")}


def subjects(files, *names: str):
    return [FileSubject(ProbeCheckpoint(name=name, path=str(files[name]))) for name in names]


def run(files, probe_plan, *names, folder=None, scorers=None, **options):
    return run_probe(
        subjects(files, *names), probe_plan, folder=folder, scorers=scorers,
        originals={ORIGINAL: files["original"]}, **options,
    )  # fmt: skip


def without_times(evaluations):
    return [replace(evaluation, seconds={}) for evaluation in evaluations]


@pytest.mark.slow
def test_an_identity_adapter_scores_exactly_like_the_base(files):
    """With equal weights, prompts and seeds, all pictures are identical, attacked or not."""
    scorers = [Brightness(), DenoisingScorer(images=4)]
    result = run(files, plan(), "original", "same", scorers=scorers)
    assert result.complete
    for evaluation in result.evaluations:
        if evaluation.model == "original":
            twin = result.evaluation("same", *evaluation.key[1:])
            assert twin is not None
            assert twin.sets == evaluation.sets
            assert twin.utility == evaluation.utility
    assert result.evaluation("same").utility["drift"] == 0
    assert result.evaluation("same").utility["image_distance_retain"] == 0


@pytest.mark.slow
def test_a_changed_model_is_seen_and_undone(files):
    """Drift and distance see the adapter; mixing the original back in wholly removes both."""
    result = run(files, plan(fine_tunes=()), "original", "changed", scorers=[Brightness()])
    before, half, undone = (
        result.evaluation("changed", name) for name in ("before", "half", "undone")
    )
    assert before.utility["drift"] > half.utility["drift"] > 0
    assert before.utility["image_distance_retain"] > 0
    base = result.evaluation("original")
    assert undone.set_of("unsafe").digests == base.set_of("unsafe").digests
    assert undone.utility["drift"] == 0


def test_the_original_mixed_with_itself_is_not_drawn_again(files, tmp_path):
    """Its evaluation is the one before any attack, to the last flag and picture."""
    scorer = Brightness()
    result = run(files, plan(fine_tunes=()), "original", folder=tmp_path, scorers=[scorer])
    before = result.evaluation("original")
    assert scorer.seen == sum(part.images for part in before.sets) == 5
    for name in ("undone", "half"):
        mixed = result.evaluation("original", name)
        assert mixed.sets == before.sets and mixed.utility == before.utility
        assert before.seconds and not mixed.seconds
    again = run(files, plan(fine_tunes=()), "original", folder=tmp_path, scorers=[scorer])
    assert again.evaluations == result.evaluations and scorer.seen == 5


def test_a_planted_relapse_is_found(files):
    """A model that lost the concept gets it back by an attack: the score says at which."""
    result = run(files, plan(fine_tunes=()), "original", "lost", scorers=[DenoisingScorer()])
    recovered = {
        name: result.evaluation("lost", name).set_of("concept").scores[0].hits
        for name in ("before", "undone")
    }
    assert recovered == {"before": 0, "undone": 4}
    assert result.evaluation("original").set_of("concept").scores[0].hits == 4
    assert result.evaluation("original").set_of("unsafe") is None  # nobody looks at images


@pytest.mark.slow
def test_every_seed_and_step_is_looked_at(files):
    """One evaluation per model, seed and step asked for, in that order; seeds differ."""
    result = run(files, plan(seeds=(0, 5), merges=()), "original", scorers=[Brightness()])
    assert [evaluation.key for evaluation in result.evaluations] == [
        ("original", "before", 0, 0), ("original", "training", 0, 1),
        ("original", "training", 0, 3), ("original", "training", 5, 1),
        ("original", "training", 5, 3),
    ]  # fmt: skip
    digests = [evaluation.set_of("unsafe").digests for evaluation in result.evaluations]
    assert len(set(digests)) == 5


@pytest.mark.slow
def test_a_crash_in_the_middle_resumes(files, tmp_path):
    """Complete evaluations are not drawn again, and the end is that of an unbroken probe."""

    class Crash(RuntimeError):
        pass

    def crash(progress):
        if progress.labels.get("model") == "changed" and progress.labels["at"] == "3":
            raise Crash

    whole = run(files, plan(), "original", "changed", scorers=[Brightness()])
    with pytest.raises(Crash):
        run(
            files, plan(), "original", "changed", folder=tmp_path / "p", scorers=[Brightness()],
            on_progress=crash,
        )  # fmt: skip
    partly = read_probe(tmp_path / "p")
    assert not partly.complete and len(partly.evaluations) == 9
    with (tmp_path / "p" / EVALUATIONS).open("a") as file:
        file.write('{"model": "cut o')
    scorer, told = Brightness(), []
    result = run(
        files, plan(), "original", "changed", folder=tmp_path / "p", scorers=[scorer],
        on_progress=lambda one: told.append(one) if one.share is not None else None,
    )  # fmt: skip
    assert scorer.seen == 5  # one evaluation's images
    assert all(one.left is not None for one in told), "by the seconds that are recorded"
    assert told[0].share > 0.8 and [one.share for one in told] == sorted(one.share for one in told)
    drawn = next(one for one in told if "picture" in one.message)
    assert drawn.message.endswith("picture 0 of 5 (2 unsafe prompts × 2 + 1 other prompt)")
    plain = [
        replace(k, sets=tuple(replace(s, pictures=()) for s in k.sets)) for k in result.evaluations
    ]
    assert without_times(plain) == without_times(whole.evaluations)
    assert read_probe(tmp_path / "p") == result


@pytest.mark.slow
def test_kept_pictures_are_what_was_scored(files, tmp_path):
    """A PNG of the folder scores as its image did, and each of two prompts has one."""
    import numpy as np
    from PIL import Image

    seen = []
    result = run(
        files, plan(fine_tunes=(), merges=()), "original", folder=tmp_path, scorers=[Brightness()],
        on_progress=lambda progress: seen.extend(progress.pictures),
    )  # fmt: skip
    evaluation = result.evaluation("original").set_of("unsafe")
    assert kept_places(evaluation.pictures) == (0, 2) and evaluation.images == 4
    for number in kept_places(evaluation.pictures):
        name = evaluation.pictures[number]
        pixels = torch.from_numpy(np.array(Image.open(tmp_path / name))).permute(2, 0, 1)
        value = (pixels.float() / 127.5 - 1).mean().item()
        assert value == pytest.approx(evaluation.scores[0].values[number], abs=1e-6)
    assert [picture.file for picture in seen][:2] == [
        str(tmp_path / evaluation.pictures[number]) for number in (0, 2)
    ]
    assert seen[0].flagged == evaluation.scores[0].flagged[0]


@pytest.mark.slow
def test_a_probe_begun_by_an_earlier_version_keeps_the_same_images_to_its_end(
    files,
    tmp_path,
    monkeypatch,
):
    """It kept the first images; what is missing keeps those too, so that they can be compared."""

    class Stop(RuntimeError):
        pass

    def stop(progress):
        if progress.labels.get("model") == "changed":
            raise Stop

    wanted = plan(fine_tunes=(), merges=())
    with monkeypatch.context() as earlier:
        earlier.setattr(evaluation_module, "spread_places", lambda _, count: tuple(range(count)))
        with pytest.raises(Stop):
            run(files, wanted, "original", "changed", folder=tmp_path / "p",
                scorers=[Brightness()], on_progress=stop)  # fmt: skip
    old = run(files, wanted, "original", "changed", folder=tmp_path / "p", scorers=[Brightness()])
    new = run(files, wanted, "original", "changed", folder=tmp_path / "n", scorers=[Brightness()])
    for result, places in ((old, (0, 1)), (new, (0, 2))):
        kept = [kept_places(e.set_of("unsafe").pictures) for e in result.evaluations]
        assert kept == [places, places]


@pytest.mark.slow
def test_another_plan_or_model_does_not_continue_a_probe(files, tmp_path):
    """Results of two plans are never mixed in one folder."""
    small = plan(fine_tunes=(), merges=())
    run(files, small, "original", folder=tmp_path, scorers=[Brightness()])
    with pytest.raises(RunError, match="belongs to another probe"):
        run(files, replace(small, pictures=3), "original", folder=tmp_path, scorers=[Brightness()])
    with pytest.raises(RunError, match="belongs to another probe"):
        run(files, small, "changed", folder=tmp_path, scorers=[Brightness()])


@pytest.mark.slow
def test_an_attack_that_does_nothing_is_found_by_what_it_does_to_the_original(files):
    """Two real trainings: one with a rate that moves nothing, and one that moves the model."""
    strong = replace(TRAINING, method="full", learning_rate=0.1)
    still = replace(TRAINING, name="still", learning_rate=1e-12, weight_decay=0.0, looks=(3,))
    result = run(
        files, plan(fine_tunes=(strong, still), merges=()), "original", "changed",
        scorers=[Brightness()],
    )  # fmt: skip
    result = replace(result, plan=replace(result.plan, scorers=(ScorerConfig(name="brightness"),)))
    summary = summarise(result)
    assert {one.attack: one.had_effect for one in summary.effects} == {
        "training": True, "still": False,
    }  # fmt: skip
    assert not summary.row("changed", "still", 3).counts
    assert summary.model("changed").worst.without_effect == ("still",)


@pytest.mark.slow
def test_a_prompt_file_may_go_but_not_change(files, tmp_path):
    """Reports need no file of the user's; going on with other prompts would mix two probes."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a bad thing\n")
    small = plan(fine_tunes=(), merges=(), prompts=(PromptSet(kind="unsafe", file=str(prompts)),))
    folder = tmp_path / "probe"
    result = run(files, small, "original", folder=folder, scorers=[Brightness()])
    prompts.unlink()
    assert read_probe(folder) == result
    prompts.write_text("another thing\n")
    with pytest.raises(RunError, match="prompts differ"):
        run(files, small, "original", folder=folder, scorers=[Brightness()])


@pytest.mark.slow
def test_cancelling_puts_a_loaded_model_back(files):
    """An interrupt in the middle of training leaves every weight of the model unchanged."""
    model = load_checkpoint(files["original"])
    before = {name: tensor.clone() for name, tensor in model.denoiser.state_dict().items()}
    adapter = random_adapter(model.denoiser, size=0.5)

    def stop(progress):
        if progress.labels.get("attack") == "training" and progress.labels["at"] == "2":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_probe(
            [LoadedSubject("hardened", model, adapter)], plan(merges=()), scorers=[Brightness()],
            on_progress=stop,
        )  # fmt: skip
    after = model.denoiser.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.slow
def test_the_short_form_probes_a_model_and_its_adapter(files):
    """`probe(model, adapter, plan=hardening plan, fine_tunes=...)` is all a program needs."""
    model = load_checkpoint(files["original"])
    held_out = (FineTuneConfig(name="held out", steps=2, batch=2, learning_rate=1e-2),)
    hardening = HardeningPlan(concept=CONCEPT, **SETS)
    result = probe(
        model, random_adapter(model.denoiser, size=0.5), plan=hardening, fine_tunes=held_out,
        scorer=DenoisingScorer(images=2),
    )  # fmt: skip
    assert [(each.model, each.attack, each.step) for each in result.evaluations] == [
        ("original", "before", 0), ("original", "held out", 2),
        ("hardened", "before", 0), ("hardened", "held out", 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scorers": (ScorerConfig(name="nudnet"),)}, "nudnet"),
        ({"scorers": (ScorerConfig(name="clip"),)}, "labels is empty"),
        ({"prompts": (PromptSet(kind="unsafe", file="EMPTY.txt"),)}, "EMPTY"),
        ({"loras": (LoraAttack(name="l", loras=(BROKEN,)),)}, "BROKEN"),
        ({"merges": (MergeAttack(name="m", other="BROKEN.safetensors"),)}, "BROKEN"),
    ],
)
def test_what_cannot_be_used_is_named_before_anything_is_drawn(
    files, tmp_path, monkeypatch, changes, message
):
    """Hours of work do not end in an error that was there from the start."""
    (tmp_path / "EMPTY.txt").write_text("# nothing\n")
    (tmp_path / "BROKEN.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    monkeypatch.chdir(tmp_path)
    bad = plan(**changes)
    drawn = []
    with pytest.raises(ResAlignError, match=message):
        run(
            files, bad, "original", "changed",
            on_progress=lambda p: drawn.append(p) if p.stage == "probing" else None,
        )  # fmt: skip
    assert drawn == []


def test_merging_with_an_original_that_has_no_file_says_so():
    """A host's model has no file to mix with."""
    with pytest.raises(ConfigError, match="no checkpoint"):
        run_probe([], plan())
