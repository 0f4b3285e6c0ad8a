"""Describes a file or folder, for a reader and for a program; reads only its header.

A file that cannot be read at all (truncated, a pickle) is an error. One that can be read but cannot
be hardened is described, with what to do about it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..families.base.overrides import CONFIG_KEY
from ..plan.concept import shown_name
from ..plan.methods import TEST_RUN, steps_of_test_run
from ..progress import ProgressCallback, silent
from ..text import json_text
from .detect import detect, detect_file, is_claimed, unsupported
from .export.copies import copies_of
from .header import Header, read_header
from .info import CheckpointInfo, dtypes_of

_OURS = "resalign."
_SAID = ("method", "concepts", "source", "source_sha256", "plan_sha256", "probe")
_WIDTH = 16  # of the labels' column
_MANY = 12  # copies that are listed
_WILL = {"hardened": "will be hardened", "left out": "will be left out", "kept": "will be kept"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundCopy:
    """A further copy of the denoiser.

    where, tensors: as in `Copy`. fate: what its record says, `hardened` or `kept`;
    `not hardened` where the file is hardened and no record names this copy; in a file that was
    never hardened, what an export will do with it: `will be hardened`, `will be left out`, `will be
    kept`.
    """

    where: str
    tensors: int
    fate: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """Description of a file or folder.

    kind: `checkpoint`; else what it is by its names (`lora`, `vae`, `flux`, `quantised` ...), or
        `unsupported` for a checkpoint that differs in its shapes (inpainting, KOALA ...).
    problem: why it cannot be hardened and what to do; empty for a supported checkpoint.
    dtypes: storage types of each component (of `all` if it is not a checkpoint).
    bytes: size of the weight files. resolution: native side in pixels.
    parts: paths of the components that lie in files of their own.
    distilled: method of distillation (Turbo, LCM ...) and how it was recognised; empty if none was.
    terms: what the licence of the published weights asks, where that is more than a notice.
    sha256: of the file, as hosts show it, if asked for; of a folder, of the lines that
        `sha256sum` prints for its weight files in order.
    copies: further copies of the denoiser (moving averages, variants, backups), and their state.
    hardened: the `resalign.*` fields of its header, empty if it was never hardened.
    metadata: all of the header's fields.
    """

    path: str
    kind: str
    problem: str = ""
    family: str = ""
    title: str = ""
    layout: str = ""
    prediction_type: str = ""
    resolution: int = 0
    dtypes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    tensor_count: int = 0
    bytes: int = 0
    keeps_moving_average: bool = False
    copies: tuple[FoundCopy, ...] = ()
    parts: dict[str, str] = field(default_factory=dict)
    distilled: str = ""
    terms: str = ""
    sha256: str = ""
    hardened: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def supported(self) -> bool:
        return not self.problem

    @property
    def safety(self) -> tuple[str, ...]:
        """Return what the header of a hardened file says of its safety; anybody can write that."""
        if not self.hardened:
            return ()
        tested = steps_of_test_run(self.hardened.get("training")) > 0
        found = [f"It comes from {TEST_RUN}."] if tested else []
        probe = self.hardened.get("probe")
        if not isinstance(probe, dict):
            return (*found, "Nobody has measured whether the concepts return.")
        verdict = str(probe.get("verdict") or "")
        if "test run" in verdict:
            return (verdict,)
        return (
            *found,
            verdict or "A probe measured it; the record has no verdict, and its figures are below.",
        )

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps({"supported": self.supported, **asdict(self)}))

    def to_text(self, *, safety: bool = True) -> str:
        """Return a few lines for a terminal. safety: with what is said of it."""
        rows = [("file" if self.layout != "diffusers" else "folder", self.path)]
        if self.family:
            kind = self.prediction_type.removesuffix("_prediction")
            rows.append(("model", f"{self.title}, predicts {kind}, {self.resolution} px"))
            own = "one file" if not self.parts else "files of their own for some components"
            rows.append(("layout", own if self.layout == "ldm" else "diffusers folder"))
            rows += [(name.replace("_", " "), path) for name, path in self.parts.items()]
        else:
            rows.append(("kind", self.kind))
        if safety:
            rows += [("" if i else "safety", said) for i, said in enumerate(self.safety)]
        size = f"{self.bytes:,} bytes in {self.tensor_count:,} tensors"
        rows.append(("size", size + ", with moving averages" * self.keeps_moving_average))
        rows += [("stored as" if not i else "", f"{name}: {', '.join(dtypes)}")
                 for i, (name, dtypes) in enumerate(self.dtypes.items())]  # fmt: skip
        shown = enumerate(self.copies[:_MANY])
        rows += [("" if i else "copies", _line(copy)) for i, copy in shown]
        if len(self.copies) > _MANY:
            rows.append(("", f"and {len(self.copies) - _MANY} more"))
        if self.distilled:
            rows.append(("distilled", f"it looks so: {self.distilled}; see `resalign check`"))
        if self.terms:
            rows.append(("licence", self.terms))
        if self.sha256:
            rows.append(("sha256", self.sha256))
        if self.hardened:
            rows += [
                ("hardened" if not i else "", f"{key}: {_short(key, self.hardened[key])}")
                for i, key in enumerate(key for key in _SAID if key in self.hardened)
            ]
        elif self.kind == "checkpoint":
            rows.append(("hardened", "no record of it in the file"))
        if self.problem:
            rows.append(("not supported", self.problem))
        return "\n".join(f"{label:{_WIDTH}}{value}" for label, value in rows)

    __str__ = to_text


def inspect(
    path: str | Path | CheckpointInfo,
    *,
    hash: bool = False,  # noqa: A002
    parts: Mapping[str, str] | None = None,
    folders: Sequence[Path] = (),
    on_progress: ProgressCallback = silent,
) -> Inspection:
    """Describe `path` in milliseconds; with `hash`, compute its SHA-256 too (seconds per GB).

    parts: files of components that it does not hold; folders: where else they are looked for; as of
    `detect`.
    """
    if isinstance(path, CheckpointInfo):
        return _of_checkpoint(path, _hash(path, on_progress) if hash else "")
    path = Path(path)
    if path.is_dir():
        info = detect(path, parts=parts)
        return _of_checkpoint(info, _hash(info, on_progress) if hash else "")
    header = read_header(path)
    sha256 = _sha256(path, on_progress) if hash else ""
    if not is_claimed(path, header):
        other = unsupported(header)
        return _of_other(path, header, other.kind, other.sentence(path.name), sha256)
    try:
        info = detect_file(path, header, parts=parts, folders=folders)
    except CheckpointError as error:
        return _of_other(path, header, "unsupported", str(error), sha256)
    return _of_checkpoint(info, sha256)


def copies_in(info: CheckpointInfo, hardened: dict[str, Any]) -> tuple[FoundCopy, ...]:
    """Return the further copies of the denoiser, as `Inspection.copies` describes them."""
    record = hardened.get("copies")
    named = {
        each.get("where"): str(each.get("fate"))
        for each in (record if isinstance(record, list) else ())
        if isinstance(each, dict)
    }
    found = []
    for copy in copies_of(info):
        fate = named.get(copy.where, "not hardened") if hardened else _WILL[copy.fate]
        found.append(FoundCopy(where=copy.where, tensors=copy.tensors, fate=fate))
    return tuple(found)


def _of_checkpoint(info: CheckpointInfo, sha256: str) -> Inspection:
    names = (name for header in info.headers.values() for name in header.tensors)
    hardened, problem, copies = _hardened(info.metadata), "", ()
    parts = {name: str(files[0]) for name, files in info.files.items() if files[0] != info.path}
    if info.layout == "diffusers":
        parts = {}
    try:
        copies = copies_in(info, hardened)
    except CheckpointError as error:
        problem = str(error)
    return Inspection(
        path=str(info.path),
        kind="checkpoint",
        problem=problem,
        family=info.family.name,
        title=info.title,
        layout=info.layout,
        prediction_type=info.prediction_type,
        resolution=info.resolution,
        dtypes=info.dtypes,
        tensor_count=info.tensor_count,
        bytes=info.bytes,
        keeps_moving_average=any(name.startswith("model_ema.") for name in names),
        copies=copies,
        parts=parts,
        distilled=info.distilled,
        terms=info.family.metadata.terms,
        sha256=sha256,
        hardened=hardened,
        metadata=info.metadata,
    )


def _line(copy: FoundCopy) -> str:
    held = f" ({copy.tensors} tensors)" if copy.tensors else ""
    unopened = " unopened" * (copy.fate.endswith("kept") and not copy.tensors)
    return f"{copy.where}{held}: {copy.fate}{unopened}"


def _of_other(path: Path, header: Header, kind: str, problem: str, sha256: str) -> Inspection:
    return Inspection(
        path=str(path),
        kind=kind,
        problem=problem,
        dtypes={"all": dtypes_of([header])},
        tensor_count=len(header.tensors),
        bytes=header.data_start + header.data_bytes,
        sha256=sha256,
        hardened=_hardened(header.metadata),
        metadata=header.metadata,
    )


def _hardened(metadata: dict[str, str]) -> dict[str, Any]:
    """Return the `resalign.*` fields, parsed if they are JSON, otherwise as text."""
    found: dict[str, Any] = {}
    for key, text in metadata.items():
        if key.startswith(_OURS) and key != CONFIG_KEY:
            try:
                found[key.removeprefix(_OURS)] = json_text.loads(text)
            except json_text.JsonError:
                found[key.removeprefix(_OURS)] = text
    return found


def _sha256(path: Path, on_progress: ProgressCallback) -> str:
    from .hashing import sha256_of  # imports threads, which reading a header does not need

    return sha256_of(path, on_progress=on_progress)


def _hash(info: CheckpointInfo, on_progress: ProgressCallback) -> str:
    if info.layout == "ldm":
        return _sha256(info.path, on_progress)
    lines = sorted(
        (file.relative_to(info.path).as_posix(), _sha256(file, on_progress))
        for file in info.headers
    )
    text = "".join(f"{digest}  {name}\n" for name, digest in lines)
    from hashlib import sha256  # loads OpenSSL, which takes longer than reading a header

    return sha256(text.encode()).hexdigest()


def _short(key: str, value: Any) -> str:
    if key == "concepts" and isinstance(value, list):
        value = ", ".join(shown_name(str(name)) for name in value)
    if isinstance(value, dict) and value.get("headline"):  # of a probe's record
        return str(value["headline"]).replace("\n", " ")
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:200] + " ..."
