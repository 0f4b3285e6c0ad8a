"""A user's own LoRA files on a loaded model: no training, seconds, and off again to the bit.

Every tensor of a file must have its place in the model. A LoRA of which half is dropped in
silence looks like a harmless one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..adapter.in_place import put_back
from ..adapter.lora_file import (
    BARE,
    Names,
    Strengths,
    other_kind,
    sort_names,
    strengths,
)
from ..adapter.lora_kinds import kinds_of, weight_change
from ..checkpoint.detect import is_claimed, unsupported
from ..checkpoint.header import Header, read_header
from ..checkpoint.tensors import FLOATS, TensorFile
from ..errors import CheckpointError
from ..families import Family
from ..families.base.sources import Source
from ..families.registry import bases_of_lora
from ..model.model import Model
from ..plan.attack import LoraFile

Place = tuple[str, str]  # component, module

_SHOWN = 3  # names in a message
_SETTINGS = "adapter_config.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Change:
    """What a file does to one weight. names: part to tensor. strength: the user's."""

    file: TensorFile
    stem: str
    kind: str
    names: Mapping[str, str]
    strengths: Strengths
    strength: float

    def of(self, weight: Tensor) -> Tensor:
        """strength · ΔW in float32, on the weight's device. weight: W in float32."""
        name = self.file.path.name
        parts = {part: self._read(tensor, weight.device) for part, tensor in self.names.items()}
        alpha = parts.pop("alpha", None)
        if alpha is not None and alpha.numel() != 1:
            raise CheckpointError(f"{name}: {self.names['alpha']} is no single number")
        strength = None if alpha is None else alpha.item()

        def scale(rank: int | None) -> float:
            return self.strengths.scale(self.stem, rank, strength)

        try:
            return self.strength * weight_change(self.kind, parts, weight, scale)
        except ValueError as error:
            raise CheckpointError(
                f"{name}: the {self.kind} {self.stem} does not fit: {error}"
            ) from None

    def _read(self, name: str, device: torch.device) -> Tensor:
        tensor = self.file.read(Source(name)).to(device).float()
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{self.file.path.name}: {name} holds NaN or infinity: the file is damaged, or its "
                "training diverged"
            )
        return tensor


@contextmanager
def with_loras(model: Model, loras: Sequence[LoraFile]) -> Iterator[Model]:
    """Inside, the model has the LoRAs on it: W + Σ strength · ΔW; afterwards W again, to the bit.

    Each change is that to the model as it was before, so that the order of the files does not
    matter (with DoRA, elsewhere it may), and a strength other than 1 scales W' − W. Sums are made
    in float32 and rounded once. Strengths of 0 leave every bit. Denoiser and text encoders are
    changed; a CheckpointError names the file and what of it cannot be used, with the model
    untouched. At a time one weight's change is in memory, besides the weights replaced (on the
    CPU).
    """
    networks = _networks(model)
    places = model.family.lora.stems(*_modules(model))
    with ExitStack() as stack:
        put = stack.enter_context(put_back())
        with ExitStack() as files:
            changes: dict[tuple[str, str], list[_Change]] = {}
            for lora in loras:
                for target, change in _read(files, model, lora, places):
                    changes.setdefault(target, []).append(change)
            for (component, name), found in changes.items():
                weight = networks[component].get_parameter(name)
                value = _changed(weight, found)  # an unusable file is an error at strength 0 too
                if any(change.strength for change in found):
                    put(weight, value)
        yield model


def _changed(weight: Tensor, changes: Sequence[_Change]) -> Tensor:
    wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    base = wide.float()
    total = sum((change.of(base) for change in changes), start=wide).to(weight.dtype)
    if not torch.isfinite(total).all():
        names = ", ".join(sorted({change.file.path.name for change in changes}))
        kind = str(weight.dtype).removeprefix("torch.")
        raise CheckpointError(
            f"{names}: {changes[0].stem} with it does not fit into {kind}: lower the strength, or "
            "load the checkpoint in float32"
        )
    return total


