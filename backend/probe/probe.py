"""The probe: what checkpoints draw before and after attacks on their weights.

`probe` measures a loaded model with and without an adapter; `run_probe` any number of checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

from ..adapter.dense import AnyAdapter
from ..checkpoint.detect import detect_denoiser
from ..model.model import Model
from ..parallel.ranks import ALONE, Ranks
from ..plan.attack import ORIGINAL, FineTuneAttack
from ..plan.fine_tune import FineTuneConfig
from ..plan.hardening import HardeningPlan
from ..plan.measurement import ScorerConfig
from ..plan.probe import ProbePlan
from ..progress import ProgressCallback, silent
from ..scorers.protocol import ModelScorer, Scorer
from ..scorers.registry import build_scorer
from .carry_out import OriginalFiles
from .folder import ProbeFolder
from .probe_run import ProbeRun
from .prompts import ImageRequest, plan_requests
from .remote_folder import RemoteFolder
from .results import ProbeResult
from .subjects import LoadedSubject, Subject, check_subjects
from .tasks import as_attack


def probe(
    model: Model,
    adapter: AnyAdapter | None = None,
    *,
    plan: ProbePlan | HardeningPlan,
    fine_tunes: Sequence[FineTuneAttack | FineTuneConfig] = (),
    scorer: Scorer | ModelScorer | None = None,
    folder: Path | str | None = None,
    on_progress: ProgressCallback = silent,
) -> ProbeResult:
    """Probe a loaded model as it is, and with `adapter` merged into it; leave it unchanged.

    Args:
        plan: what to do. A hardening plan only supplies its concepts and image sets, and
            `fine_tunes` says what to do; images are then drawn only if `scorer` scores images.
        fine_tunes: attacks beside those of the plan; preferably ones that hardening did not see.
        scorer: the headline's, in place of the plan's.
        folder: where evaluations and pictures are kept, and from where a stopped probe continues.
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
    if scorer is not None:  # the report finds the headline by this name
        plan = replace(plan, scorers=(ScorerConfig(name=scorer.name),))
    subjects: list[Subject] = [LoadedSubject("original", model)]
    if adapter is not None:
        subjects.append(LoadedSubject("hardened", model, adapter))
    originals = None
    if model.source and plan.merges:
        originals = {ORIGINAL: detect_denoiser(model.source, prediction=model.decided)}
    return run_probe(
        subjects, plan, folder=folder, scorers=None if scorer is None else (scorer,),
        originals=originals, on_progress=on_progress,
    )  # fmt: skip


def run_probe(
    subjects: Sequence[Subject],
    plan: ProbePlan,
    *,
    folder: Path | str | None = None,
    scorers: Sequence[Scorer | ModelScorer] | None = None,
    originals: OriginalFiles | None = None,
    on_progress: ProgressCallback = silent,
    ranks: Ranks = ALONE,
) -> ProbeResult:
    """Probe several checkpoints, the original first.

    Args:
        folder: where the probe is kept; an unfinished probe of the same plan and checkpoints in it
            is continued. None keeps nothing, pictures included.
        scorers: ready-made scorers; None makes those of the plan.
        originals: see `OriginalFiles`.
        on_progress: called for every image and update; raise from it to stop.
        ranks: the processes that share the probe (`join_ranks`). All call this function alike and
            get the same result. Only the first rank writes to `folder`.

    Raises:
        ResAlignError: a scorer, prompt file, LoRA or image set that cannot be used, before
            anything is drawn.
    """
    check_subjects(subjects)
    infos = [subject.info for subject in subjects]
    if ranks.count > 1:
        ranks.require_same(json.dumps([asdict(info) for info in infos]), "a checkpoint")
    if scorers is None:  # before there is a folder: one that cannot be made leaves nothing behind
        scorers = [build_scorer(config) for config in plan.scorers]
    requests = ranks.share(plan_requests(plan) if ranks.first else {}, (ImageRequest,))
    with ExitStack() as stack:
        kept: ProbeFolder | RemoteFolder | None = None
        if folder is not None and ranks.first:
            kept = stack.enter_context(ProbeFolder.begin(folder, plan, infos, requests))
        if ranks.share(kept is not None) and not ranks.first:
            kept = RemoteFolder(ranks)
        run = ProbeRun(
            subjects, plan, requests, folder=kept, scorers=scorers, originals=dict(originals or {}),
            on_progress=ranks.watching(on_progress), ranks=ranks,
        )  # fmt: skip
        return run.finish()
