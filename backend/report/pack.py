"""Packs a report for a release: what a publisher attaches to a checkpoint.

README.md             the model card, which Hugging Face reads (pack_card.py)
civitai.json          what Civitai's upload form asks for (pack_civitai.py)
report.html, .md, .json    the report, written anew from report.json so that all three agree
pictures/             its pictures; flagged ones are blurred unless asked for (pack_pictures.py)
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..checkpoint.hashing import sha256_of
from ..checkpoint.header import read_header
from ..checkpoint.metadata import Provenance
from ..errors import ConfigError
from ..plan.methods import names_test_run, steps_of_test_run
from ..plan.probe import too_short
from ..probe.results import ProbeResult
from ..probe.results_io import by_test_run
from ..probe.summarise import summarise
from ..progress import ProgressCallback, silent
from .markdown import report_markdown
from .pack_card import CardFacts, model_sentence, pack_card
from .pack_check import check_report
from .pack_civitai import NAME as CIVITAI
from .pack_civitai import pack_civitai
from .pack_files import check_output, staged, write_pack
from .pack_kept import check_kept
from .pack_pictures import PackedPictures, pack_pictures
from .pack_results import SCHEMA_FILE, SCHEMA_NAME, pack_results
from .pack_sign import check_key
from .page import report_html
from .plan_words import job_json
from .schema import load_report, to_report_json, without_paths
from .view import View

REPORT = "report.json"


@dataclass(frozen=True, slots=True)
class Pack:
    """A written pack: a folder, or a .zip. files: their names in it.

    test_run: a test run hardened it. too_short: why no figure of the probe is to be published yet,
    or empty. plain: how many of its pictures were flagged and are not blurred.
    """

    path: Path
    model: str
    files: tuple[str, ...]
    complete: bool
    broken: bool
    license: str
    lost: tuple[str, ...]
    plain: int = 0
    test_run: bool = False
    too_short: str = ""


def pack_report(
    report: Path | str,
    output: Path | str,
    *,
    model: str = "",
    checkpoint: Path | str = "",
    license: str = "",  # noqa: A002
    base_model: str = "",
    sign: Path | str = "",
    pictures: str = "blurred",
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
        pictures: `none`, `blurred` (flagged ones, and those that came near to it) or `all` as the
            probe kept them.

    Raises:
        RunError: there is no report, or it contradicts itself (pack_check.py).
        ConfigError: the model is not in the report, or must be named.
        ExportError: the output exists, or cannot be written.
    """
    check_kept(pictures)
    output = Path(os.path.abspath(output))
    result, folder = _read(Path(report))
    model = _choose(result, model)
    check_output(output, overwrite)
    if sign:
        check_key(Path(sign))
    sha256 = next(info.sha256 for info in result.models if info.name == model)
    header, released = _released(Path(checkpoint), sha256, on_progress) if checkpoint else ({}, {})
    provenance = Provenance.from_metadata(header)
    result, test_run = _of_test_run(result, model, provenance)
    license = (  # noqa: A001
        license or header.get("resalign.license", "") or header.get("modelspec.license", "")
    )
    with staged(output) as staging:
        packed = pack_pictures(result, folder, staging, pictures)
        view = View(packed.result)
        plan = job_json(result) + "\n"
        plan_sha256 = hashlib.sha256(plan.encode()).hexdigest()
        facts = CardFacts(
            model=model, license=license, provenance=provenance, released=released or None,
            base_model=base_model or (provenance.base_model if provenance else ""),
            test_run=test_run, plan_sha256=plan_sha256, pictures=packed, signed=bool(sign),
        )  # fmt: skip
        texts = {
            "README.md": pack_card(view, facts),
            CIVITAI: pack_civitai(
                view, model, model_sentence(view, model), license=license,
                base_model=facts.base_model, released=released or None, test_run=test_run,
            ),
            "probe.json": plan,
            "results.json": pack_results(
                result, view.summary, model, license=license, plan_sha256=plan_sha256,
                released=released or None, pictures=packed, signed=bool(sign), test_run=test_run,
            ),
            SCHEMA_NAME: SCHEMA_FILE.read_text(encoding="utf-8"),
            **_report_texts(packed, staging),
        }  # fmt: skip
        key = Path(sign) if sign else None
        names = write_pack(staging, output, texts, packed.files, key=key)
    broken = view.of(model).broken
    return Pack(
        output, model, names, result.complete, broken, license, packed.lost, packed.plain, test_run,
        too_short(result.plan),
    )  # fmt: skip


def _of_test_run(
    result: ProbeResult, model: str, provenance: Provenance | None
) -> tuple[ProbeResult, bool]:
    """Return whether a test run hardened the published model, and the result with that warning.

    The probe says so of models that it recognised; the header of the file, of those of an earlier
    version too.
    """
    info = next(info for info in result.models if info.name == model)
    in_file = provenance is not None and steps_of_test_run(provenance.training) > 0
    found, said = in_file or names_test_run(info.method), by_test_run(model)
    if found and said not in result.warnings:
        result = replace(result, warnings=(*result.warnings, said))
    return result, found


def _report_texts(packed: PackedPictures, staging: Path) -> dict[str, str]:
    """Write the report anew: its page and its Markdown may be another's than its figures."""
    result = packed.result
    return {
        REPORT: to_report_json(result, summarise(result).to_json()),
        "report.html": report_html(result, staging),
        "report.md": report_markdown(result),
    }


def _read(report: Path) -> tuple[ProbeResult, Path]:
    """Read a report, given as its folder or its `report.json`; return its folder too."""
    if report.name != REPORT or report.is_dir():
        report = report / REPORT
    result = without_paths(load_report(report))
    check_report(result)
    return result, report.parent.resolve()


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
