"""Carries out an attack on a loaded model, whatever its kind, and undoes it afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from ..checkpoint.detect import detect_denoiser
from ..checkpoint.info import CheckpointInfo
from ..errors import ConfigError
from ..model.model import Model
from ..plan.attack import ORIGINAL, Attack, FineTuneAttack, LoraAttack, MergeAttack
from ..plan.probe import ProbePlan
from .attack import attacked
from .attack_data import EncodedAttacks
from .attack_optimisers import check_optimiser
from .loras import with_loras
from .mixing import mixed
from .sibling import Siblings, with_sibling
from .weight_change import ChangeCallback

# Checkpoints that stand for names in `MergeAttack.other`; recognised, where that took a decision.
OriginalFiles = Mapping[str, Path | CheckpointInfo]


def check_attacks(model: Model, plan: ProbePlan, originals: OriginalFiles) -> None:
    """Raise now what would certainly fail later, before anything is drawn."""
    for attack in plan.trainings:
        check_optimiser(attack)
        if attack.text_encoder and model.texts is not model.family.texts:
            raise ConfigError(
                f"attack {attack.name}: its text encoder is the host's, which cannot be trained: "
                "leave text_encoder out, or probe the checkpoint's files"
            )
    for lora in plan.loras:
        with with_loras(model, lora.loras):
            pass
    for merge in plan.merges:
        _check_family(model, merge.name, merge.other, originals, "be merged")
    for attack in plan.trainings:
        if attack.trained_on:
            _check_family(model, attack.name, attack.trained_on, originals, "share a LoRA")


def carry_out(
    model: Model,
    attack: Attack,
    data: EncodedAttacks,
    originals: OriginalFiles,
    *,
    own: EncodedAttacks,
    siblings: Siblings,
    is_original: bool,
    seed: int,
    evaluate_at: Callable[[int], None],
    on_step: Callable[[int, float], None],
    on_change: ChangeCallback | None = None,
) -> AbstractContextManager[object]:
    """Return a context inside which the model is attacked.

    Args:
        originals: see `OriginalFiles`.
        own: the original's data, with which a LoRA is trained on another checkpoint.
        siblings: such LoRAs that were trained already; this adds its own.
        is_original: whether `model` is the probe's original.
        evaluate_at: called by an attack that trains, at each step to evaluate; another kind of
            attack is to be evaluated inside the context.
        on_change: called before each evaluation with how far the attack moved the weights.
    """
    if isinstance(attack, LoraAttack):
        return with_loras(model, attack.loras, on_change=on_change)
    if isinstance(attack, MergeAttack):
        if is_original and with_itself(attack):
            return nullcontext()
        other = _other_checkpoint(attack.name, attack.other, originals)
        return mixed(model, other, attack.weight, attack.part, on_change=on_change)
    if attack.trained_on:
        itself = attack.trained_on == ORIGINAL and is_original
        return with_sibling(
            model, attack, own.for_attack(attack), seed=seed, evaluate_at=evaluate_at,
            on_step=on_step, siblings=siblings, on_change=on_change,
            other=None if itself
            else _other_checkpoint(attack.name, attack.trained_on, originals),
        )  # fmt: skip
    return attacked(
        model, attack, data.for_attack(attack), seed=seed, evaluate_at=evaluate_at,
        on_step=on_step, on_change=on_change,
    )  # fmt: skip


def with_itself(attack: Attack) -> bool:
    """Return True if the attack mixes the probe's original with itself, which changes nothing."""
    return isinstance(attack, MergeAttack) and attack.other == ORIGINAL


def changes_text_encoders(attack: Attack) -> bool:
    """Return True if the attack may change how the model reads prompts."""
    if isinstance(attack, FineTuneAttack):
        return attack.text_encoder
    return isinstance(attack, LoraAttack) or attack.part == "all"


def _check_family(model: Model, name: str, other: str, originals: OriginalFiles, what: str) -> None:
    found = _other_checkpoint(name, other, originals)
    family = (detect_denoiser(found) if isinstance(found, Path) else found).family
    if family is not model.family:
        raise ConfigError(
            f"attack {name}: {other} is of family {family}, the original of {model.family}; only "
            f"checkpoints of one family can {what}"
        )


def _other_checkpoint(name: str, other: str, originals: OriginalFiles) -> Path | CheckpointInfo:
    if other != ORIGINAL:
        return Path(other)
    source = originals.get(ORIGINAL)
    if source is None:
        raise ConfigError(
            f"attack {name}: it needs the original's file; this model was handed over without one"
        )
    return source
