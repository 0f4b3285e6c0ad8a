"""Carries out an attack on a loaded model, whatever its kind, and undoes it afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from ..checkpoint.detect import detect
from ..errors import ConfigError
from ..model.model import Model
from ..plan.attack import ORIGINAL, Attack, FineTuneAttack, LoraAttack, MergeAttack
from ..plan.probe import ProbePlan
from .attack import attacked
from .attack_data import EncodedAttacks
from .attack_optimisers import check_optimiser
from .loras import with_loras
from .mixing import mixed


def check_attacks(model: Model, plan: ProbePlan, originals: Mapping[str, Path]) -> None:
    """Raise now what would certainly fail later, before anything is drawn."""
    for attack in plan.trainings:
        check_optimiser(attack)
    for lora in plan.loras:
        with with_loras(model, lora.loras):
            pass
    for merge in plan.merges:
        other = _other_checkpoint(merge, originals)
        family = detect(other).family
        if family is not model.family:
            raise ConfigError(
                f"attack {merge.name}: {merge.other} is of family {family}, the original of "
                f"{model.family}; only checkpoints of one family can be merged"
            )


def carry_out(
    model: Model,
    attack: Attack,
    data: EncodedAttacks,
    originals: Mapping[str, Path],
    *,
    is_original: bool,
    seed: int,
    evaluate_at: Callable[[int], None],
    on_step: Callable[[int, float], None],
) -> AbstractContextManager[object]:
    """Return a context inside which the model is attacked.

    Args:
        originals: files that stand for names in `MergeAttack.other`.
        is_original: whether `model` is the probe's original.
        evaluate_at: called by an attack that trains, at each step to evaluate; another kind of
            attack is to be evaluated inside the context.
    """
    if isinstance(attack, LoraAttack):
        return with_loras(model, attack.loras)
    if isinstance(attack, MergeAttack):
        if attack.other == ORIGINAL and is_original:
            return nullcontext()  # the original mixed with itself
        other = _other_checkpoint(attack, originals)
        return mixed(model, other, attack.weight, attack.part)
    return attacked(
        model, attack, data.for_attack(attack), seed=seed, evaluate_at=evaluate_at, on_step=on_step
    )


def changes_text_encoders(attack: Attack) -> bool:
    """Return True if the attack may change how the model reads prompts."""
    if isinstance(attack, FineTuneAttack):
        return attack.text_encoder
    return isinstance(attack, LoraAttack) or attack.part == "all"


def _other_checkpoint(attack: MergeAttack, originals: Mapping[str, Path]) -> Path:
    if attack.other != ORIGINAL:
        return Path(attack.other)
    source = originals.get(ORIGINAL)
    if source is None:
        raise ConfigError(
            f"attack {attack.name}: merging with the original needs its file; this model was "
            "handed over without one"
        )
    return source
