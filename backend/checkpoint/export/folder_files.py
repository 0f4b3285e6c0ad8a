"""Sorts the files of a diffusers folder: rewritten, copied, or left out of the export.

A file counts as weights by its content or any of its suffixes (`unet.safetensors.bak`), or if it
is large and not a document. Weights are copied only if their header shows that they do not hold the
denoiser. Those that cannot be opened (pickles, archives) are left out; only where a component of
the pipeline has no others are they copied, and named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ...text.walk import walk_once
from ..folder import index_of, read_json
from ..header import Header, read_header
from ..info import CheckpointInfo
from .copy_value import Copy
from .denoiser_names import denoiser_names, is_complete, others_tensors, shapes_of

SIDECAR = "resalign.json"
_WEIGHTS = {
    ".safetensors", ".sft", ".bin", ".ckpt", ".pt", ".pt2", ".pth", ".pkl", ".msgpack", ".onnx",
    ".onnx_data", ".pb", ".gguf", ".h5", ".npz", ".npy", ".tflite", ".engine", ".plan", ".zip",
    ".tar", ".tgz", ".gz", ".xz", ".zst", ".7z", ".rar", ".mlmodel", ".mlpackage",
}  # fmt: skip
_DOCUMENTS = {
    ".json", ".md", ".txt", ".yaml", ".yml", ".toml", ".csv", ".py", ".png", ".jpg", ".jpeg",
    ".webp", ".gif", ".svg", ".avif", ".bmp", ".tif", ".tiff", ".pdf", ".mp4", ".mov", ".webm",
    ".mp3", ".wav", ".model", ".ipynb", ".jsonl", ".html", ".parquet", ".arrow",
}  # fmt: skip
_MAGIC = (b"PK\x03\x04", b"GGUF", b"\x89HDF", b"\x1f\x8b", b"7z\xbc\xaf", b"\xfd7zXZ", b"\x93NUMPY")
_LARGE = 1 << 20  # a file of unknown kind may hold weights from this size on
_NOT_COPIED = (".git", ".cache", "__pycache__")
_SHARD = re.compile(r"-\d{5}-of-\d{5}")
_INDEX = re.compile(r"\.index(\.\w+)?\.json$")
_CHANGEABLE = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")


@dataclass(frozen=True, slots=True)
class FolderFiles:
    """Files of a folder by what an export does with them.

    rewritten: files of the denoiser and of its complete copies. main: those that are loaded.
    groups: rewritten files that are one denoiser (the shards of a variant).
    """

    main: tuple[Path, ...]
    rewritten: dict[Path, Header]
    groups: tuple[tuple[Path, ...], ...]
    copied: tuple[Path, ...]
    copies: tuple[Copy, ...]


def sort_folder(info: CheckpointInfo) -> FolderFiles:
    """Sort all files of a checkpoint's folder."""
    source, own = info.path, info.family.denoiser
    main = info.files[own]
    wanted = {n: e for path in main for n, e in info.headers[path].tensors.items()}
    components, names, others = _components(info), denoiser_names(info), others_tensors(info)
    rewritten = {path: info.headers[path] for path in main}
    groups, copied, copies = [main], [], []
    grouped = _grouped(source)
    with_weights = {folder for (folder, _), paths in grouped.items() if _are_readable(paths)}
    for (folder, _), paths in grouped.items():
        if set(paths) <= set(main):
            continue
        component = folder if folder in components else ""
        headers = {path: header for path in paths if (header := weights_of(path))}
        held = sum(
            len(names.among(set(header.tensors) - others.get(path, set())))
            for path, header in headers.items()
        )
        opaque = [path for path, header in headers.items() if header is _OPAQUE]
        where = [path.relative_to(source).as_posix() for path in paths]
        if opaque and component not in ("", own) and not held:
            fate = "left out" if component in with_weights else "kept"
            copied += paths if fate == "kept" else []
            copies += [Copy(each, fate, 0) for each in where]
        elif not held and not opaque:
            copied += paths
        elif component and not opaque and _can_be_hardened(headers, wanted):
            rewritten |= headers
            groups.append(tuple(paths))
            copies += [Copy(each, "hardened", len(headers[path].tensors))
                       for each, path in zip(where, paths, strict=True)]  # fmt: skip
        elif component and component != own:
            copied += paths
            copies += [Copy(each, "kept", held) for each in where]
        else:
            copies += [Copy(each, "left out", held) for each in where]
    gone = {copy.where for copy in copies if copy.fate == "left out"}
    copied = [path for path in copied if not _lists_any(path, source, gone)]
    copies += [Copy(name, "left out", 0) for name in _NOT_COPIED[:2] if (source / name).is_dir()]
    return FolderFiles(main, rewritten, tuple(groups), tuple(copied), tuple(copies))


