"""Checks that every tensor of a LoRA file has its place in a model; explains what does not fit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..adapter.lora_file import BARE, Names, other_kind
from ..adapter.lora_kinds import kinds_of
from ..checkpoint.header import Header
from ..checkpoint.not_a_lora import base_of, looks_like, may_fit, why_not_a_lora
from ..checkpoint.tensors import FLOATS
from ..errors import CheckpointError
from ..model.model import Model
from .networks import networks_of

Place = tuple[str, str]  # component, module

_SHOWN = 3  # names in a message


def check_lora(
    path: Path, header: Header, names: Names, model: Model, places: Mapping[str, Place]
) -> dict[str, dict[str, tuple[str, set[str]]]]:
    """Return the kinds of each module's changes; raise a CheckpointError if any has no place."""
    file, groups = path.name, names.groups
    if why := why_not_a_lora(path, header):
        raise CheckpointError(why)
    if names.rest:
        kind = other_kind(names.rest)
        raise _not_understood(
            file, header, names.rest,
            f"they are of {kind}, which is not supported" if kind else
            "they are of no kind of LoRA known here; the file is damaged, or more than a LoRA",
        )  # fmt: skip
    networks = networks_of(model)
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
    _refuse_unknown_strength(file, header, groups)
    found = {stem: kind for stem, kind in kinds.items() if kind}
    for stem, kind in found.items():
        component, module = places[stem]
        for leaf in kind:
            if getattr(networks[component].get_submodule(module), leaf, None) is None:
                wrong = list(groups[stem].values())
                raise _not_understood(file, header, wrong, f"the model's {module} has no {leaf}")
    _check_shapes(file, header, model, {stem: places[stem] for stem in groups}, names)
    return found


def _refuse_unknown_strength(
    file: str, header: Header, groups: Mapping[str, Mapping[str, str]]
) -> None:
    """Refuse rank-stabilised LoKr whose factors are whole matrices: LyCORIS trains it at
    alpha / √rank, but the file holds no rank, and the programs that load it take 1."""
    try:
        arguments = json.loads(header.metadata.get("ss_network_args", "{}"))
    except (ValueError, RecursionError):
        arguments = None
    said = arguments.get("rs_lora") if isinstance(arguments, dict) else None
    if str(said).lower() not in ("true", "1"):
        return
    whole = [stem for stem, parts in groups.items() if {"lokr_w1", "lokr_w2"} <= set(parts)]
    if whole:
        raise CheckpointError(
            f"{file}: {len(whole)} modules such as {whole[0]} are a LoKr of whole matrices "
            "that was trained with rs_lora (ss_network_args): the file does not say its strength; "
            "give one that was trained without rs_lora"
        )


def _check_shapes(
    file: str, header: Header, model: Model, places: Mapping[str, Place], names: Names
) -> None:
    """Raise if a plain LoRA is for another base, before anything is computed."""
    networks = networks_of(model)
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


def _not_understood(file: str, header: Header, names: Sequence[str], why: str) -> CheckpointError:
    shown = ", ".join(names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN)
    return CheckpointError(
        f"{file}: {len(names)} of its {len(header.tensors)} tensors cannot be used ({shown}): {why}"
    )


def _why_no_place(header: Header, model: Model, lost: Sequence[str], total: int) -> str:
    if any(stem.startswith(BARE) and "text_model" in stem for stem in lost):
        return (
            "PEFT's own files do not say for which of two text encoders they are: save them with "
            "save_lora_weights of diffusers"
        )
    if len(lost) == total or not may_fit(*base_of(header), model.family):
        return _other_base(header, model)
    return (
        f"the model ({model.family.title}) has no such modules, though it has those of the "
        "others; the file is damaged, or for a model with more layers"
    )


def _other_base(header: Header, model: Model) -> str:
    """Explain why a LoRA does not fit."""
    families, other = base_of(header)
    if may_fit(families, other, model.family):
        return (
            f"it was made for another base than this model ({model.family.title}), or is damaged: "
            "give a LoRA for this base"
        )
    return looks_like(families, other, model.family)
