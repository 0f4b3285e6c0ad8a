"""Checks of a scorer's configuration: fields, packages, files, with one wording of errors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from ..errors import ConfigError
from ..plan.checks import within
from ..plan.measurement import ScorerConfig

_FIELDS = ("weights", "threshold", "labels", "command")


def uses_only(config: ScorerConfig, *used: str) -> None:
    """Raise a ConfigError for a field that is set although this scorer ignores it."""
    for name in _FIELDS:
        if name not in used and getattr(config, name) not in ("", None, ()):
            takes = f"it takes {' and '.join(used)}" if used else "it takes none of these fields"
            raise ConfigError(f"scorer {config.name}: {name} is set but not used; {takes}")


def threshold_of(
    config: ScorerConfig, default: float, low: float = 0.0, high: float = 1.0
) -> float:
    """Return the threshold of the configuration, or the scorer's own."""
    value = default if config.threshold is None else config.threshold
    within(f"scorer {config.name}", "threshold", value, low, high)
    return value


def labels_of(
    config: ScorerConfig, default: Sequence[str], known: Iterable[str]
) -> tuple[str, ...]:
    """Return the labels that count: the configuration's, which must be known, or the default."""
    known = tuple(known)
    for label in config.labels:
        if label not in known:
            near = get_close_matches(label, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? It" if near else "it"
            raise ConfigError(
                f"scorer {config.name}: unknown label {label!r}; {hint} has {', '.join(known)}"
            )
    return config.labels or tuple(default)


def present(*modules: str) -> bool:
    """Return True if top-level modules are installed, without importing them."""
    return all(find_spec(module) is not None for module in modules)


def optional_module(scorer: str, module: str, install: str) -> ModuleType:
    """Import an optional package; raise a ConfigError with the install command if it is missing."""
    if not present(module):
        raise ConfigError(
            f"scorer {scorer}: the package {module} is not installed; install it with: {install}"
        )
    return import_module(module)


def local_folder(config: ScorerConfig, what: str) -> Path:
    """Return `config.weights` as an existing folder."""
    if not config.weights:
        raise ConfigError(f"scorer {config.name}: weights is empty; give {what}")
    folder = Path(config.weights).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"scorer {config.name}: weights {folder} is not a folder; give {what}")
    return folder
