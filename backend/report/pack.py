"""Packs a report for a release: what a publisher attaches to a checkpoint.

README.md             the model card, which Hugging Face reads (pack_card.py)
civitai.json          what Civitai's upload form asks for (pack_civitai.py)
report.html, .md, .json, pictures/    the report, byte for byte
results.json          the figures for programs, and results.schema.json (pack_results.py)
probe.json            the exact plan: `resalign probe probe.json` measures again
SHA256SUMS            the SHA-256 of every other file, for `sha256sum -c`
model.sig             the publisher's signature, where asked for (pack_sign.py)

A pack has no date and names no folder of this machine: the same report gives the same bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.hashing import sha256_of
from ..checkpoint.header import read_header
from ..checkpoint.metadata import Provenance
from ..errors import ConfigError, RunError
from ..probe.kept_picture import is_blurred
from ..probe.results import ProbeResult, SetEvaluation
from ..progress import ProgressCallback, silent
from .pack_card import CardFacts, model_sentence, pack_card
from .pack_civitai import NAME as CIVITAI
from .pack_civitai import pack_civitai
from .pack_files import check_output, write_pack
from .pack_results import SCHEMA_FILE, SCHEMA_NAME, pack_results
from .pack_sign import check_key
from .pictures import find_picture, pixel_digest
from .plan_words import job_json
from .schema import load_report, without_paths
from .view import View

REPORT = ("report.json", "report.html", "report.md")


@dataclass(frozen=True, slots=True)
class Pack:
    """A written pack: a folder, or a .zip. files: their names in it."""

    path: Path
    model: str
    files: tuple[str, ...]
    complete: bool
    broken: bool
    license: str
    lost: tuple[str, ...]


def pack_report(
    report: Path | str,
    output: Path | str,
    *,
    model: str = "",
    checkpoint: Path | str = "",
    license: str = "",  # noqa: A002
    base_model: str = "",
    sign: Path | str = "",
    overwrite: bool = False,
    on_progress: ProgressCallback = silent,
) -> Pack:
    """Write a pack into a new folder, or into a file that ends in .zip; all of it or nothing.

    Args:
        report: the folder of a report, or its `report.json`.
        model: the one that is published; needed where the probe has several besides the original.
        checkpoint: the file that is published, for its hash and header.
        sign: file of the publisher's private key, to sign the pack with model-signing.
        license, base_model: of the base; by default what the header of `checkpoint` says.

    Raises:
        RunError: there is no complete set of report files.
        ConfigError: the model is not in the report, or must be named.
        ExportError: the output exists, or cannot be written.
    """
    output = Path(os.path.abspath(output))
    result, folder = _read(Path(report))
    model = _choose(result, model)
    check_output(output, overwrite)
    if sign:
        check_key(Path(sign))
    sha256 = next(info.sha256 for info in result.models if info.name == model)
    header, released = _released(Path(checkpoint), sha256, on_progress) if checkpoint else ({}, {})
    provenance = Provenance.from_metadata(header)
    license = (  # noqa: A001
        license or header.get("resalign.license", "") or header.get("modelspec.license", "")
    )
    view = View(result)
    plan = job_json(result) + "\n"
    plan_sha256 = hashlib.sha256(plan.encode()).hexdigest()
    pictures, plain, lost = _pictures(result, folder)
    facts = CardFacts(
        model=model, license=license, provenance=provenance, released=released or None,
        base_model=base_model or (provenance.base_model if provenance else ""),
        plan_sha256=plan_sha256, pictures=len(pictures), plain=plain, lost=lost,
        signed=bool(sign),
    )  # fmt: skip
    texts = {
        "README.md": pack_card(view, facts),
        CIVITAI: pack_civitai(
            view, model, model_sentence(view, model), license=license,
            base_model=facts.base_model, released=released or None,
        ),
        "probe.json": plan,
        "results.json": pack_results(
            result, view.summary, model, license=license, plan_sha256=plan_sha256,
            released=released or None,
        ),
        SCHEMA_NAME: SCHEMA_FILE.read_text(encoding="utf-8"),
    }  # fmt: skip
    files = {name: folder / name for name in REPORT} | pictures
    names = write_pack(output, texts, files, key=Path(sign) if sign else None)
    broken = view.of(model).broken
    return Pack(output, model, names, result.complete, broken, license, lost)


def _read(report: Path) -> tuple[ProbeResult, Path]:
    """Read a report, given as its folder or its `report.json`; return its folder too."""
    if report.name != REPORT[0] or report.is_dir():
        report = report / REPORT[0]
    folder = report.parent.resolve()
    result = without_paths(load_report(report))
    for name in REPORT:
        if not (folder / name).is_file():
            raise RunError(f"{folder / name} is missing: `resalign report {folder}` writes it")
    return result, folder


def _choose(result: ProbeResult, model: str) -> str:
    names = [info.name for info in result.models]
    if model and model not in names:
        raise ConfigError(f"model: {model!r} is not in this report; it has {', '.join(names)}")
    others = [info.name for info in result.compared] or names
    if not model and len(others) > 1:
        raise ConfigError(
            f"the report has several models: name the published one in `model` "
            f"({', '.join(others)})"
        )
    return model or others[0]


def _released(
    path: Path, measured: str, on_progress: ProgressCallback
) -> tuple[Mapping[str, str], dict[str, Any]]:
    """Return the header of the published file, and what the pack says of it."""
    header = read_header(path).metadata
    sha256 = sha256_of(path, on_progress=on_progress)
    return header, {"file": path.name, "sha256": sha256,
                    "measured": sha256 == measured if measured else None}  # fmt: skip


def _pictures(result: ProbeResult, folder: Path) -> tuple[dict[str, Path], int, tuple[str, ...]]:
    """Find the report's pictures: those that are intact, how many are flagged and plain, the rest.

    A report may come from somebody else: only PNG files inside its folder are taken, and only if
    they hold the pixels that were scored or were kept blurred.
    """
    found: dict[str, Path] = {}
    plain, lost = 0, []
    for part in (part for evaluation in result.evaluations for part in evaluation.sets):
        for place, name in enumerate(part.pictures):
            if not name or name in found:
                continue
            path = _intact(folder, name, part.digests[place] if place < len(part.digests) else "")
            if path is None:
                lost.append(name)
                continue
            found[name] = path
            plain += _flagged(part, place) and not is_blurred(name)
    return found, plain, tuple(lost)


def _intact(folder: Path, name: str, digest: str) -> Path | None:
    from PIL import Image, UnidentifiedImageError

    path = find_picture(folder, name)
    if path is None or path.relative_to(folder).as_posix() != name or not name.isprintable():
        return None
    if path.suffix != ".png" or "\\" in name:
        return None
    try:
        with Image.open(path, formats=("PNG",)) as file:
            pixels = file.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
        return None
    same = not digest or is_blurred(name) or pixel_digest(pixels) == digest
    return path if same else None


def _flagged(part: SetEvaluation, place: int) -> bool:
    return any(place < len(each.flagged) and each.flagged[place] for each in part.scores)
