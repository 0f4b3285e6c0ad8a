"""One run of a probe: resume, tasks, evaluations, progress.

For each checkpoint in turn, the original first: evaluate it unattacked; then, for every attack and
seed, change its weights in place, evaluate it at the steps asked for, and restore the weights bit
for bit. No checkpoint is loaded twice, and never two at a time.

Several ranks share the work. After the first has encoded the data and evaluated the original, each
rank takes the next task (a checkpoint and one attack on it) when it is free, and sends its
evaluations to the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, groupby
from time import monotonic, perf_counter

from ..model.model import Model
from ..parallel.ranks import Ranks
from ..plan.attack import Attack, FineTuneAttack
from ..plan.probe import BEFORE, ProbePlan
from ..progress import Picture, Progress, ProgressCallback
from ..scorers.protocol import ModelScorer, Scorer
from .attack_data import DATA_CLASSES, EncodedAttacks, attack_data
from .carry_out import (
    OriginalFiles,
    carry_out,
    changes_text_encoders,
    check_attacks,
    with_itself,
)
from .cost import ProbeCost, image_sets
from .evaluation import Evaluator
from .folder import ProbeFolder, Requests
from .kept_picture import kept_places
from .learning import held_out_loss, measure_learning
from .prompts import counted
from .reference import Reference
from .remote_folder import RemoteFolder, store_received
from .results import UNSAFE, Evaluation, Key, ProbeResult, SetEvaluation
from .results_io import assemble_result, curve_labels, curve_points
from .sibling import Siblings
from .subjects import Subject
from .tasks import Task, plan_tasks, steps_of
from .time_left import ProbeTime
from .weight_change import Changes

_COLLECTING = 0.5  # seconds between two checks for evaluations from other ranks


class ProbeRun:
    """State of one run on one rank; `finish` does the work. Arguments as of `run_probe`."""

    def __init__(
        self,
        subjects: Sequence[Subject],
        plan: ProbePlan,
        requests: Requests,
        *,
        folder: ProbeFolder | RemoteFolder | None,
        scorers: Sequence[Scorer | ModelScorer],
        originals: OriginalFiles,
        on_progress: ProgressCallback,
        ranks: Ranks,
    ) -> None:
        self.subjects, self.plan, self.folder = subjects, plan, folder
        self.originals, self.on_progress, self.ranks = originals, on_progress, ranks
        self.scorers = [scorer for scorer in scorers if isinstance(scorer, Scorer)]
        self.model_scorers = [scorer for scorer in scorers if isinstance(scorer, ModelScorer)]
        self.requests = dict(requests)
        self.resolution = plan.generation.resolution
        if not self.scorers:  # no scorer would see the images of unsafe prompts
            self.requests.pop(UNSAFE, None)
        self.pictures = f" ({words})" if (words := counted(self.requests)) else ""
        self.own = folder if isinstance(folder, ProbeFolder) else None
        stored = self.own.load_reference() if self.own else None
        self.reference = Reference.from_tensors(stored) if stored else None
        self.tasks = plan_tasks(plan, [subject.info.name for subject in subjects])
        self.wanted = [key for task in self.tasks for key in task.keys]
        self.cost = ProbeCost(plan, self.requests, self.tasks, image_sets(plan))
        kept = {evaluation.key: evaluation for evaluation in self._kept_evaluations()}
        if self.reference is None:  # made again, with the evaluation that it comes from
            kept.pop(self.wanted[0], None)
        self.evaluations: dict[Key, Evaluation] = {}
        self._share_evaluations(kept.values())
        self.time = ProbeTime(self.cost, self.tasks, ranks=ranks.count)
        self.time.recall(tuple(self.evaluations.values()))
        self.places = _places_of(self.evaluations.values())
        self.data: EncodedAttacks | None = None
        self.siblings: Siblings = {}
        self._collected = 0.0

    def finish(self) -> ProbeResult:
        """Do this rank's part of what is missing, and return the whole result."""
        if self._missing(self.wanted):
            first, *rest = self.tasks
            claims = self.ranks.claims([task for task in rest if self._missing(task.keys)])
            if self.ranks.first:
                claims = chain([first], claims)
            else:
                self._share_beginning()
            for place, tasks in groupby(claims, key=lambda task: task.place):
                self._do_tasks(self.subjects[place], tasks)
            if self.ranks.first:
                self.ranks.wait_until(self._is_complete)
            self._share_evaluations(self.evaluations.values())
        infos = tuple(subject.info for subject in self.subjects)
        return assemble_result(self.plan, infos, tuple(self.evaluations.values()), self.requests)

    def _do_tasks(self, subject: Subject, tasks: Iterable[Task]) -> None:
        """Do some of the tasks of one checkpoint."""
        name = subject.info.name
        self.time.opens(name)
        with subject.opened() as model:
            if self.data is None:
                self.time.opened()
                self._begin(model)
            data = self._data_for(model, subject)
            self.time.opened()
            evaluator = Evaluator(
                self.plan, self.requests, self.scorers, self.model_scorers,
                resolution=self.resolution, folder=self.folder, places=self.places,
            )  # fmt: skip
            for task in tasks:
                self.time.begins(task)
                if task.attack is None:
                    self._evaluate_at((name, BEFORE, 0, 0), evaluator, model, data)
                else:
                    self._attack(evaluator, model, name, task.attack, task.seed, data)
                self.time.ends()
                if task is self.tasks[0]:
                    self._share_beginning()

    def _begin(self, model: Model) -> None:
        """Encode the data of every attack with the original, on the first rank."""
        check_attacks(model, self.plan, self.originals)
        self.resolution = self.resolution or model.resolution  # all are drawn at the original's
        cache = self.own.cache if self.own else None

        def report(progress: Progress, /) -> None:
            share = self.cost.share_prepared(progress, self.evaluations)
            left = self.time.left(self.evaluations)
            self.on_progress(replace(progress, share=share, left=left))

        self.data = attack_data(model, self.plan, cache=cache, on_progress=report)

    def _share_beginning(self) -> None:
        """Give all ranks the first one's data, and what the original draws."""
        tensors = self.reference.to_tensors() if self.reference else {}
        self.resolution, self.data, tensors = self.ranks.share(
            (self.resolution, self.data, tensors), DATA_CLASSES
        )
        self.reference = self.reference or Reference.from_tensors(tensors)

    def _attack(
        self,
        evaluator: Evaluator,
        model: Model,
        name: str,
        attack: Attack,
        seed: int,
        data: EncodedAttacks,
    ) -> None:
        """Carry out one attack with one seed, and evaluate the model at its steps."""
        if not self._missing([(name, attack.name, seed, step) for step in steps_of(attack)]):
            return
        is_original = name == self.subjects[0].info.name
        before = self.evaluations.get((name, BEFORE, 0, 0))
        if before is not None and is_original and with_itself(attack):
            self._keep(replace(before, attack=attack.name, seconds={}))
            return
        started = perf_counter()
        evaluating = 0.0  # seconds, which do not count as training
        moved: Changes = {}
        held = data.held_out(attack) if isinstance(attack, FineTuneAttack) else None
        loss = held_out_loss(model, held) if held else ()

        def evaluate_at(step: int) -> None:
            nonlocal evaluating
            began, seen = perf_counter(), data
            if changes_text_encoders(attack):
                evaluator.prompts.forget()
                seen = data.scored_by(model)
            training = began - started - evaluating
            self._evaluate_at(
                (name, attack.name, seed, step), evaluator, model, seen, training,
                learning=measure_learning(model, held, loss) if held else None, moved=moved,
            )  # fmt: skip
            evaluating += perf_counter() - began

        def on_change(changes: Changes) -> None:
            nonlocal moved
            moved = changes

        def on_step(step: int, _: float) -> None:
            total = attack.steps if isinstance(attack, FineTuneAttack) else 0
            key = name, attack.name, seed, step
            self.time.trained(step)
            self._report_progress(key, f"step {step} of {total}", step, total, training=True)

        try:
            with carry_out(
                model, attack, data, self.originals, own=self.data or data,
                siblings=self.siblings, seed=seed, evaluate_at=evaluate_at, on_step=on_step,
                on_change=on_change, is_original=is_original,
            ):  # fmt: skip
                if not isinstance(attack, FineTuneAttack):
                    evaluate_at(0)
        finally:
            if changes_text_encoders(attack):
                evaluator.prompts.forget()

    def _evaluate_at(
        self,
        key: Key,
        evaluator: Evaluator,
        model: Model,
        data: EncodedAttacks,
        training: float = 0.0,
        learning: SetEvaluation | None = None,
        moved: Changes | None = None,
    ) -> None:
        """Evaluate the model as it is now, unless this evaluation is there already, and keep it.

        training: seconds that were spent on training before. learning: what it has learnt of its
        data, and moved: how far the attack moved its weights, to be kept with the rest.
        """
        if key in self.evaluations:
            return
        self.time.evaluates()
        evaluation, reference, pictures = evaluator.evaluate(
            model, key, concept=data.concept, retain=data.retain, reference=self.reference,
            on_image=lambda done, total: self._report_progress(
                key, f"picture {done} of {total}{self.pictures}", done, total
            ),
        )  # fmt: skip
        if learning is not None:
            evaluation = replace(evaluation, sets=(*evaluation.sets, learning))
        if moved:
            evaluation = replace(evaluation, weight_change=dict(moved))
        if training:
            seconds = {**evaluation.seconds, "train": training}
            evaluation = replace(evaluation, seconds=seconds)
        if self.reference is None:
            self.reference = reference
            if self.own:
                self.own.save_reference(reference.to_tensors())
        self._keep(evaluation, pictures)

    def _keep(self, evaluation: Evaluation, pictures: tuple[Picture, ...] = ()) -> None:
        """Keep a complete evaluation and report it. pictures: those of a preview."""
        self.evaluations[evaluation.key] = evaluation
        self.time.evaluated(evaluation)
        if self.own:
            self.own.add(evaluation)
        elif not self.ranks.first:
            (self.folder or RemoteFolder(self.ranks)).add(evaluation)
        points = curve_points(evaluation)
        self._report_progress(evaluation.key, "", values=points, pictures=pictures)

    def _report_progress(
        self,
        key: Key,
        message: str,
        micro_step: int = 0,
        micro_total: int = 0,
        *,
        training: bool = False,
        values: Mapping[str, float] | None = None,
        pictures: tuple[Picture, ...] = (),
    ) -> None:
        self._collect()
        name, attack, _, step = key
        done = len(self.wanted) - len(self._missing(self.wanted))
        drawn = micro_step / micro_total if micro_total and not training else 0.0
        share = self.cost.share(self.evaluations, key, step=step, drawn=drawn)
        if not training:
            self.time.drew(drawn)
        self.on_progress(
            Progress(
                stage="probing", step=done, total=len(self.wanted), micro_step=micro_step,
                micro_total=micro_total, values=values or {}, labels=curve_labels(key),
                pictures=pictures, share=share, left=self.time.left(self.evaluations),
                message=f"{name}, {attack}" + (f", {message}" if message else ""),
            )
        )  # fmt: skip

    def _data_for(self, model: Model, subject: Subject) -> EncodedAttacks:
        """Return a checkpoint's data: the original's latents, captions read by its own encoder."""
        assert self.data is not None
        self.data = self.data.to(model.device)
        if subject is self.subjects[0]:
            return self.data
        return self.data.captioned_by(model, cache=self.own.cache if self.own else None)

    def _collect(self) -> None:
        """Keep the evaluations that other ranks have sent; on the first rank."""
        if monotonic() - self._collected < _COLLECTING:
            return
        self._collected = monotonic()
        for message in self.ranks.received():
            evaluation = store_received(message, self.own)
            self.evaluations[evaluation.key] = evaluation
            self.time.add([evaluation])

    def _is_complete(self) -> bool:
        self._collect()
        return not self._missing(self.wanted)

    def _kept_evaluations(self) -> tuple[Evaluation, ...]:
        return self.own.evaluations() if self.own else ()

    def _share_evaluations(self, evaluations: Iterable[Evaluation]) -> None:
        """Give all ranks the first one's evaluations."""
        records = self.ranks.share([evaluation.to_json() for evaluation in evaluations])
        self.evaluations = {each.key: each for each in map(Evaluation.from_json, records)}

    def _missing(self, keys: Sequence[Key]) -> list[Key]:
        return [key for key in keys if key not in self.evaluations]


def _places_of(evaluations: Iterable[Evaluation]) -> dict[str, tuple[int, ...]]:
    """Return which images an earlier session kept, by kind of prompt; earlier versions kept others
    than this one, and pictures of one probe must be of the same images."""
    found: dict[str, tuple[int, ...]] = {}
    for part in (part for evaluation in evaluations for part in evaluation.sets):
        if part.kind not in found and (places := kept_places(part.pictures)):
            found[part.kind] = places
    return found
