"""Plans and jobs as JSON and as files: strict in, canonical out.

    from_json(HardeningPlan, to_json(plan)) == plan

Unknown keys and wrong types are errors that name the field (`plan.fine_tunes[2].steps`). In a
file, paths are relative to the file's folder, and one extra key saves typing:
`[[plan.fine_tune_grid]]` takes lists and stands for all their combinations.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import reprlib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from ..errors import ConfigError
from ..text import json_text
from . import toml_text
from .attack import ORIGINAL
from .auto import decided
from .durable import DistilConfig, EraseConfig, VariedConfig
from .field import classes_of, fields_of, plain_types
from .fine_tune import RETAIN, FineTuneConfig, fine_tune_grid
from .hardening import HardeningPlan
from .job import Job
from .probe import ProbeJob

T = TypeVar("T")

PATH_FIELDS: dict[type, tuple[str, ...]] = {
    cls: paths
    for cls in classes_of(Job, ProbeJob)
    if (paths := tuple(field.name for field in fields_of(cls).values() if field.is_path))
}
GRID = "fine_tune_grid"
_LATER = {  # fields that came after the first runs were kept
    "quantization": "none", "users_at_once": 1,
    "kernels": {"attention": "auto", "memory_format": "auto"},
    "varied": VariedConfig(), "erase": EraseConfig(), "distil": DistilConfig(),
}  # fmt: skip
_LATER_PARTS = {  # fields of a part that came after the part itself
    "varied": ("wide", "without"),
    "erase": ("convolutions", "patch_width", "how", "kept_share", "noise", "reset_share"),
    "distil": (
        "towards",
        "mixed_share",
        "words_share",
        "optimiser",
        "ema",
        "stored_draws",
        "optimiser_waits",
    ),
}
_MOST_OF_A_GRID = 10_000
_GRID_LISTS = ("data", "method", "optimiser", "learning_rate", "steps")


def to_json(value: Any) -> Any:
    """Turn a config value into dicts, lists, strings and numbers: all fields, defaults too."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_json(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    return value


def from_json(cls: type[T], data: Any, *, where: str = "", folder: Path | None = None) -> T:
    """Build a config value from parsed JSON or TOML.

    where: its name in error messages. folder: what relative paths in it are relative to; None
    leaves them as they are.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(
            f"{where or cls.__name__}: expected a table of fields, not {_shown(data)}"
        )
    data = dict(data)
    extra: tuple[FineTuneConfig, ...] = ()
    if cls is HardeningPlan and GRID in data:
        extra = _expand_grids(data.pop(GRID), _join(where, GRID), folder)
    types_by_name = plain_types(cls)
    for key in data:
        if key not in types_by_name:
            raise ConfigError(_unknown(key, where, [*types_by_name, *_sugar(cls)]))
    values = {
        key: _convert(types_by_name[key], value, _join(where, key), folder)
        for key, value in data.items()
    }
    if extra:
        values["fine_tunes"] = (*values.get("fine_tunes", ()), *extra)
    for item in fields(cls):  # type: ignore[arg-type]
        required = item.default is MISSING and item.default_factory is MISSING
        if required and item.name not in values:
            raise ConfigError(f"{_join(where, item.name)} is missing")
    if folder is not None:
        for name in PATH_FIELDS.get(cls, ()):
            if name in values:
                values[name] = _absolute(values[name], folder)
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from None


def load_job(path: Path | str) -> Job:
    """Read a hardening job from a `.toml` or `.json` file."""
    return _load(Job, Path(path))


def load_probe_job(path: Path | str) -> ProbeJob:
    """Read a probe's job from a `.toml` or `.json` file."""
    return _load(ProbeJob, Path(path))


def is_probe_plan(path: Path) -> bool:
    """Return True if a plan file is a probe's: it names checkpoints, not one checkpoint."""
    return "checkpoints" in read_file(path)


def _load(kind: type[T], path: Path) -> T:
    data = read_file(path)
    try:
        return from_json(kind, data, folder=path.resolve().parent)
    except ConfigError as error:
        raise ConfigError(f"{path.name}: {error}") from None


def read_file(path: Path) -> dict[str, Any]:
    """Read a TOML or JSON file."""
    if path.suffix.lower() not in (".toml", ".json"):
        raise ConfigError(f"{path.name}: a plan file ends in .toml or .json")
    try:
        text = json_text.read_bounded(path).decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist; `resalign plan new {path}` writes one to start from"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name} cannot be read: {error}") from None
    if path.suffix.lower() == ".json":
        parse, mistakes = json_text.loads, json_text.JsonError
    else:
        parse, mistakes = toml_text.loads, toml_text.TOMLDecodeError
    try:
        return parse(text)
    except mistakes as error:
        kind = path.suffix[1:].upper()
        raise ConfigError(f"{path.name} is not valid {kind}: {error}") from None


