"""Finds every copy of the denoiser in a checkpoint, and says what an export does with it.

Besides the weights that a loader uses by default, a checkpoint may hold the denoiser again: moving
averages in the same file (`model_ema.*`), variants (fp16, non_ema), folders of averages, training
checkpoints, the original single file, backups. Any of them undoes the hardening for whoever loads
it. Each copy is therefore

    hardened   changed as the denoiser itself is: moving averages in a single file, and complete
               copies of equal shapes in the folder of a component of model_index.json
    left out   not written to the result: all other copies in a diffusers folder, and files that
               cannot be opened (pickles, archives, other formats)
    kept       written as it is and named: part of the denoiser inside another component, such as
               a ControlNet; and files that cannot be opened of a component that has no others

A copy in a single file that cannot be mapped to the denoiser is refused, because a file is
rewritten in place and nothing can be left out of it.

Copies are recognised by names: those of the layers that read the text embeddings, in the spelling
of single files or of diffusers, with or without dots, below any prefix. Only headers are read.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...errors import CheckpointError
from ..info import CheckpointInfo
from .copy_value import Copy
from .denoiser_names import denoiser_names, others_tensors
from .folder_files import sort_folder


def copies_of(info: CheckpointInfo) -> tuple[Copy, ...]:
    """Return all further copies of a checkpoint's denoiser; raise if one cannot be dealt with."""
    if info.layout == "diffusers":
        return sort_folder(info).copies
    return averages_copy(moving_averages(info))


def moving_averages(info: CheckpointInfo) -> dict[str, str]:
    """Map each moving average in a single file to the denoiser's tensor that it averages.

    Raises a CheckpointError for a second denoiser, or an average, that cannot be mapped.
    """
    header, names = info.headers[info.path], denoiser_names(info)
    own = {source.name for source in info.sources(info.family.denoiser).values()}
    own |= others_tensors(info).get(info.path, set())
    known = info.family.tensors.moving_averages(info)
    found = {name: known[name] for name in header.tensors if name in known}
    strange = [name for name in header.tensors if name not in own and name not in found]
    if lost := names.among(strange):
        raise CheckpointError(
            f"{info.path.name} holds a second {info.family.denoiser} that cannot be hardened with "
            f"the first: {len(lost)} tensors such as {lost[0]} belong to no known moving average; "
            "give a file without them"
        )
    for name, averaged in found.items():
        entry = header.tensors.get(averaged)
        if entry is None or entry.shape != header.tensors[name].shape:
            shape = f"{list(entry.shape)} there" if entry else "which the file lacks"
            raise CheckpointError(
                f"{info.path.name}: {name} has shape {list(header.tensors[name].shape)}, but it "
                f"should average {averaged}, {shape}: give a file without moving averages"
            )
    return found


def averages_copy(averages: Mapping[str, str]) -> tuple[Copy, ...]:
    """Describe the moving averages of a single file as one copy."""
    prefixes = dict.fromkeys(name.partition(".")[0] + ".*" for name in averages)
    return tuple(
        Copy(prefix, "hardened", sum(name.startswith(prefix[:-1]) for name in averages))
        for prefix in prefixes
    )