def _read(
    files: ExitStack, model: Model, lora: LoraFile, places: Mapping[str, Place]
) -> Iterator[tuple[tuple[str, str], _Change]]:
    """(component, parameter) and change, of everything in a file."""
    path = Path(lora.path).expanduser()
    header = read_header(path)
    names = sort_names(header.tensors)
    kinds = _checked(path, header, names, model, places)
    file = files.enter_context(TensorFile(path, header))
    found = _strengths(path, header)
    taken: dict[tuple[str, str], str] = {}
    for stem, parts in names.groups.items():
        component, module = places[stem]
        text = lora.strength if lora.text_strength is None else lora.text_strength
        strength = lora.strength if component == model.family.denoiser else text
        for leaf, (kind, own) in kinds[stem].items():
            target = component, f"{module}.{leaf}"
            if target in taken:
                raise CheckpointError(
                    f"{path.name} changes {module} twice, as {taken[target]} and as {stem}: it was "
                    "put together of two files; give these one by one"
                )
            taken[target] = stem
            own_names = {part: parts[part] for part in own}
            yield target, _Change(file, stem, kind, own_names, found, strength)


def _checked(
    path: Path, header: Header, names: Names, model: Model, places: Mapping[str, Place]
) -> dict[str, dict[str, tuple[str, set[str]]]]:
    """Kinds of each module's changes; a CheckpointError unless every tensor has a place."""
    file, groups = path.name, names.groups
    if not header.tensors:
        raise CheckpointError(f"{file} holds no tensors: it is no LoRA; fetch it again")
    if not groups:
        raise CheckpointError(f"{file} {_what_else(path, header)}")
    if names.rest:
        kind = other_kind(names.rest)
        raise _not_understood(
            file, header, names.rest,
            f"they are of {kind}, which is not supported" if kind else
            "they are of no kind of LoRA known here; the file is damaged, or more than a LoRA",
        )  # fmt: skip
    networks = _networks(model)
    lost = [stem for stem in groups if stem not in places]
    if lost:
        own = [name for stem in lost for name in groups[stem].values()]
        raise _not_understood(file, header, own, _why_no_place(header, model, lost, len(groups)))
    kinds = {stem: kinds_of(set(parts)) for stem, parts in groups.items()}
    broken = [name for stem, kind in kinds.items() if not kind for name in groups[stem].values()]
    if broken:
        raise _not_understood(
            file, header, broken, "their module lacks the other parts of its LoRA, or has those of "
            "two; the file is damaged: fetch it again",
        )  # fmt: skip
    for name, entry in header.tensors.items():
        if entry.dtype not in FLOATS and not name.endswith(".alpha"):
            raise CheckpointError(
                f"{file}: {name} is stored as {entry.dtype}; give the LoRA in floating point"
            )
    found = {stem: kind for stem, kind in kinds.items() if kind}
    for stem, kind in found.items():
        component, module = places[stem]
        for leaf in kind:
            if getattr(networks[component].get_submodule(module), leaf, None) is None:
                wrong = list(groups[stem].values())
                raise _not_understood(file, header, wrong, f"the model's {module} has no {leaf}")
    _check_shapes(file, header, model, {stem: places[stem] for stem in groups}, names)
    return found


def _check_shapes(
    file: str, header: Header, model: Model, places: Mapping[str, Place], names: Names
) -> None:
    """Say of a plain LoRA for another base that it is one, before anything is computed."""
    networks = _networks(model)
    for stem, (component, module) in places.items():
        parts = names.groups[stem]
        if not {"down", "up"} <= set(parts) or "mid" in parts:
            continue
        shape = tuple(networks[component].get_submodule(module).weight.shape)  # type: ignore[union-attr]
        down, up = (header.tensors[parts[side]].shape for side in ("down", "up"))
        if len(down) > 1 and len(up) > 1 and (up[0], down[1]) != shape[:2]:
            raise CheckpointError(
                f"{file}: {stem} is for a layer from {down[1]} to {up[0]} channels, but the "
                f"model's has {shape[1]} and {shape[0]}: {_other_base(header, model)}"
            )


