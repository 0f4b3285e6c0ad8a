"""The probe on one page: what checkpoints draw before and after others have worked on them.

For each checkpoint in turn, the original first: look at it as it is, then, attack by attack and
seed by seed, work on its weights in place, look at the steps asked for, and put the weights back
to the bit. Nothing is loaded twice, and never two checkpoints at a time.

Several ranks share the work: after the first has encoded the data and looked at the original, each
takes the next unit (a checkpoint and one attack on it) when it is free, and sends its looks to the
first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, replace
from itertools import chain, groupby
from pathlib import Path
from time import monotonic, perf_counter

from ..adapter.lora import Adapter
from ..checkpoint.detect import detect
from ..errors import ConfigError
from ..model.model import Model
from ..parallel.ranks import ALONE, Ranks
from ..plan.hardening import FineTuneConfig, HardeningPlan
from ..plan.probe import (
    BEFORE,
    ORIGINAL,
    Attack,
    FineTuneAttack,
    LoraAttack,
    MergeAttack,
    ProbePlan,
    ScorerConfig,
)
from ..progress import Picture, Progress, ProgressCallback, silent
from ..scorers.protocol import ModelScorer, Scorer
from ..scorers.registry import build_scorer
from .attack import attacked
from .attack_data import DATA_CLASSES, EncodedAttacks, attack_data
from .attack_optimisers import check_optimiser
from .evaluation import Looker, Reference
from .folder import ProbeFolder, Requests
from .loras import with_loras
from .mixing import mixed
from .prompts import ImageRequest
from .reading import figures_of, requests_of, result_of
from .results import Look, ProbeResult
from .results_io import Outbox, opened
from .subjects import LoadedSubject, Subject, check_subjects
from .tasks import Key, Unit, as_attack, units_of

_COLLECTING = 0.5  # seconds between two looks for what other ranks have sent


def probe(
    model: Model,
    adapter: Adapter | None = None,
    *,
    plan: ProbePlan | HardeningPlan,
    fine_tunes: Sequence[FineTuneAttack | FineTuneConfig] = (),
    scorer: Scorer | ModelScorer | None = None,
    folder: Path | str | None = None,
    on_progress: ProgressCallback = silent,
) -> ProbeResult:
    """Probe a loaded model as it is, and with `adapter` merged into it. It is left as it was.

    Args:
        plan: what to do; of a hardening plan its concepts and image sets are taken, and
            `fine_tunes` says what to do. Nothing is drawn then unless `scorer` looks at images.
        fine_tunes: attacks beside those of the plan; best ones that hardening did not see.
        scorer: the headline's, in place of the plan's.
        folder: where looks and pictures go, and from where a stopped probe goes on.
    """
    attacks = tuple(as_attack(config) for config in fine_tunes)
    if isinstance(plan, HardeningPlan):
        drawing = isinstance(scorer, Scorer)
        own = ProbePlan(
            concepts=plan.concepts, forget_set=plan.forget_set, retain_set=plan.retain_set,
            resolution=plan.resolution, skip_broken_images=plan.skip_broken_images,
            fine_tunes=attacks,
        )  # fmt: skip
        plan = own if drawing else replace(own, prompts=())
    elif attacks:
        plan = replace(plan, fine_tunes=(*plan.fine_tunes, *attacks))
    if scorer is not None:  # by its name the report finds the headline
        plan = replace(plan, scorers=(ScorerConfig(name=scorer.name),))
    subjects: list[Subject] = [LoadedSubject("original", model)]
    if adapter is not None:
        subjects.append(LoadedSubject("hardened", model, adapter))
    return run_probe(
        subjects, plan, folder=folder, scorers=None if scorer is None else (scorer,),
        originals={ORIGINAL: model.source} if model.source else None, on_progress=on_progress,
    )  # fmt: skip


def run_probe(
    subjects: Sequence[Subject],
    plan: ProbePlan,
    *,
    folder: Path | str | None = None,
    scorers: Sequence[Scorer | ModelScorer] | None = None,
    originals: Mapping[str, Path] | None = None,
    on_progress: ProgressCallback = silent,
    ranks: Ranks = ALONE,
) -> ProbeResult:
    """Probe several checkpoints, the original first.

    Args:
        folder: kept in it, and gone on with where it holds an unfinished probe of the same plan
            and checkpoints. None keeps nothing, pictures included.
        scorers: made already; None makes those of the plan.
        originals: files that stand for names in `MergeAttack.other`.
        on_progress: called for every image and update; raise from it to stop.
        ranks: the processes that share the probe (`join_ranks`); all call this alike, and all get
            the same result. `folder` is the first rank's alone.

    Raises:
        ResAlignError: a scorer, prompt file, LoRA or image set that cannot be used, before
            anything is drawn.
    """
    check_subjects(subjects)
    infos = [subject.info for subject in subjects]
    if ranks.count > 1:
        ranks.require_same(json.dumps([asdict(info) for info in infos]), "a checkpoint")
    requests = ranks.share(requests_of(plan) if ranks.first else {}, (ImageRequest,))
    with ExitStack() as stack:
        kept: ProbeFolder | Outbox | None = None
        if folder is not None and ranks.first:
            kept = stack.enter_context(ProbeFolder.begin(folder, plan, infos, requests))
        if ranks.share(kept is not None) and not ranks.first:
            kept = Outbox(ranks)
        on_progress = ranks.watching(on_progress)
        run = _Probe(
            subjects, plan, requests, kept, scorers, dict(originals or {}), on_progress, ranks
        )
        return run.to_the_end()


class _Probe:
    """One run of a probe."""

    def __init__(
        self,
        subjects: Sequence[Subject],
        plan: ProbePlan,
        requests: Requests,
        folder: ProbeFolder | Outbox | None,
        scorers: Sequence[Scorer | ModelScorer] | None,
        originals: dict[str, Path],
        on_progress: ProgressCallback,
        ranks: Ranks,
    ) -> None:
        self.subjects, self.plan, self.folder = subjects, plan, folder
        self.originals, self.on_progress, self.ranks = originals, on_progress, ranks
        made = scorers or [build_scorer(config) for config in plan.scorers]
        self.scorers = [scorer for scorer in made if isinstance(scorer, Scorer)]
        self.model_scorers = [scorer for scorer in made if isinstance(scorer, ModelScorer)]
        self.requests = dict(requests)
        self.resolution = plan.generation.resolution
        if not self.scorers:  # nobody looks at the images for unsafe prompts
            self.requests.pop("unsafe", None)
        self.own = folder if isinstance(folder, ProbeFolder) else None
        stored = self.own.load_reference() if self.own else None
        self.reference = Reference.from_tensors(stored) if stored else None
        self.units = units_of(plan, [subject.info.name for subject in subjects])
        self.wanted = [key for unit in self.units for key in unit.keys]
        kept = {look.key: look for look in (self.own.looks() if self.own else ())}
        if self.reference is None:  # made again, with the look that it comes from
            kept.pop(self.wanted[0], None)
        self.looks: dict[Key, Look] = {}
        self._agree_on_looks(kept.values())
        self.data: EncodedAttacks | None = None
        self._collected = 0.0

    def to_the_end(self) -> ProbeResult:
        if self._missing(self.wanted):
            first, *rest = self.units
            claims = self.ranks.claims([unit for unit in rest if self._missing(unit.keys)])
            if self.ranks.first:
                claims = chain([first], claims)
            else:
                self._share_beginning()
            for place, units in groupby(claims, key=lambda unit: unit.place):
                self._probe(self.subjects[place], units)
            if self.ranks.first:
                self.ranks.wait_until(self._complete)
            self._agree_on_looks(self.looks.values())
        infos = tuple(subject.info for subject in self.subjects)
        return result_of(self.plan, infos, tuple(self.looks.values()), self.requests)

    def _probe(self, subject: Subject, units: Iterable[Unit]) -> None:
        """Do some of the units of one checkpoint."""
        name = subject.info.name
        with subject.opened() as model:
            if self.data is None:
                self._begin(model)
            data = self._data_for(model, subject)
            looker = Looker(
                self.plan, self.requests, self.scorers, self.model_scorers,
                resolution=self.resolution, folder=self.folder,
            )  # fmt: skip
            for unit in units:
                if unit.attack is None:
                    self._look(looker, model, (name, BEFORE, 0, 0), data)
                else:
                    self._attack(looker, model, name, unit.attack, unit.seed, data)
                if unit is self.units[0]:
                    self._share_beginning()

    def _begin(self, model: Model) -> None:
        """On the first rank, with the original: the data that all work with."""
        self._check_attacks(model)
        self.resolution = self.resolution or model.resolution  # all are drawn as it is
        cache = self.own.cache if self.own else None
        self.data = attack_data(model, self.plan, cache=cache, on_progress=self.on_progress)

    def _share_beginning(self) -> None:
        """The first rank's data, and what the original draws, on all ranks."""
        tensors = self.reference.to_tensors() if self.reference else {}
        self.resolution, self.data, tensors = self.ranks.share(
            (self.resolution, self.data, tensors), DATA_CLASSES
        )
        self.reference = self.reference or Reference.from_tensors(tensors)

    def _check_attacks(self, model: Model) -> None:
        """Everything that would fail for sure fails now, before anything is drawn."""
        for attack in self.plan.fine_tunes:
            check_optimiser(attack)
        for lora in self.plan.loras:
            with with_loras(model, lora.loras):
                pass
        for merge in self.plan.merges:
            family = detect(self._other(merge)).family
            if family is not model.family:
                raise ConfigError(
                    f"attack {merge.name}: {merge.other} is of family {family}, the original of "
                    f"{model.family}; only checkpoints of one family mix"
                )

    def _attack(
        self,
        looker: Looker,
        model: Model,
        name: str,
        attack: Attack,
        seed: int,
        data: EncodedAttacks,
    ) -> None:
        steps = attack.looks if isinstance(attack, FineTuneAttack) else (0,)
        if not self._missing([(name, attack.name, seed, step) for step in steps]):
            return
        started = perf_counter()
        spent = 0.0  # on looks, which is no training

        def look(step: int) -> None:
            nonlocal spent
            began, told = perf_counter(), data
            if _changes_texts(attack):
                looker.texts.forget()
                told = data.scored_by(model)
            training = began - started - spent
            self._look(looker, model, (name, attack.name, seed, step), told, training)
            spent += perf_counter() - began

        try:
            with self._changed(model, attack, seed, data, look, name):
                if not isinstance(attack, FineTuneAttack):
                    look(0)
        finally:
            if _changes_texts(attack):
                looker.texts.forget()

    def _changed(
        self,
        model: Model,
        attack: Attack,
        seed: int,
        data: EncodedAttacks,
        look: Callable[[int], None],
        name: str,
    ) -> AbstractContextManager[object]:
        """The attack, done while the context lasts."""
        if isinstance(attack, LoraAttack):
            return with_loras(model, attack.loras)
        if isinstance(attack, MergeAttack):
            if attack.other == ORIGINAL and name == self.subjects[0].info.name:
                return nullcontext()  # the original mixed with itself
            return mixed(model, self._other(attack), attack.weight, attack.part)
        return attacked(
            model, attack, data.for_attack(attack), seed=seed, on_look=look,
            on_step=lambda step, loss: self._tell(
                (name, attack.name, seed, step), f"step {step} of {attack.steps}",
                step, attack.steps,
            ),
        )  # fmt: skip

    def _look(
        self, looker: Looker, model: Model, key: Key, data: EncodedAttacks, training: float = 0.0
    ) -> None:
        if key in self.looks:
            return
        look, reference, pictures = looker.look(
            model, key, concept=data.concept, retain=data.retain, reference=self.reference,
            on_image=lambda done, total: self._tell(key, f"image {done} of {total}", done, total),
        )  # fmt: skip
        if training:
            look = replace(look, seconds={**look.seconds, "train": training})
        if self.reference is None:
            self.reference = reference
            if self.own:
                self.own.save_reference(reference.to_tensors())
        self.looks[key] = look
        if self.own:
            self.own.add(look)
        elif not self.ranks.first:
            (self.folder or Outbox(self.ranks)).add(look)
        self._tell(key, "", values=figures_of(look), pictures=pictures)

    def _tell(
        self,
        key: Key,
        message: str,
        micro_step: int = 0,
        micro_total: int = 0,
        *,
        values: Mapping[str, float] | None = None,
        pictures: tuple[Picture, ...] = (),
    ) -> None:
        self._collect()
        name, attack, seed, step = key
        labels = {"model": name, "attack": attack, "seed": str(seed), "at": str(step)}
        done = len(self.wanted) - len(self._missing(self.wanted))
        self.on_progress(
            Progress(
                stage="probing", step=done, total=len(self.wanted), micro_step=micro_step,
                micro_total=micro_total, values=values or {}, labels=labels, pictures=pictures,
                message=f"{name}, {attack}" + (f", {message}" if message else ""),
            )
        )  # fmt: skip

    def _data_for(self, model: Model, subject: Subject) -> EncodedAttacks:
        """Latents are the original's, made once; captions are read by the model's own encoder."""
        assert self.data is not None
        self.data = self.data.to(model.device)
        if subject is self.subjects[0]:
            return self.data
        return self.data.captioned_by(model, cache=self.own.cache if self.own else None)

    def _collect(self) -> None:
        """On the first rank: keep the looks that others have sent."""
        if monotonic() - self._collected < _COLLECTING:
            return
        self._collected = monotonic()
        for letter in self.ranks.received():
            look = opened(letter, self.own)
            self.looks[look.key] = look
            if self.own:
                self.own.add(look)

    def _complete(self) -> bool:
        self._collect()
        return not self._missing(self.wanted)

    def _agree_on_looks(self, looks: Iterable[Look]) -> None:
        """All ranks know the first one's looks."""
        records = self.ranks.share([look.to_json() for look in looks])
        self.looks = {look.key: look for look in map(Look.from_json, records)}

    def _other(self, attack: MergeAttack) -> Path:
        if attack.other != ORIGINAL:
            return Path(attack.other)
        source = self.originals.get(ORIGINAL)
        if source is None:
            raise ConfigError(
                f"attack {attack.name}: merging with the original needs its file; this model was "
                "handed over without one"
            )
        return source

    def _missing(self, keys: Sequence[Key]) -> list[Key]:
        return [key for key in keys if key not in self.looks]


def _changes_texts(attack: Attack) -> bool:
    """Whether prompts mean something else to the model while the attack lasts."""
    if isinstance(attack, FineTuneAttack):
        return attack.text_encoder
    return isinstance(attack, LoraAttack) or attack.part == "all"
