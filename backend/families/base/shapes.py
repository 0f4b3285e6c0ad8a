"""Shapes of stored tensors by name, from which a network's config is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol

from ...errors import CheckpointError

P = ParamSpec("P")


class StoredTensor(Protocol):
    """One entry of a safetensors header. dtype: the format's own name, e.g. `F16`."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def numel(self) -> int: ...


class Shapes:
    """The tensors of one component: names without their prefix. file: named in errors."""

    def __init__(self, file: str, shapes: Mapping[str, tuple[int, ...]], prefix: str = "") -> None:
        self.file, self._shapes, self.prefix = file, shapes, prefix

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self._shapes

    def __getitem__(self, name: str) -> tuple[int, ...]:
        shape = self._shapes.get(self.prefix + name)
        if not shape:
            raise CheckpointError(
                f"{self.file} lacks the tensor {self.prefix + name}: it is incomplete or of an "
                "unknown layout; use a complete checkpoint of a supported family"
            )
        return shape

    def items(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield names without prefix, and shapes."""
        for name, shape in self._shapes.items():
            if name.startswith(self.prefix):
                yield name[len(self.prefix) :], shape

    def count(self, template: str) -> int:
        """Count the names that `template` gives with 0, 1, 2 ... for its `*`."""
        found = 0
        while template.replace("*", str(found)) in self:
            found += 1
        return found


@contextmanager
def reading_shapes(who: str) -> Iterator[None]:
    """Turn the errors of tensors with too few dimensions, or numbers of layers that are 0, into a
    CheckpointError that names `who`."""
    try:
        yield
    except (ValueError, IndexError, ArithmeticError) as error:
        raise CheckpointError(
            f"{who}: its tensors do not have the shapes that their names promise "
            f"({type(error).__name__}: {error}); it is damaged, so fetch it again"
        ) from error


def reads_shapes(
    read: Callable[Concatenate[Shapes, P], dict[str, Any]],
) -> Callable[Concatenate[Shapes, P], dict[str, Any]]:
    """Let a function that reads a config name the file of its shapes in errors: a component may lie
    in another file than the checkpoint."""

    @wraps(read)
    def checked(shapes: Shapes, *args: P.args, **kwargs: P.kwargs) -> dict[str, Any]:
        with reading_shapes(shapes.file):
            return read(shapes, *args, **kwargs)

    return checked


def check_same_names(who: str, wanted: set[str], found: set[str]) -> None:
    """Raise unless a host's tensors are exactly those of the network."""
    missing, surplus = sorted(wanted - found), sorted(found - wanted)
    if missing or surplus:
        raise CheckpointError(
            f"{who}: {len(missing)} tensors missing ({', '.join(missing[:3])}), {len(surplus)} "
            f"unexpected ({', '.join(surplus[:3])}); it is incomplete, or a variant that is not "
            "supported: use the checkpoint that it was made from"
        )
