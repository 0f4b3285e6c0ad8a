"""Stores a few of the weights that a run began with, to recognise its checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ..backend.checkpoint.info import CheckpointInfo
    from ..backend.families.base.sources import Source

_MODULES = 8
_VALUES = 8
_RELATIVE = 4e-3  # a host may have rounded the file's weights to 8 bits of mantissa


def samples_of(weights: Mapping[str, Tensor], modules: Iterable[str]) -> dict[str, list[float]]:
    """Sample values from the weights of some modules. weights: `<module>.weight` to tensor."""
    names = sorted(modules)
    chosen = names[:: max(1, len(names) // _MODULES)][:_MODULES]
    return {name: _values(weights[name + ".weight"]) for name in chosen}


def difference(weights: Mapping[str, Tensor], samples: Mapping[str, list[float]]) -> str:
    """Return which module has other values than were sampled; empty if all agree.

    weights: `<module>.weight` of the sampled modules.
    """
    import torch

    for module, values in samples.items():
        found = torch.tensor(_values(weights[module + ".weight"]))
        if not torch.allclose(found, torch.tensor(values), rtol=_RELATIVE, atol=1e-6):
            return f"{module} has other weights"
    return ""


def check_samples(path: Path, samples: Mapping[str, list[float]]) -> None:
    """Raise an ExportError unless the checkpoint file holds the sampled weights."""
    if why := unlike(path, samples):
        raise _other(path, why)


def unlike(path: Path, samples: Mapping[str, list[float]]) -> str:
    """Return how a checkpoint file differs from the sampled weights; empty if it does not."""
    from ..backend.checkpoint.detect import detect

    info = detect(path, otherwise="epsilon", alone=True)  # weights do not depend on it
    denoiser = info.family.denoiser
    return file_difference(info, info.sources(denoiser), samples, info.files[denoiser])


def file_difference(
    info: CheckpointInfo,
    sources: Mapping[str, Source],
    samples: Mapping[str, list[float]],
    files: Iterable[Path],
) -> str:
    """Return which sampled module a checkpoint lacks or holds otherwise; empty if none.

    sources: where the files of the checkpoint in question keep each `<module>.weight`.
    """
    from ..backend.checkpoint.tensors import TensorFile

    for module in samples:
        if module + ".weight" not in sources:
            return f"it has no {module}"
    for file in files:
        header = info.headers[file]
        with TensorFile(file, header) as tensors:
            for module, values in samples.items():
                source = sources[module + ".weight"]
                if source.name not in header.tensors:
                    continue
                held = {module + ".weight": tensors.read(source)}
                if why := difference(held, {module: values}):
                    return why
    return ""


def _other(path: Path, why: str) -> Exception:
    from ..backend.errors import ExportError

    return ExportError(
        f"{path.name} is not the checkpoint that this run hardened ({why}): choose that one in "
        "`source`, or write from the loaded model"
    )


def _values(tensor: Tensor) -> list[float]:
    import torch

    flat = tensor.detach().reshape(-1)
    places = torch.linspace(0, len(flat) - 1, min(_VALUES, len(flat)), dtype=torch.double).long()
    return flat[places.to(flat.device)].float().tolist()