def plan_hash(plan: HardeningPlan) -> str:
    """Return the sha256 of a plan as canonical JSON: sorted keys, no spaces, all defaults.

    Fields that came later are left out at their default, and an `auto` counts as what a CPU makes
    of it, so that older runs are found again.
    """
    plain = to_json(decided(plan))
    for name, default in _LATER.items():
        if plain[name] == to_json(default):
            del plain[name]
        elif name in _LATER_PARTS:
            for field in _LATER_PARTS[name]:
                if plain[name][field] == to_json(getattr(default, field)):
                    del plain[name][field]
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """List each field in which two JSON values differ, as `path: first, not second`."""
    if isinstance(one, dict) and isinstance(other, dict):
        found = []
        for key in sorted({*one, *other}):
            found += differences(one.get(key), other.get(key), _join(where, key))
        return found
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [text for i, (a, b) in pairs for text in differences(a, b, f"{where}[{i}]")]
    if one == other:
        return []
    if isinstance(one, list) and isinstance(other, list):
        return [f"{where}: {len(one)} entries, not {len(other)}"]
    return [f"{where}: {one!r}, not {other!r}"]


def _convert(kind: Any, value: Any, where: str, folder: Path | None) -> Any:
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return _convert(_pick(options, value), value, where, folder)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: expected a list, not {_shown(value)}")
        return tuple(
            _convert(options[0], item, f"{where}[{i}]", folder) for i, item in enumerate(value)
        )
    if origin is Literal:
        if value not in options:
            choices = ", ".join(str(option) for option in options if option != "")
            raise ConfigError(f"{where} is {_shown(value)}; choose from {choices}")
        return value
    if is_dataclass(kind):
        return from_json(typing.cast(type, kind), value, where=where, folder=folder)
    if kind is type(None) and value is None:
        return None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{where}: {_shown(value)} is too large a number") from None
    if kind not in (bool, int, float, str) or type(value) is not kind:
        raise ConfigError(f"{where}: expected {_name(kind)}, not {_shown(value)}")
    return value


def _pick(options: tuple[Any, ...], value: Any) -> Any:
    """Which member of a union a value is meant for: tables are dataclasses, the rest is not."""
    if value is None and type(None) in options:
        return type(None)
    plain = [option for option in options if option is not type(None)]
    for option in plain:
        if typing.get_origin(option) is Literal:
            if value in typing.get_args(option):
                return option
            plain = [other for other in plain if other is not option]
    tables = [option for option in plain if is_dataclass(option)]
    others = [option for option in plain if not is_dataclass(option)]
    return (tables or others if isinstance(value, Mapping) else others or tables)[0]


def _expand_grids(grids: Any, where: str, folder: Path | None) -> tuple[FineTuneConfig, ...]:
    if not isinstance(grids, list | tuple):
        raise ConfigError(
            f"{where}: expected a list of tables ([[plan.{GRID}]]), not {_shown(grids)}"
        )
    kinds = plain_types(FineTuneConfig)
    found: list[FineTuneConfig] = []
    for i, grid in enumerate(grids):
        here = f"{where}[{i}]"
        if not isinstance(grid, Mapping):
            raise ConfigError(f"{here}: expected a table of fields, not {_shown(grid)}")
        values: dict[str, Any] = {}
        for key, value in grid.items():
            if key == "name" or key not in kinds:
                raise ConfigError(_unknown(key, here, [name for name in kinds if name != "name"]))
            if key in _GRID_LISTS:
                choices = value if isinstance(value, list | tuple) else [value]
                value = [_convert(kinds[key], v, f"{_join(here, key)}[{n}]", folder)
                         for n, v in enumerate(choices)]  # fmt: skip
            else:
                value = _convert(kinds[key], value, _join(here, key), folder)
            values[key] = value
        lists = [len(values[name]) for name in _GRID_LISTS if name in values]
        if math.prod(lists) > _MOST_OF_A_GRID:
            raise ConfigError(
                f"{here}: more than {_MOST_OF_A_GRID} combinations; give fewer values"
            )
        try:
            expanded = fine_tune_grid(**values)
        except ConfigError as error:
            raise ConfigError(f"{here}: {error}") from None
        for config in expanded:  # named after the paths as written, then resolved
            found.append(from_json(FineTuneConfig, to_json(config), where=here, folder=folder))
    return tuple(found)


def _absolute(path: str, folder: Path) -> str:
    return path if path in ("", RETAIN, ORIGINAL) else str(folder / Path(path).expanduser())


def _sugar(cls: type) -> list[str]:
    return [GRID] if cls is HardeningPlan else []


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _shown(value: Any) -> str:
    """Return a value for a message, however long and deep it is."""
    return reprlib.repr(value) if isinstance(value, dict | list | int) else repr(value)[:200]


def _name(kind: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return names.get(kind, str(kind))


def _unknown(key: str, where: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the fields here are {', '.join(known)}"
    return f"{_join(where, key)} is not a field of a plan file; {hint}"
