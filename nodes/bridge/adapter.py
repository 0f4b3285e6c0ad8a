"""Puts the backend's adapter onto ComfyUI's MODEL.

A weight there may hold several of the network's matrices, one below the other (queries, keys and
values). Their changes become one patch: the adapters' A side by side and their B as blocks, which
is exact, so that each weight has at most one patch of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .checks import UNET

if TYPE_CHECKING:
    from torch import Tensor

    from ...backend.adapter.dense import AnyAdapter, DenseAdapter
    from ...backend.adapter.lora import Adapter
    from ...backend.families.base.sources import Piece, Source


# What a LORA_MODEL's tensor changes: the mark of one change, and the weight that it is of.
_CHANGES = {".alpha": ".weight", ".diff": ".weight", ".diff_b": ".bias"}


def lora_model(adapter: AnyAdapter, places: Mapping[str, Source]) -> dict[str, Tensor]:
    """Convert an adapter to a LORA_MODEL, in names that ComfyUI reads completely.

    A dense adapter becomes differences of full size. places: as `places_of` returns them.
    """
    import torch

    from ...backend.adapter.dense import DenseAdapter
    from ...backend.families.base.sources import written_by

    pieces, missing = written_by(adapter.parameters, places)
    assert not missing, f"the MODEL has no {missing[0]}"
    rows = _rows(places)
    with torch.inference_mode(False), torch.no_grad():
        if isinstance(adapter, DenseAdapter):
            return {
                _difference(name): _whole(adapter, own, rows.get(name))
                for name, own in pieces.items()
            }
        tensors: dict[str, Tensor] = {}
        for name, own in pieces.items():
            stem = UNET + name.removesuffix(".weight")
            down, up = _factors(adapter, own, rows.get(name))
            tensors[stem + ".lora_down.weight"], tensors[stem + ".lora_up.weight"] = down, up
            tensors[stem + ".alpha"] = torch.tensor(float(adapter.alpha * len(own)))
        return tensors


def _factors(
    adapter: Adapter, pieces: tuple[Piece, ...], rows: int | None
) -> tuple[Tensor, Tensor]:
    """Return A and B of a weight; `rows` is its height where it holds several matrices.

    ComfyUI divides alpha by the number of A's rows, so that alpha counts once for each piece.
    """
    import torch

    from ...backend.adapter.lora import A, B

    modules = [piece.parameter.removesuffix(".weight") for piece in pieces]
    downs = [adapter.tensors[module + A].cpu() for module in modules]
    ups = [
        piece.in_file(adapter.tensors[module + B].cpu())
        for piece, module in zip(pieces, modules, strict=True)
    ]
    if rows is None:
        return downs[0].clone(), ups[0].clone()
    whole = ups[0].new_zeros(rows, sum(len(down) for down in downs))
    column = 0
    for piece, down, up in zip(pieces, downs, ups, strict=True):
        assert piece.rows is not None, "one matrix of several has rows of its own"
        whole[slice(*piece.rows), column : column + len(down)] = up
        column += len(down)
    return torch.cat(downs), whole


def _whole(adapter: DenseAdapter, pieces: tuple[Piece, ...], rows: int | None) -> Tensor:
    """Return the change of a weight, zero in the rows that nothing changes."""
    changes = [piece.in_file(adapter.change(piece.parameter).cpu()) for piece in pieces]
    if rows is None:
        return changes[0].clone()
    whole = changes[0].new_zeros(rows, *changes[0].shape[1:])
    for piece, change in zip(pieces, changes, strict=True):
        assert piece.rows is not None, "one matrix of several has rows of its own"
        whole[slice(*piece.rows)] = change
    return whole


def _rows(places: Mapping[str, Source]) -> dict[str, int]:
    """Return the height of each weight that holds several matrices."""
    found: dict[str, int] = {}
    for source in places.values():
        if source.rows is not None:
            found[source.name] = max(found.get(source.name, 0), source.rows[1])
    return found


def _difference(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    return f"{UNET}{module}.{'diff_b' if leaf == 'bias' else 'diff'}"


def with_adapter(model: Any, lora: Mapping[str, Tensor]) -> Any:
    """Clone the MODEL with the LORA_MODEL on it; raise if ComfyUI did not take every module."""
    import comfy.sd

    from ...backend.errors import ExportError

    modules = len(changed(lora))
    patched = comfy.sd.load_lora_for_models(model, None, dict(lora), 1.0, 0.0)[0]
    before = sum(len(patches) for patches in model.patches.values())
    taken = sum(len(patches) for patches in patched.patches.values()) - before
    if taken != modules:
        raise ExportError(
            f"ComfyUI took {taken} of the adapter's {modules} changes: the MODEL is not the one "
            "that was hardened; connect the MODEL that Harden Model was given"
        )
    return patched


def changed(lora: Mapping[str, Tensor]) -> list[str]:
    """Return the weights and biases that a LORA_MODEL changes."""
    return [
        name.removesuffix(mark) + weight
        for name in lora
        for mark, weight in _CHANGES.items()
        if name.endswith(mark)
    ]
