"""The batches of an attack: the samples of each update, in pieces that fit in one pass.

All samples of an update are drawn at once and then cut into passes of `batch`, so that four
batches of two are one batch of eight. Benign samples, those of the concept and those of the
prior share a pass where their sizes agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..data.batches import Draw, draw
from ..data.encoded_file import require_texts
from ..data.encoded_set import EncodedSet
from ..errors import ConfigError
from ..families.base.conditioning import Conditioning
from ..model.encode import encode_tokens, tokenise
from ..model.model import Model
from ..numerics.seeds import generator
from ..plan.attack import FineTuneAttack
from .attack_data import AttackData

_NUMBER = "caption"  # in place of a caption's embedding, which is made anew for each pass


@dataclass(frozen=True, slots=True)
class Pass:
    """Samples that go through the denoiser at once: the first `own` are the attacker's, the others
    the prior's."""

    draw: Draw
    own: int


class AttackBatches:
    """Draws an attack's updates; each depends on the seed and its step only."""

    def __init__(self, model: Model, attack: FineTuneAttack, data: AttackData, seed: int) -> None:
        _require(attack, data)
        self._attack, self._seed, self._process = attack, seed, model.process
        self._captions: LiveCaptions | None = None
        sets = {"data": data.data, "concept": data.concept, "prior": data.prior}
        if attack.text_encoder:
            self._captions = LiveCaptions(model)
            sets = {
                name: None if part is None else self._captions.add(part)
                for name, part in sets.items()
            }
        self._sets = {
            name: None if part is None else part.to(model.device) for name, part in sets.items()
        }

    def update(self, step: int) -> list[Pass]:
        """Yield the passes of one update (counted from 1), on the model's device."""
        attack = self._attack
        random = generator(self._seed, "attack", step)
        count = attack.batch * attack.accumulate
        harmful = 0
        if attack.concept_share:
            chance = float(torch.rand((), generator=random))
            harmful = min(count, int(count * attack.concept_share + chance))
        own = self._drawn("data", count - harmful, random) + self._drawn("concept", harmful, random)
        prior = self._drawn("prior", count if attack.prior_data else 0, random)
        pieces, mates = self._cut(own), self._cut(prior)
        passes = []
        for piece in pieces:
            if mates and mates[0].latents.shape[1:] == piece.latents.shape[1:]:
                passes.append(Pass(_joined([piece, mates.pop(0)]), len(piece)))
            else:
                passes.append(Pass(piece, len(piece)))
        return passes + [Pass(mate, 0) for mate in mates]

    def conditioning(self, one: Pass) -> Conditioning:
        """Return the conditioning of a pass; with gradients if the text encoders are trained."""
        drawn = one.draw.conditioning
        return self._captions.read(drawn) if self._captions else drawn

    def _drawn(self, name: str, count: int, random: torch.Generator) -> list[Draw]:
        encoded = self._sets[name]
        if count == 0 or encoded is None:
            return []
        return [draw(encoded, random, count, self._process, self._attack.caption_dropout)]

    def _cut(self, draws: list[Draw]) -> list[Draw]:
        """Join draws of one size, then cut them into pieces of at most `batch`."""
        if len({part.latents.shape[1:] for part in draws}) == 1:
            draws = [_joined(draws)]
        return [piece for part in draws for piece in _pieces(part, self._attack.batch)]


class LiveCaptions:
    """Captions that the model's text encoders read again on every use.

    In the sets that `add` returns, a caption's embedding is replaced by its number, which is
    drawn (and dropped) as the embedding would be; `read` turns numbers into conditioning.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._texts: list[str] = [""]
        self._tokens: tuple[Tensor, ...] = ()

    def add(self, encoded: EncodedSet) -> EncodedSet:
        require_texts(encoded, "an attack")
        first = len(self._texts)
        self._texts += encoded.texts
        self._tokens = tokenise(self._model, self._texts)
        numbers = torch.arange(first, first + len(encoded.texts))
        return replace(
            encoded,
            conditioning=Conditioning({_NUMBER: numbers.to(self._model.device)}),
            empty=Conditioning({_NUMBER: numbers.new_zeros(1).to(self._model.device)}),
        )

    def read(self, numbers: Conditioning) -> Conditioning:
        """Return the conditioning of caption numbers; encode each distinct caption once."""
        distinct, place = numbers[_NUMBER].unique(return_inverse=True)
        encoded = encode_tokens(self._model, [tokens[distinct] for tokens in self._tokens])
        return encoded[place].beside(numbers.without(_NUMBER))


def _require(attack: FineTuneAttack, data: AttackData) -> None:
    """Raise if data is missing: the attack would silently be a different one."""
    who = f"attack {attack.name}"
    if attack.concept_share < 1 and data.data is None:
        raise ConfigError(f"{who}: its data {attack.data!r} were not given")
    if attack.concept_share > 0 and data.concept is None:
        raise ConfigError(f"{who}: concept_share is {attack.concept_share:g}, but no forget set "
                          "was given")  # fmt: skip
    if attack.prior_data and data.prior is None:
        raise ConfigError(f"{who}: its prior_data {attack.prior_data!r} were not given")
    if attack.flip and not data.mirrored:
        raise ConfigError(f"{who}: flip, but no mirror images were given")


def _pieces(whole: Draw, size: int) -> Iterator[Draw]:
    for start in range(0, len(whole), size):
        part = slice(start, start + size)
        yield Draw(
            whole.latents[part], whole.noise[part], whole.timesteps[part], whole.conditioning[part]
        )


def _joined(draws: list[Draw]) -> Draw:
    if len(draws) == 1:
        return draws[0]
    return Draw(
        torch.cat([part.latents for part in draws]),
        torch.cat([part.noise for part in draws]),
        torch.cat([part.timesteps for part in draws]),
        Conditioning.cat([part.conditioning for part in draws]),
    )
