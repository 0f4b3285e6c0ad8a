"""What attackers train on: every set that a probe's attacks name, encoded once.

Latents are those of the original's VAE and are shared by all checkpoints of a probe. Captions
are read by each checkpoint's own text encoders: see `EncodedAttacks.captioned_by`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..data.assembly import encode_texts
from ..data.batches import forget_images, shipped_retain_set
from ..data.cache import EncodingCache
from ..data.encoded_file import is_encoded, recaptioned
from ..data.encoded_set import Bucket, EncodedSet, merge
from ..data.latents import encode_image_set, mirror_latents
from ..model.denoiser import Conditioning
from ..model.encode import encoders_on_device, offload_encoders
from ..model.model import Model
from ..plan.attack import FineTuneAttack
from ..plan.fine_tune import RETAIN
from ..plan.images import ImageSet
from ..plan.probe import ProbePlan
from ..progress import ProgressCallback, silent, with_message


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackData:
    """What one attack draws its batches from.

    data: the attack's own set; None where its `concept_share` is 1. concept: the forget set;
    needed where the share is more than 0. prior: DreamBooth's prior preservation set.
    mirrored: each set holds the mirror image of every sample too, which is what `flip` means.
    """

    data: EncodedSet | None
    concept: EncodedSet | None = None
    prior: EncodedSet | None = None
    mirrored: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedAttacks:
    """All sets that the attacks of a probe name.

    forget: by the concept's name. concept: all of them together, each drawn from by the weight
    of its concept. sets: by `data` and `prior_data`; "retain" is `retain` itself. mirrored:
    mirror images of those sets that an attack with `flip` uses, by name; "" is `concept`.
    """

    retain: EncodedSet
    forget: dict[str, EncodedSet]
    concept: EncodedSet
    sets: dict[str, EncodedSet]
    mirrored: dict[str, EncodedSet]

    def for_attack(self, attack: FineTuneAttack) -> AttackData:
        """The sets of one attack; with `flip`, half of each are mirror images."""

        def both(name: str, encoded: EncodedSet) -> EncodedSet:
            return merge([encoded, self.mirrored[name]]) if attack.flip else encoded

        own, prior = attack.data, attack.prior_data
        return AttackData(
            data=both(own, self.sets[own]) if attack.concept_share < 1 else None,
            concept=both("", self.concept) if attack.concept_share > 0 else None,
            prior=both(prior, self.sets[prior]) if prior else None,
            mirrored=attack.flip,
        )

    def captioned_by(self, model: Model, *, cache: Path | str | None = None) -> EncodedAttacks:
        """The same latents with captions as `model` reads them, and not as the original did.

        Who fine-tunes a checkpoint uses its text encoders. Where these are the original's, the
        result equals what `attack_data` gave. Conditioning that was given as such stays.
        """
        done: dict[int, EncodedSet] = {}
        store = EncodingCache(cache)

        def read(encoded: EncodedSet) -> EncodedSet:
            if id(encoded) not in done:
                done[id(encoded)] = recaptioned(
                    encoded, lambda texts: encode_texts(model, texts, cache=store)
                )
            return done[id(encoded)]

        with encoders_on_device(model):
            return EncodedAttacks(
                retain=read(self.retain),
                forget={name: read(part) for name, part in self.forget.items()},
                concept=read(self.concept),
                sets={name: read(part) for name, part in self.sets.items()},
                mirrored={name: read(part) for name, part in self.mirrored.items()},
            )

    def to(self, device: torch.device | str) -> EncodedAttacks:
        """Latents and embeddings on a device; a set used twice stays one."""
        moved: dict[int, EncodedSet] = {}

        def move(encoded: EncodedSet) -> EncodedSet:
            return moved.setdefault(id(encoded), encoded.to(device))

        return EncodedAttacks(
            retain=move(self.retain),
            forget={name: move(part) for name, part in self.forget.items()},
            concept=move(self.concept),
            sets={name: move(part) for name, part in self.sets.items()},
            mirrored={name: move(part) for name, part in self.mirrored.items()},
        )

    def scored_by(self, model: Model) -> EncodedAttacks:
        """The sets that scores look at, retain and concept, as `model` reads them now."""
        return replace(self, forget={}, sets={}, mirrored={}).captioned_by(model)


# What the data are made of: what a rank must know to receive them.
DATA_CLASSES = (EncodedAttacks, EncodedSet, Bucket, Conditioning)


def attack_data(
    model: Model,
    plan: ProbePlan,
    *,
    cache: Path | str | None = None,
    on_progress: ProgressCallback = silent,
) -> EncodedAttacks:
    """Encode what a plan's attacks name, with the original; its encoders then leave the device.

    Retain and forget sets are encoded whether or not an attack uses them: the scores do. Sets
    that the plan leaves out are synthesised, as for a hardening; each folder is encoded once.
    Mirror images of a folder are mirrored before the VAE sees them. Those of a synthesised set,
    which has no pictures, are mirrored latents.

    Args:
        model: the original; all checkpoints of the probe are attacked with its latents.
        cache: folder to keep the tensors in; None keeps nothing.
    """
    resolution = plan.resolution or model.resolution
    done: dict[tuple[ImageSet, bool], EncodedSet] = {}

    def encoded(image_set: ImageSet, what: str, mirrored: bool = False) -> EncodedSet:
        key = image_set, mirrored
        pictures = not image_set.prompts and not is_encoded(image_set.folder)
        if key not in done and mirrored and not pictures:
            done[key] = mirror_latents(encoded(image_set, what))
        if key not in done:
            done[key] = encode_image_set(
                model, image_set, resolution=resolution, cache=cache, mirrored=mirrored,
                skip_broken=plan.skip_broken_images, on_progress=with_message(on_progress, what),
            )  # fmt: skip
        return done[key]

    def named(name: str, mirrored: bool = False) -> EncodedSet:
        return encoded(folders.get(name, retain), f"data {name}", mirrored)

    def concept(mirrored: bool = False) -> EncodedSet:
        parts = [
            encoded(forget[part.name], f"forget set of {part.name}", mirrored)
            for part in plan.concepts
        ]
        return merge(parts, [part.weight for part in plan.concepts]) if len(parts) > 1 else parts[0]

    retain = plan.retain_set or shipped_retain_set(plan.concepts)
    forget = {part.name: forget_images(part, plan.forget_set) for part in plan.concepts}
    names = _names(plan.fine_tunes)
    folders = {name: ImageSet(folder=name) for name in names if name != RETAIN}
    flipped = [attack for attack in plan.fine_tunes if attack.flip]
    with encoders_on_device(model):
        result = EncodedAttacks(
            retain=encoded(retain, "retain set"),
            concept=concept(),
            forget={name: encoded(part, f"forget set of {name}") for name, part in forget.items()},
            sets={name: named(name) for name in names},
            mirrored={name: named(name, mirrored=True) for name in _names(flipped)},
        )
        if any(attack.concept_share for attack in flipped):
            result.mirrored[""] = concept(mirrored=True)
    offload_encoders(model)
    return result


def _names(attacks: Iterable[FineTuneAttack]) -> list[str]:
    """Each data name that is used, once: an attack with the concept alone has none of its own."""
    names = [attack.data for attack in attacks if attack.concept_share < 1]
    names += [attack.prior_data for attack in attacks if attack.prior_data]
    return list(dict.fromkeys(names))
