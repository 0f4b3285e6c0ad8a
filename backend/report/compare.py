"""Compares several reports: writes a leaderboard by resilience."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..errors import ConfigError
from ..probe.former_names import with_present_names
from ..run.json_lines import finite
from .build import write_text
from .leaderboard import leaderboard_html, leaderboard_markdown
from .ranking import group_reports
from .schema import load_report


def compare_reports(paths: Sequence[Path | str], folder: Path | str) -> Path:
    """Write `leaderboard.html`, `.md` and `.json` into a folder; returns the page's path.

    Args:
        paths: `report.json` files, or the folders that hold them.

    Raises:
        ConfigError: no report was given, or one twice.
        RunError: a file that is not a report.
        ExportError: the folder cannot be written to.
    """
    files = [Path(path) / "report.json" if Path(path).is_dir() else Path(path) for path in paths]
    if not files:
        raise ConfigError("compare: give at least one report.json")
    if len({file.resolve() for file in files}) < len(files):
        raise ConfigError("compare: a report is given twice")
    names = _names(files)
    groups = group_reports(
        [
            (name, with_present_names(load_report(file)))
            for name, file in zip(names, files, strict=True)
        ]
    )
    folder = Path(folder)
    record = {"schema": 1, "kind": "resalign leaderboard", "groups": [asdict(g) for g in groups]}
    texts = {
        "leaderboard.json": json.dumps(finite(record), ensure_ascii=False, indent=2) + "\n",
        "leaderboard.md": leaderboard_markdown(groups),
        "leaderboard.html": leaderboard_html(groups),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return folder / "leaderboard.html"


def _names(files: Sequence[Path]) -> list[str]:
    """A short name for each report: its folder's, with a number where two are alike."""
    names: list[str] = []
    for file in files:
        name = file.resolve().parent.name if file.stem == "report" else file.stem
        taken = sum(other == name or other.startswith(f"{name} (") for other in names)
        names.append(f"{name} ({taken + 1})" if taken else name)
    return names
