"""The original's predictions on a fixed number of batches, made before training and kept on disk.

The frozen copy of the original is on the device only while they are made; then the network that is
trained is alone there. Steps take the batches in order, and after the last of them again, in
another order each time. As many batches as steps give what a copy that predicts at each step
gives, bit for bit.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..data.batches import Draw, EncodedData, EncodedSet
from ..data.cache import EncodingCache, clear_leftovers, content_key, fingerprint_of
from ..families.base.process import NoiseProcess
from ..numerics.seeds import generator
from ..plan.file import plan_hash
from ..plan.hardening import HardeningPlan

OnPredicted = Callable[[int, int], None]  # batches done, of how many; may raise


@dataclass(slots=True)
class StoredPredictions:
    """Predictions by the number of their batch, from 1: in a folder, or else in main memory.

    key: of all that they depend on besides the number. predict: as the original does. forget:
    drops the original's copy.
    """

    key: str
    store: EncodingCache
    predict: Callable[[Draw], Tensor]
    forget: Callable[[], None]
    on_predicted: OnPredicted = lambda done, of: None
    filled: bool = False
    _memory: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def fill(self, numbers: Sequence[int], draws: Callable[[int], Sequence[Draw]]) -> None:
        """Predict those of the batches that are missing, then drop the original's copy.

        draws: of a batch, by its number.
        """
        if self.store.folder is not None:
            clear_leftovers(self.store.folder)
        missing = [number for number in numbers if not self._holds(number)]
        held = len(numbers) - len(missing)
        self.on_predicted(held, len(numbers))  # at once, as what an earlier session made
        for done, number in enumerate(missing, start=held + 1):
            self._make(number, draws(number))
            self.on_predicted(done, len(numbers))
        self.forget()
        self.filled = True

    def of(self, number: int, draws: Sequence[Draw]) -> list[Tensor]:
        """Return the predictions for the draws of a batch; a damaged entry is made again."""
        if draws[0].latents.is_meta:
            return [torch.zeros_like(draw.latents) for draw in draws]
        key = self._key(number)
        tensors = self.store.load(key) if self.store else self._memory.get(key)
        if tensors is None:
            tensors = self._make(number, draws)
            self.forget()
        device = draws[0].latents.device
        return [tensors[str(place)].to(device) for place in range(len(draws))]

    def _make(self, number: int, draws: Sequence[Draw]) -> dict[str, Tensor]:
        made = {str(place): self.predict(draw) for place, draw in enumerate(draws)}
        if draws[0].latents.is_meta:
            return made
        made = {place: tensor.cpu() for place, tensor in made.items()}
        if self.store:
            self.store.save(self._key(number), made)
        else:
            self._memory[self._key(number)] = made
        return made

    def _holds(self, number: int) -> bool:
        key = self._key(number)
        return self.store.holds(key) or key in self._memory

    def _key(self, number: int) -> str:
        return content_key("prediction", self.key, number)


def stored_key(
    plan: HardeningPlan,
    original: Mapping[str, Tensor],
    data: EncodedData,
    process: NoiseProcess,
) -> str:
    """Return a digest of what predictions depend on: weights, data, noise process and plan."""
    if any(tensor.is_meta for tensor in original.values()):
        return ""
    sets = [data.retain, *([data.varied] if data.varied else []), *data.forget.values()]
    return content_key(
        "original", fingerprint_of(original), plan_hash(plan), *process.fingerprint(),
        *map(_digest, sets), *(_digest_of(anchor.parts) for anchor in data.anchors.values()),
        *([_digest_of(data.words.parts)] if data.words else []),
    )  # fmt: skip


def batch_number(plan: HardeningPlan, step: int) -> int:
    """Return the number of the batch that step `step` trains on: the step itself without a store.

    After all have been met they come again, in an order drawn for each round.
    """
    count = stored_batches(plan)
    if not count or step <= count:
        return step
    turn, place = divmod(step - 1, count)
    order = torch.randperm(count, generator=generator(plan.seed, "distil", "turn", turn))
    return int(order[place]) + 1


def stored_batches(plan: HardeningPlan) -> int:
    """Return how many batches are predicted before training; 0 for none."""
    return math.ceil(plan.distil.stored_draws / plan.distil.batch)


def numbers_left(plan: HardeningPlan, step: int) -> list[int]:
    """Return the batches that the steps from `step` on need, each once."""
    return sorted({batch_number(plan, each) for each in range(step, plan.outer_steps + 1)})


def _digest(encoded: EncodedSet) -> str:
    parts = [_digest_of(encoded.conditioning.parts), _digest_of(encoded.empty.parts)]
    for bucket in encoded.buckets:
        own = {"latents": bucket.latents, "captions": bucket.captions, "weights": bucket.weights}
        parts += [_digest_of(own), _digest_of(bucket.own.parts)]
    return content_key("set", *parts)


def _digest_of(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(plain.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