def _strengths(path: Path, header: Header) -> Strengths:
    bare = any(name.startswith(BARE) for name in header.tensors)
    config = path.with_name(_SETTINGS) if bare else None
    if config and not config.is_file():
        if not any(name.endswith(".alpha") for name in header.tensors):
            log.warning(
                "%s has no %s beside it: its alpha is taken to be its rank", path.name, _SETTINGS
            )
        config = None
    try:
        text = config.read_text(encoding="utf-8") if config else None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{config} cannot be read: {error}") from None
    return strengths(path.name, header.metadata, text)


# --- messages ----------------------------------------------------------------------------------


def _not_understood(file: str, header: Header, names: Sequence[str], why: str) -> CheckpointError:
    shown = ", ".join(names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN)
    return CheckpointError(
        f"{file}: {len(names)} of its {len(header.tensors)} tensors cannot be used ({shown}): {why}"
    )


def _what_else(path: Path, header: Header) -> str:
    """Describe a file without a single LoRA tensor."""
    if is_claimed(path, header):
        return (
            "is a whole checkpoint, not a LoRA: give it as the other checkpoint of a merge instead"
        )
    if kind := other_kind(header.tensors):
        return f"is of another kind ({kind}), which is not supported: give a LoRA, LoHa or LoKr"
    other = unsupported(header)
    what = other.what.removesuffix(", not a checkpoint")
    if other.kind == "unknown":
        what = f"no LoRA of a known kind (its first tensor is {min(header.tensors)!r})"
    return f"is {what}: give a LoRA, LoHa, LoKr or DoRA as .safetensors"


def _why_no_place(header: Header, model: Model, lost: Sequence[str], total: int) -> str:
    if any(stem.startswith(BARE) and "text_model" in stem for stem in lost):
        return (
            "PEFT's own files do not say for which of two text encoders they are: save them with "
            "save_lora_weights of diffusers"
        )
    if len(lost) == total or not _may_fit(*_base_of(header), model):
        return _other_base(header, model)
    return (
        f"the model ({model.family.title}) has no such modules, though it has those of the "
        "others; the file is damaged, or for a model with more layers"
    )


def _other_base(header: Header, model: Model) -> str:
    """Why a LoRA does not fit, in words."""
    (families, other), own = _base_of(header), model.family.title
    if _may_fit(families, other, model):
        return (
            f"it was made for another base than this model ({own}), or is damaged: give a LoRA "
            "for this base"
        )
    title = other or " or ".join(family.title for family in families)
    return f"it looks like a LoRA for {title}, but the model is {own}: give one for this base"


def _may_fit(families: tuple[Family, ...], other: str, model: Model) -> bool:
    return not other and (not families or model.family in families)


def _base_of(header: Header) -> tuple[tuple[Family, ...], str]:
    shapes = {name: entry.shape for name, entry in header.tensors.items()}
    return bases_of_lora(shapes, header.metadata)


# --- the model ---------------------------------------------------------------------------------


def _networks(model: Model) -> dict[str, nn.Module]:
    texts = zip(model.family.text_encoders, model.text_encoders, strict=False)
    return {model.family.denoiser: model.denoiser, **dict(texts)}


def _modules(model: Model) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Modules with weights: of the denoiser with their LDM names, of each text encoder."""
    networks = _networks(model)
    stored = {
        name.rpartition(".")[0]: source.name.rpartition(".")[0]
        for name, source in model.family.tensors.denoiser_sources(model.denoiser.config).items()
    }
    own = _with_weights(networks.pop(model.family.denoiser))
    denoiser = {module: stored.get(module, module) for module in own}
    return denoiser, {component: _with_weights(network) for component, network in networks.items()}


def _with_weights(network: nn.Module) -> list[str]:
    return [
        name
        for name, module in network.named_modules()
        if isinstance(getattr(module, "weight", None), nn.Parameter)
    ]
