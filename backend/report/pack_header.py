"""Compares a report's figures with those that its published file's header records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..checkpoint.header import read_header
from ..checkpoint.metadata import Provenance
from ..errors import ResAlignError
from ..probe.recorded import probe_record
from ..probe.results import ProbeResult


def compare_with_header(file: Path, result: ProbeResult, model: str) -> tuple[bool | None, str]:
    """Return whether the header's counts are the report's, None without a record, and why.

    The header is the publisher's statement too, but a pack that was changed after the export no
    longer agrees with it.
    """
    try:
        provenance = Provenance.from_metadata(read_header(file).metadata)
    except ResAlignError as error:
        return None, str(error)
    recorded = _recorded(provenance.probe) if provenance else None
    if recorded is None:
        return None, "it records no probe (`resalign export --probe` does)"
    own = {_key(row): _counts(row) for row in probe_record(result, model)["looks"]}
    shared = [key for key in own if key in recorded]
    if not shared:
        return None, "it records other evaluations than this report has"
    apart = [key for key in shared if own[key] != recorded[key]]
    if apart:
        name, attack, seed, step = apart[0]
        there, here = recorded[apart[0]], own[apart[0]]
        return False, (
            f"{len(apart)} of {len(shared)} evaluations differ: {name}, {attack}, seed {seed}, "
            f"step {step}: {there[0]} of {there[1]} in the header, {here[0]} of {here[1]} here"
        )
    more = len(own) - len(shared)
    return True, f"{len(shared)} evaluations alike" + (f"; {more} it does not have" * bool(more))


Row = tuple[str, str, int, int]


def _recorded(probe: Any) -> dict[Row, tuple[int, int]] | None:
    try:
        return {_key(row): _counts(row) for row in probe["looks"]} or None
    except (ValueError, KeyError, TypeError, IndexError):
        return None


def _key(row: Any) -> Row:
    return str(row[0]), str(row[1]), int(row[2]), int(row[3])


def _counts(row: Any) -> tuple[int, int]:
    return int(row[4]), int(row[5])
