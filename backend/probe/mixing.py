"""Mixes a model's weights with another checkpoint's: merges, and attacks made of them.

    W' = (1 − w) · W + w · W_other

between 0 and 1 is a merge as people make them. With the original as the other, and a hardened
checkpoint θ0 + ΔW(θ), w = 1 gives the original back and w = 2 puts −ΔW on it: the adapter
subtracted. Computed as W + w · (W_other − W) in float32, which leaves equal weights as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..adapter.in_place import put_back
from ..checkpoint.detect import detect, detect_denoiser
from ..checkpoint.info import CheckpointInfo
from ..checkpoint.tensors import FLOATS, TensorFile
from ..errors import CheckpointError
from ..families.base.sources import part_shape
from ..model.model import Model
from .networks import networks_of
from .weight_change import ChangeCallback, ChangeMeter

Originals = Mapping[str, Mapping[str, Tensor]]  # component to its state dict
_Read = Callable[[], Tensor]
_SHOWN = 3  # names in a message


@contextmanager
def mixed(
    model: Model,
    other: str | Path | CheckpointInfo | Originals,
    weight: float,
    part: Literal["denoiser", "all"] = "denoiser",
    *,
    on_change: ChangeCallback | None = None,
) -> Iterator[Model]:
    """Mix the model's weights with another's; restore them bit for bit on leaving.

    Args:
        other: a checkpoint file or diffusers folder of the same family, recognised or not, read
            tensor by tensor; or state dicts by component, `{"unet": ..., "text_encoder": ...}`.
        weight: of the other. 0 leaves every bit of the model, 1 gives the other's weights, rounded
            to the model's type; beyond 0 to 1 it extrapolates.
        part: `denoiser`, or `all` for the text encoders too.
        on_change: called with how far the weights were moved.

    In memory there is one tensor of the other at a time, besides the weights that differ (kept on
    the CPU to be put back). A CheckpointError, with the model untouched, says why they cannot be
    mixed.
    """
    networks = {
        component: network
        for component, network in networks_of(model).items()
        if part == "all" or component == model.family.denoiser
    }
    meter = ChangeMeter(networks) if on_change else None
    wanted = {
        (component, name): tensor
        for component, network in networks.items()
        for name, tensor in network.named_parameters()
    }
    with ExitStack() as stack:
        put = stack.enter_context(put_back())
        with ExitStack() as files:
            if isinstance(other, Mapping):
                title, readers = "the other model", _from_memory(other, wanted)
            else:
                info = detect(other) if part == "all" else detect_denoiser(other)
                title, readers = info.path.name, _from_files(files, info, model, wanted)
            for (component, name), read in readers.items():
                own = wanted[component, name]
                value = _between(own, read().to(own.device), weight)
                if value is None:
                    continue
                if not torch.isfinite(value).all():
                    raise CheckpointError(_not_finite(title, f"{component}: {name}", own, weight))
                if meter:
                    meter.add(component, own.detach(), value)
                put(own, value)
        if meter and on_change:
            on_change(meter.found())
        yield model


def _between(own: Tensor, other: Tensor, weight: float) -> Tensor | None:
    """Return W + w · (W_other − W) in W's type; None where that equals W."""
    if weight == 0 and torch.isfinite(other.float()).all():
        return None
    if weight == 1:
        return other.to(own.dtype)
    kind = torch.promote_types(own.dtype, torch.float32)
    start, end = own.detach().to(kind), other.to(kind)
    if torch.equal(start, end):
        return None
    return torch.lerp(start, end, weight).to(own.dtype)


def _from_memory(
    other: Originals, wanted: Mapping[tuple[str, str], Tensor]
) -> dict[tuple[str, str], _Read]:
    found, shapes = {}, {}
    for component, name in wanted:
        tensor = other.get(component, {}).get(name)
        shapes[component, name] = None if tensor is None else tuple(tensor.shape)
        found[component, name] = lambda tensor=tensor: tensor
    _check("the other model", wanted, shapes)
    return found


def _from_files(
    files: ExitStack, info: CheckpointInfo, model: Model, wanted: Mapping[tuple[str, str], Tensor]
) -> dict[tuple[str, str], _Read]:
    """Check that all wanted tensors exist and fit; return a reader of each."""
    path = info.path
    if info.family is not model.family:
        raise CheckpointError(
            f"{path.name} is {info.title}, but the model is {model.family.title}: only "
            "checkpoints of one family can be mixed"
        )
    if info.prediction_type != model.process.prediction_type:
        raise CheckpointError(
            f"{path.name} predicts {info.prediction_type}, but the model "
            f"{model.process.prediction_type}: their weights cannot be combined; mix with a "
            "checkpoint of the same kind"
        )
    if absent := {component for component, _ in wanted} - info.files.keys():
        raise CheckpointError(
            f"{path.name} has no {' and no '.join(sorted(absent))} of its own, and none lies near "
            'it: mix the denoiser alone (part = "denoiser"), or put that file beside it'
        )
    components = {component for component, _ in wanted}
    opened = {
        file: files.enter_context(TensorFile(file, info.headers[file]))
        for component in components
        for file in info.files[component]
    }
    sources = {component: info.sources(component) for component in components}
    found: dict[tuple[str, str], _Read] = {}
    shapes: dict[tuple[str, str], tuple[int, ...] | None] = {}
    for component, name in wanted:
        source = sources[component].get(info.family.tensors.canonical(component, name))
        shapes[component, name] = None
        for file in info.files[component]:
            entry = info.headers[file].tensors.get(source.name) if source else None
            if source is None or entry is None:
                continue
            if entry.dtype not in FLOATS:
                raise CheckpointError(
                    f"{path.name}: {source.name} is stored as {entry.dtype}, not as floating "
                    "point: give the fp16 or fp32 version"
                )
            shapes[component, name] = part_shape(entry.shape, source)
            found[component, name] = partial(opened[file].read, source)
    _check(path.name, wanted, shapes)
    return found


def _check(
    title: str,
    wanted: Mapping[tuple[str, str], Tensor],
    shapes: Mapping[tuple[str, str], tuple[int, ...] | None],
) -> None:
    missing = [f"{component}: {name}" for (component, name), s in shapes.items() if s is None]
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + ", ..." * (len(missing) > _SHOWN)
        raise CheckpointError(
            f"{title} lacks {len(missing)} of the {len(wanted)} tensors to mix ({shown}): it is "
            "incomplete, or of another architecture"
        )
    for (component, name), tensor in wanted.items():
        if shapes[component, name] != tuple(tensor.shape):
            raise CheckpointError(
                f"{title}: {component}: {name} is {list(shapes[component, name] or ())}, in the "
                f"model {list(tensor.shape)}: it is of another architecture"
            )


def _not_finite(title: str, name: str, own: Tensor, weight: float) -> str:
    if not torch.isfinite(own).all():
        return f"{name} holds NaN or infinity in the model itself: fetch or repair its file"
    kind = str(own.dtype).removeprefix("torch.")
    return (
        f"{name} mixed with {title} at weight {weight:g} is NaN or does not fit into {kind}: "
        "repair that file, use a weight nearer to 0, or load the model in float32"
    )
