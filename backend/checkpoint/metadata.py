"""Header fields of an exported checkpoint: ModelSpec and provenance.

ModelSpec 1.0.1 (https://github.com/Stability-AI/ModelSpec): `sai_model_spec`, `architecture`,
`implementation`, `title`, `resolution` must be there; `date` and `hash_sha256` should: the latter
is SHA-256 of all bytes after the header, with `0x` before it. Fields of the source are kept,
except those that no longer hold: title, date and hashes.

`resalign.*` is ours: one key per field of `Provenance`, text as it is, anything else as JSON. Only
the standard library is used, so that reading a header stays a matter of milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata as installed
from typing import Any

from ..errors import ConfigError
from ..families import Family
from ..families.base.overrides import CONFIG_KEY
from ..families.base.stored import DECISIONS
from ..text import json_text

PREFIX = "resalign."
NO_HASH = "0" * 64  # holds the place of a SHA-256 until it is known
_IMPLEMENTATION = {  # as kohya's trainer writes it, which hosts already know
    "ldm": "https://github.com/Stability-AI/generative-models", "diffusers": "diffusers",
}  # fmt: skip
_STALE = ("modelspec.hash_", "sshs_")  # hashes of the source's weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Provenance of a hardened checkpoint. All of it is written to the file's header: no paths.

    method: how it was made, in words. plan_sha256: of the plan in canonical JSON. seed: the plan's.
    source: file or folder name. source_sha256: of the whole file (of the U-Net's file in a
    folder); filled in by the export.
    base_model: id or URL of the source, license: of the result, where the publisher gives them.
    copies: further copies of the denoiser in the result: `export.copy_value.recorded`.
    training: figures of the run; probe: of the measurement after it, empty where not measured.
    versions: of the packages that wrote the file; filled in by the export.
    """

    method: str = "ResAlign"
    concepts: tuple[str, ...] = ()
    plan_sha256: str = ""
    seed: int | None = None
    source: str = ""
    source_sha256: str = ""
    touched_tensors: int = 0
    copies: tuple[Mapping[str, Any], ...] = ()
    base_model: str = ""
    license: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    probe: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "concepts", tuple(self.concepts))
        object.__setattr__(self, "copies", tuple(self.copies))

    def to_json(self) -> dict[str, Any]:
        record = json.loads(json.dumps(asdict(self), allow_nan=False))
        if not self.copies:  # earlier versions refuse fields that they do not know
            del record["copies"]
        return record

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> Provenance:
        unknown = sorted(set(record) - _FIELDS)
        if unknown:
            raise ConfigError(
                f"provenance: unknown field {unknown[0]!r}; it was written by a newer version"
            )
        return Provenance(**record)

    def to_metadata(self) -> dict[str, str]:
        """Return the header fields without empty ones; an empty probe stays: `not measured`."""
        record = {
            key: value for key, value in self.to_json().items() if value not in ("", [], {}, None)
        }
        record.setdefault("probe", "not measured")
        return {
            PREFIX + key: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
            for key, value in record.items()
        }

    @staticmethod
    def from_metadata(metadata: Mapping[str, str]) -> Provenance | None:
        """Read the provenance from a file's header; None if the file is not hardened."""
        if PREFIX + "method" not in metadata:
            return None
        record: dict[str, Any] = {}
        for each in fields(Provenance):
            text = metadata.get(PREFIX + each.name)
            if text is None or (each.name == "probe" and text == "not measured"):
                continue
            record[each.name] = text if each.type == "str" else json_text.loads(text)
        return Provenance(**record)


_FIELDS = {each.name for each in fields(Provenance)}


def versions() -> dict[str, str]:
    """Return the versions of the packages that affect the written bytes."""
    found = {}
    for name in ("resalign", "torch", "diffusers"):
        try:
            found[name] = installed.version(name)
        except installed.PackageNotFoundError:
            if name == "resalign":  # run from a checkout, not installed
                found[name] = "unreleased"
    return found


def hardened_metadata(
    source: Mapping[str, str],
    provenance: Provenance,
    *,
    family: Family,
    layout: str,
    prediction_type: str,
    resolution: int,
    title: str,
    date: str,
    tensor_sha256: str,
    decided: str = "",
) -> dict[str, str]:
    """Build the header of the result: the source's, brought up to date.

    title: used where the source has none. date: ISO 8601. tensor_sha256: hex, of the result.
    decided: what the user decided that the model predicts; it then replaces what the source says.
    An earlier `resalign.*` block is kept as JSON in `resalign.previous`.
    """
    kept = {key: value for key, value in source.items() if not key.startswith(_STALE)}
    ours = {PREFIX + name for name in _FIELDS} | {PREFIX + "previous"}
    previous = {key: kept.pop(key) for key in sorted(ours & set(kept))}
    own_title = kept.pop("modelspec.title", "").strip() or title
    filled = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": family.metadata.architecture(prediction_type),
        "modelspec.implementation": _implementation(family, layout),
        "modelspec.resolution": f"{resolution}x{resolution}",
        "modelspec.prediction_type": "v" if prediction_type == "v_prediction" else prediction_type,
        **family.metadata.notices,
    }
    renewed = {
        "modelspec.title": own_title if previous else f"{own_title} (hardened)",
        "modelspec.date": date,
        "modelspec.hash_sha256": "0x" + tensor_sha256,
    }
    if decided:
        renewed |= _decision(decided, prediction_type, kept)
    if previous:
        renewed[PREFIX + "previous"] = json.dumps(previous)
    return {**filled, **kept, **renewed, **provenance.to_metadata()}


def _implementation(family: Family, layout: str) -> str:
    own = family.metadata.implementation if layout == "ldm" else ""
    return own or _IMPLEMENTATION[layout]


def _decision(decided: str, prediction_type: str, source: Mapping[str, str]) -> dict[str, str]:
    """Return the fields by which the result is read as the user decided for its source."""
    try:
        config = json_text.loads(source.get(CONFIG_KEY, "{}"))
    except ValueError:
        config = {}
    zero_snr = DECISIONS[decided].zero_snr
    scheduler = {"prediction_type": prediction_type, "rescale_betas_zero_snr": zero_snr}
    config["scheduler"] = {**config.get("scheduler", {}), **scheduler}
    return {
        "modelspec.prediction_type": "v" if prediction_type == "v_prediction" else prediction_type,
        CONFIG_KEY: json.dumps(config),
    }
