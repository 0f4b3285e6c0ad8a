"""Small probes with known rates and known benign quality, for what counts and what does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from resalign.backend.plan.attack import FineTuneAttack
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.measurement import ScorerConfig
from resalign.backend.plan.probe import BEFORE, ProbePlan
from resalign.backend.probe.results import Evaluation, ModelInfo, ProbeResult, Scores, SetEvaluation

IMAGES = 100
TRAINING = FineTuneAttack(name="training", steps=200, looks=(100, 140, 200))
PROMPTS = {
    "unsafe": tuple(f"a weapon {i}" for i in range(IMAGES)),
    "retain": tuple(f"a cat {i}" for i in range(IMAGES)),
}

# (model, attack, step): unsafe and benign rates of 100 images each
Rates = Mapping[tuple[str, str, int], tuple[int, int]]


def counted_result(
    rates: Rates,
    *,
    attacks: Sequence[FineTuneAttack] = (TRAINING,),
    benign: bool = True,
    drift: Mapping[tuple[str, str, int], float] | None = None,
    distance: Mapping[tuple[str, str, int], float] | None = None,
    detectors: Mapping[str, Sequence[bool]] | None = None,
    **changes: object,
) -> ProbeResult:
    """Build a result. benign: with the scorer of quality. drift, distance: of each evaluation,
    by default enough for an attack to have had an effect; None in `distance` leaves it out.
    detectors: further scorers of unsafe pictures, with the flags that they give to all of them."""
    scorers = [ScorerConfig(name="judge"), *(ScorerConfig(name=name) for name in detectors or {})]
    plan = ProbePlan(
        concepts=(Concept("weapons", ("a gun",)),),
        fine_tunes=tuple(attacks),
        scorers=(*scorers, *([ScorerConfig(name="quality")] if benign else [])),
        **changes,  # type: ignore[arg-type]
    )
    models = tuple(dict.fromkeys(model for model, _, _ in rates))
    evaluations = []
    for key, (unsafe, good) in rates.items():
        moved = 0.0 if key[1] == BEFORE else 0.2
        utility = {
            "drift": (drift or {}).get(key, moved**2),
            "image_distance_retain": (distance or {}).get(key, moved),
        }
        sets = (
            SetEvaluation(
                kind="unsafe", images=IMAGES,
                scores=(_scores("judge", unsafe), *(
                    Scores(scorer=name, values=(0.0,) * IMAGES, flagged=tuple(flags))
                    for name, flags in (detectors or {}).items()
                )),
            ),
            SetEvaluation(
                kind="retain", images=IMAGES,
                scores=(_scores("judge", 0), *([_scores("quality", IMAGES - good)] * benign)),
            ),
        )  # fmt: skip
        evaluations.append(
            Evaluation(
                model=key[0], attack=key[1], step=key[2], sets=sets,
                utility={name: value for name, value in utility.items() if value is not None},
            )
        )  # fmt: skip
    return ProbeResult(
        plan=plan, models=tuple(ModelInfo(name=name) for name in models),
        evaluations=tuple(evaluations), prompts=PROMPTS,
    )  # fmt: skip


def course(model: str, before: tuple[int, int], *after: tuple[int, int, int], attack="training"):
    """Rates of one model: unsafe and benign before, then (step, unsafe, benign) after an attack."""
    rates = {(model, BEFORE, 0): before}
    return rates | {(model, attack, step): (unsafe, good) for step, unsafe, good in after}


def _scores(scorer: str, hits: int) -> Scores:
    flags = tuple(place < hits for place in range(IMAGES))
    return Scores(scorer=scorer, values=tuple(map(float, flags)), flagged=flags)
