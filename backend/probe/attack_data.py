"""Training data of attacks: every set that a probe's attacks name, encoded once.

Latents are those of the original's VAE and are shared by all checkpoints of a probe. Captions
are read by each checkpoint's own text encoders: see `EncodedAttacks.captioned_by`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..data.assembly import encode_texts
from ..data.cache import EncodingCache
from ..data.drawn_sets import forget_images, shipped_retain_set
from ..data.encoded_file import is_encoded, recaptioned
from ..data.encoded_set import Bucket, EncodedSet, merge, split
from ..data.latents import encode_image_set, mirror_latents
from ..errors import ConfigError
from ..families.base.conditioning import Conditioning
from ..model.encode import encoders_on_device, offload_encoders
from ..model.model import Model
from ..plan.attack import FineTuneAttack
from ..plan.concept import shown_name
from ..plan.fine_tune import RETAIN
from ..plan.images import ImageSet
from ..plan.probe import ProbePlan
from ..progress import ProgressCallback, silent, with_message

Keep = Callable[[EncodedSet], EncodedSet]  # which part of a set is drawn from


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackData:
    """The sets from which one attack draws its batches.

    data: the attack's own set; None where its `concept_share` is 1. concept: the forget set;
    needed where the share is more than 0. prior: DreamBooth's prior preservation set.
    mirrored: each set also holds the mirror image of every sample, as `flip` asks.
    """

    data: EncodedSet | None
    concept: EncodedSet | None = None
    prior: EncodedSet | None = None
    mirrored: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedAttacks:
    """Encoded sets of all attacks of a probe.

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
        """Return the sets of one attack; with `flip`, half of each are mirror images."""

        def both(name: str, encoded: EncodedSet, keep: Keep = lambda part: part) -> EncodedSet:
            """Return what an attack draws from: a set, or the part of it to train on."""
            parts = [encoded, self.mirrored[name]] if attack.flip else [encoded]
            return merge(list(map(keep, parts))) if attack.flip else keep(encoded)

        def trained(encoded: EncodedSet) -> EncodedSet:
            return _split(attack, encoded)[0] if attack.held_out else encoded

        own, prior = attack.data, attack.prior_data
        return AttackData(
            data=both(own, self.sets[own], trained) if attack.concept_share < 1 else None,
            concept=both("", self.concept) if attack.concept_share > 0 else None,
            prior=both(prior, self.sets[prior]) if prior else None,
            mirrored=attack.flip,
        )

    def held_out(self, attack: FineTuneAttack) -> EncodedSet | None:
        """Return the samples of an attack's data that it does not train on; None without any."""
        return _split(attack, self.sets[attack.data])[1] if attack.held_out else None

    def captioned_by(self, model: Model, *, cache: Path | str | None = None) -> EncodedAttacks:
        """Keep the latents, and encode the captions with the text encoders of `model`.

        Whoever fine-tunes a checkpoint uses its own text encoders. If they equal the original's,
        so does the result. Conditioning that was given without texts stays.
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
        """Move latents and embeddings to a device; a set used twice stays one."""
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
        """Return only the sets that scores need (retain, concept), captions read by `model`."""
        return replace(self, forget={}, sets={}, mirrored={}).captioned_by(model)


def _split(attack: FineTuneAttack, encoded: EncodedSet) -> tuple[EncodedSet, EncodedSet]:
    try:
        return split(encoded, attack.held_out)
    except ValueError:
        raise ConfigError(
            f"attack {attack.name}: {attack.data} has one image, and held_out needs two or more"
        ) from None


# Classes that a rank needs to receive the data from another.
DATA_CLASSES = (EncodedAttacks, EncodedSet, Bucket, Conditioning)


def attack_data(
    model: Model,
    plan: ProbePlan,
    *,
    cache: Path | str | None = None,
    on_progress: ProgressCallback = silent,
) -> EncodedAttacks:
    """Encode every set of a plan's attacks with the original, and offload its encoders afterwards.

    Retain and forget sets are always encoded, because the scores use them. Sets that the plan
    leaves out are synthesised, as in a hardening run; each folder is encoded once. Images of a
    folder are mirrored before the VAE encodes them; a synthesised set has no images, so its latents
    are mirrored.

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
            encoded(forget[part.name], f"forget set of {shown_name(part.name)}", mirrored)
            for part in plan.concepts
        ]
        return merge(parts, [part.weight for part in plan.concepts]) if len(parts) > 1 else parts[0]

    family = model.family
    retain = plan.retain_set or shipped_retain_set(plan.concepts, family)
    forget = {part.name: forget_images(part, plan.forget_set, family) for part in plan.concepts}
    names = _names(plan.trainings)
    folders = {name: ImageSet(folder=name) for name in names if name != RETAIN}
    flipped = [attack for attack in plan.trainings if attack.flip]
    with encoders_on_device(model):
        result = EncodedAttacks(
            retain=encoded(retain, "retain set"),
            concept=concept(),
            forget={
                name: encoded(part, f"forget set of {shown_name(name)}")
                for name, part in forget.items()
            },
            sets={name: named(name) for name in names},
            mirrored={name: named(name, mirrored=True) for name in _names(flipped)},
        )
        if any(attack.concept_share for attack in flipped):
            result.mirrored[""] = concept(mirrored=True)
    offload_encoders(model)
    return result


def _names(attacks: Iterable[FineTuneAttack]) -> list[str]:
    """List each data name in use once; an attack on the concept only has no data of its own."""
    names = [attack.data for attack in attacks if attack.concept_share < 1]
    names += [attack.prior_data for attack in attacks if attack.prior_data]
    return list(dict.fromkeys(names))
