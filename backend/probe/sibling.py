"""A LoRA trained on another checkpoint of the family, put on the model under test.

Most LoRAs that people use were trained on another checkpoint than the one they put them on: on the
unhardened original, or on the raw model of a distilled one. Hardening never sees that training. The
other checkpoint's denoiser takes the model's place while the adapter is trained, on the captions
as the original reads them; no second model is loaded, and the adapter stays in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from torch import Tensor

from ..checkpoint.info import CheckpointInfo
from ..model.model import Model
from ..plan.attack import FineTuneAttack
from .attack import train
from .attack_batches import AttackBatches
from .attack_data import AttackData
from .attack_weights import trained_weights
from .mixing import mixed
from .weight_change import ChangeCallback

# By attack and seed: the adapter's tensors at each step to evaluate.
Siblings = dict[tuple[str, int], dict[int, list[Tensor]]]


@contextmanager
def with_sibling(
    model: Model,
    attack: FineTuneAttack,
    data: AttackData,
    *,
    other: Path | CheckpointInfo | None,
    seed: int,
    evaluate_at: Callable[[int], None],
    on_step: Callable[[int, float], None],
    siblings: Siblings,
    on_change: ChangeCallback | None = None,
) -> Iterator[Model]:
    """Put the adapter of each evaluated step on the model; on leaving, take it off again.

    other: the checkpoint on which it is trained; None: the model itself. siblings: adapters of
    earlier models; each is trained once. on_change: called before each `evaluate_at` with how far
    the adapter moves this model's weights.
    """
    key = attack.name, seed
    if key not in siblings:
        with mixed(model, other, 1.0) if other else nullcontext():
            siblings[key] = _trained(model, attack, data, seed, on_step)
    with trained_weights(model, attack, seed=seed) as weights:
        for step, tensors in siblings[key].items():
            values = [tensor.to(model.device) for tensor in tensors]
            weights.publish(values)
            if on_change:
                on_change(weights.changes())
            evaluate_at(step)
        yield model


def _trained(
    model: Model,
    attack: FineTuneAttack,
    data: AttackData,
    seed: int,
    on_step: Callable[[int, float], None],
) -> dict[int, list[Tensor]]:
    """Train the adapter on the weights that the model has now; return it at each step."""
    kept: dict[int, list[Tensor]] = {}
    with trained_weights(model, attack, seed=seed) as weights:

        def keep(step: int) -> None:
            kept[step] = [part.detach().to("cpu", copy=True) for part in weights.parameters]

        batches = AttackBatches(model, attack, data, seed)
        train(model, attack, weights, batches, seed, keep, on_step)
        for parameter in weights.parameters:
            parameter.grad = None
    return kept
