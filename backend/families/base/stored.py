"""A stored model as a family sees it: names, shapes, types, metadata; never its weights.

Families do not open files. Whoever does (`checkpoint/`) hands them one of these values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, cast

from .refuse import Other, other_kind
from .shapes import StoredTensor

if TYPE_CHECKING:
    from .process import Prediction


class Decision(NamedTuple):
    """A caller's decision on a model, in place of its file's."""

    prediction: Prediction
    zero_snr: bool  # the schedule ends in pure noise


DECISIONS = {
    "epsilon": Decision("epsilon", zero_snr=False),
    "v": Decision("v_prediction", zero_snr=False),
    "v-zsnr": Decision("v_prediction", zero_snr=True),
}


Decided = Literal["", "epsilon", "v", "v-zsnr"]  # a key of `DECISIONS`, or none


def decision_of(prediction: str, zero_snr: bool) -> Decided:
    """Return the key of `DECISIONS` for what a model predicts; empty where none describes it."""
    kinds = [name for name, kind in DECISIONS.items() if kind.prediction == prediction]
    exact = [name for name in kinds if DECISIONS[name].zero_snr == zero_snr]
    return cast(Decided, (exact or kinds or [""])[0])


@dataclass(frozen=True)
class Companion:
    """A component that people keep in a file of its own, and how that file is found.

    component: its name. what: for readers, e.g. `text encoder (Qwen3 4B)`. usual: names that such
    files have, without their ending, the likeliest first. folders: beside which they usually lie.
    fits: says of a file whether it holds the component.
    """

    component: str
    what: str
    usual: tuple[str, ...]
    folders: tuple[str, ...]
    fits: Callable[[StoredFile], bool]


@dataclass(frozen=True)
class StoredFile:
    """A single weights file.

    read: the values of one small tensor; empty if it cannot decode it. decided: a key of
    `DECISIONS` where the caller decides what the model predicts. path: where it lies. beside: finds
    a companion of this file, or raises a CheckpointError that says how to give it. alone: only the
    components that the file holds itself are described.
    """

    name: str
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]
    read: Callable[[str], list[float]]
    decided: str = ""
    path: Path | None = None
    beside: Callable[[Companion], StoredFile] | None = None
    alone: bool = False

    @cached_property
    def other(self) -> Other | None:
        """Say what it is if it is surely not a checkpoint of a family that is known here."""
        return other_kind(self.tensors)


@dataclass(frozen=True)
class StoredFolder:
    """A diffusers folder. index: of model_index.json. read: a JSON file of it, by its path."""

    path: Path
    index: Mapping[str, Any]
    read: Callable[[str], dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """A family's findings about a file or a folder.

    configs: by component and `scheduler`, in diffusers' form. prefixes: what names of each
    component begin with in a single file. prediction: what the denoiser predicts, as the noise
    process spells it. resolution: native side in pixels. names: of models that it was made from.
    files: of the components that lie in a file of their own. distilled: how the model seems to have
    been distilled and what says so, where the family knows more than names in general do.
    """

    configs: dict[str, dict[str, Any]]
    prefixes: dict[str, str]
    prediction: str
    resolution: int
    names: tuple[str, ...] = ()
    files: Mapping[str, Path] = field(default_factory=dict)
    distilled: str = ""


class Checkpoint(Protocol):
    """Fields that a family reads of a recognised checkpoint: `checkpoint.info.CheckpointInfo`."""

    @property
    def layout(self) -> str: ...
    @property
    def configs(self) -> Mapping[str, Mapping[str, Any]]: ...
    @property
    def prefixes(self) -> Mapping[str, str]: ...
    def names(self, component: str) -> frozenset[str]:
        """Names of all tensors in the files that hold a component."""
        ...
