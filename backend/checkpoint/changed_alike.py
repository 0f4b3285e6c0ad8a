"""Checks that further copies of the denoiser changed as the denoiser itself did.

For a weight W and its copy E, hardening gives W' = W + ΔW and E' = E + ΔW, each rounded to its own
type. So (E' − E) − (W' − W) is rounding only: its norm is at most ε_E·‖E'‖ + ε_W·‖W'‖, with ε the
spacing of the types relative to a number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from ..families.base.sources import Source
from .export.copies import moving_averages
from .export.folder_files import sort_folder
from .header import Header
from .info import CheckpointInfo
from .tensors import TORCH_DTYPES, TensorFile

Place = tuple[Path, Header, str]  # a tensor: file, header, name


def unlike_copies(source: CheckpointInfo, target: CheckpointInfo) -> tuple[int, list[str]]:
    """Return the number of copied tensors compared, and those that did not change alike."""
    count, unchanged, wrong, due = 0, [], [], 0
    for denoiser, copy in _pairs(target):
        count += 1
        before = [_in(source, target, place) for place in (denoiser, copy)]
        if any(place is None for place in before):
            wrong.append(copy[2])
            continue
        w0, e0 = (_read(place) for place in before if place)
        w1, e1 = _read(denoiser), _read(copy)
        fine, coarse = _spacing(copy), _spacing(denoiser)
        change, other = w1 - w0, e1 - e0
        due += bool(change.any())
        if not other.any() and change.any() and fine <= coarse:
            unchanged.append(copy[2])
        error = (other - change).norm()
        if error > fine * e1.norm() + coarse * w1.norm():
            wrong.append(copy[2])
    # rounding may swallow the change of single tensors, but not that of most
    return count, list(dict.fromkeys([*wrong, *(unchanged if 2 * len(unchanged) > due else ())]))


def _pairs(info: CheckpointInfo) -> Iterator[tuple[Place, Place]]:
    """Yield each tensor of the denoiser that has a copy, with the copy."""
    if info.layout != "diffusers":
        header = info.headers[info.path]
        for copy, name in moving_averages(info).items():
            yield (info.path, header, name), (info.path, header, copy)
        return
    files = sort_folder(info)
    main = _by_name({path: info.headers[path] for path in files.main})
    for group in files.groups[1:]:
        for name, copy in _by_name({path: files.rewritten[path] for path in group}).items():
            if name in main and copy[0] != main[name][0]:
                yield main[name], copy


def _by_name(headers: Mapping[Path, Header]) -> dict[str, Place]:
    return {
        name: (path, header, name) for path, header in headers.items() for name in header.tensors
    }


def _in(source: CheckpointInfo, target: CheckpointInfo, place: Place) -> Place | None:
    """Return the source's tensor of the same name in the same file; None where it has none."""
    from .header import read_header

    path = source.path
    if source.layout == "diffusers":
        path = source.path / place[0].relative_to(target.path)
        if not path.is_file():
            return None
    header = source.headers.get(path) or read_header(path)
    found = header.tensors.get(place[2])
    same = found is not None and found.shape == place[1].tensors[place[2]].shape
    return (path, header, place[2]) if same else None


def _read(place: Place) -> torch.Tensor:
    path, header, name = place
    with TensorFile(path, header) as file:
        return file.read(Source(name)).float()


def _spacing(place: Place) -> float:
    return torch.finfo(TORCH_DTYPES[place[1].tensors[place[2]].dtype]).eps
