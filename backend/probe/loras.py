"""Applies a user's own LoRA files to a loaded model, without training, and removes them again.

Every tensor of a file must have its place in the model: a LoRA of which half is dropped silently
would look harmless.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..adapter.in_place import put_back
from ..adapter.lora_file import BARE, Strengths, sort_names, strengths
from ..adapter.lora_kinds import weight_change
from ..checkpoint.header import Header, read_header
from ..checkpoint.tensors import TensorFile
from ..errors import CheckpointError
from ..families.base.sources import Source
from ..model.model import Model
from ..plan.attack import LoraFile
from ..text import json_text
from .lora_check import Place, check_lora
from .networks import modules_of, networks_of
from .weight_change import ChangeCallback, ChangeMeter

_SETTINGS = "adapter_config.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Change:
    """Change of one weight by a file. names: part to tensor. strength: the user's."""

    file: TensorFile
    stem: str
    kind: str
    names: Mapping[str, str]
    strengths: Strengths
    strength: float

    def of(self, weight: Tensor) -> Tensor:
        """Return strength · ΔW in float32, on the weight's device. weight: W in float32."""
        name = self.file.path.name
        parts = {part: self._read(tensor, weight.device) for part, tensor in self.names.items()}
        alpha = parts.pop("alpha", None)
        if alpha is not None and alpha.numel() != 1:
            raise CheckpointError(f"{name}: {self.names['alpha']} is not a single number")
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
def with_loras(
    model: Model, loras: Sequence[LoraFile], *, on_change: ChangeCallback | None = None
) -> Iterator[Model]:
    """Apply LoRAs to the model, W + Σ strength · ΔW; restore W bit for bit on leaving.

    Each change is relative to the unchanged model, so that the order of the files does not matter
    (with DoRA, in other programs, it may), and a strength other than 1 scales W' − W. Sums are
    computed in float32 and rounded once. A strength of 0 changes nothing. Denoiser and text
    encoders are changed. Memory holds one weight's change at a time, besides the replaced weights
    (on the CPU). on_change is called with how far the weights were moved.

    Raises:
        CheckpointError: a file, or a part of it, cannot be used; the model is unchanged.
    """
    networks = networks_of(model)
    places = model.family.lora.stems(*modules_of(model))
    meter = ChangeMeter(networks) if on_change else None
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
                    if meter:
                        meter.add(component, weight.detach(), value)
                    put(weight, value)
        if meter and on_change:
            on_change(meter.found())
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
    """Yield (component, parameter) and change for everything in a file."""
    path = Path(lora.path).expanduser()
    header = read_header(path)
    names = sort_names(header.tensors)
    kinds = check_lora(path, header, names, model, places)
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
        text = json_text.read_bounded(config).decode("utf-8") if config else None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{config} cannot be read: {error}") from None
    return strengths(path.name, header.metadata, text)
