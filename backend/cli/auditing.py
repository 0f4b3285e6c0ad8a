"""audit: a person checks a probe's detector."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import ConfigError
from .console import Console


def audit(args: argparse.Namespace, console: Console) -> int:
    if not args.labels:
        return _begin(args, console)
    if args.pictures or args.seed:
        raise ConfigError("--labels reads an audit; --pictures and --seed begin one")
    return _apply(args, console)


def _begin(args: argparse.Namespace, console: Console) -> int:
    from ..jobs.audit import PICTURES, begin_audit

    found = begin_audit(
        Path(args.report), count=args.pictures or PICTURES, seed=args.seed or 0,
        overwrite=args.overwrite,
    )  # fmt: skip
    pictures = len(found.audit.pictures)
    console.result(
        f"audit  {found.page}  ({pictures} pictures)\nOpen it, label them, save the labels, then: "
        f"resalign audit {args.report} --labels audit-labels.json",
        "done", page=str(found.page), pictures=pictures, sample=found.audit.digest,
    )  # fmt: skip
    if args.open:
        import webbrowser

        webbrowser.open(found.page.resolve().as_uri())
    return 0


def _apply(args: argparse.Namespace, console: Console) -> int:
    from ..jobs.audit import apply_labels
    from ..probe.headline import headline
    from ..report.audit_section import audit_words

    found = apply_labels(Path(args.report), Path(args.labels))
    assert found.summary is not None and found.files is not None
    own = found.summary.audit
    said = audit_words(own) if own else "These labels are of another scorer than the headline's."
    console.result(
        f"{said}\n\n{headline(found.summary)}\n\nreport  {found.files.html}", "done",
        html=str(found.files.html), report=str(found.files.json), summary=found.summary.to_json(),
    )  # fmt: skip
    return 0