def files_in(folder: Path) -> Iterator[Path]:
    """Yield every file in the order of paths; links are followed, each folder is entered once."""
    for here, folders, names in walk_once(folder):
        folders[:] = sorted(name for name in folders if name not in _NOT_COPIED)
        for name in sorted(names):
            path = Path(here, name)
            if path.is_file() and path.relative_to(folder).parts != (SIDECAR,):
                yield path


_OPAQUE = Header({"?": None}, {}, 0)  # type: ignore[dict-item]  # weights that are not opened


def weights_of(path: Path) -> Header | None:
    """Return the header of a safetensors file, `_OPAQUE` of other weights, None for the rest."""
    with path.open("rb") as file:
        start = file.read(16)
    size = path.stat().st_size
    length = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and 8 + length <= size:
        try:
            return read_header(path)
        except CheckpointError:
            return _OPAQUE
    suffixes = {suffix.lower() for suffix in path.suffixes}
    pickled = start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05"
    if suffixes & _WEIGHTS or start.startswith(_MAGIC) or pickled:
        return _OPAQUE
    large = size >= _LARGE and path.suffix.lower() not in _DOCUMENTS
    return _OPAQUE if large else None


def _are_readable(paths: list[Path]) -> bool:
    """Return True for weights whose header can be read."""
    headers = [weights_of(path) for path in paths]
    return any(header is not None and header is not _OPAQUE for header in headers)


def _components(info: CheckpointInfo) -> set[str]:
    """Return the folders that the pipeline loads, by model_index.json."""
    found = index_of(info.path)
    index = read_json(found) if found else {}
    listed = {name for name, value in index.items() if isinstance(value, list) and all(value)}
    return listed | set(info.components)


def _grouped(source: Path) -> dict[tuple[str, str], list[Path]]:
    """Group the shards of one set of weights; any other file is a group of its own. The first part
    of the key is the folder directly below `source` that a file lies in, else its whole path."""
    found: dict[tuple[str, str], list[Path]] = {}
    for path in files_in(source):
        parts = path.relative_to(source).parts
        folder = parts[0] if len(parts) == 2 else "/".join(parts[:-1])
        found.setdefault((folder, _SHARD.sub("", path.name)), []).append(path)
    return found


def _can_be_hardened(headers: Mapping[Path, Header], wanted: Mapping[str, Any]) -> bool:
    types = {n: e.dtype for header in headers.values() for n, e in header.tensors.items()}
    return is_complete(shapes_of(headers.values()), wanted) and all(
        types[name] in _CHANGEABLE for name in wanted
    )


def _lists_any(path: Path, source: Path, gone: set[str]) -> bool:
    """Return True for the index of shards of which one is left out."""
    if not _INDEX.search(path.name):
        return False
    listed = read_json(path).get("weight_map")
    names = set(listed.values()) if isinstance(listed, dict) else set()
    folder = path.parent.relative_to(source)
    return any((folder / str(name)).as_posix() in gone for name in names)
