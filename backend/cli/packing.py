"""pack: writes a report for a release, or checks what somebody else packed."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from ..errors import ConfigError
from .console import Console
from .verifying import MARKS, MISMATCH


def pack(args: argparse.Namespace, console: Console) -> int:
    if args.check:
        return _check(args, console)
    if not args.output:
        raise ConfigError("give --output, the folder or .zip of the pack, or --check a pack")
    from ..report.pack import pack_report
    from ..report.pack_words import pack_warnings

    found = pack_report(
        Path(args.report), Path(args.output), model=args.model or "",
        checkpoint=args.checkpoint or "", license=args.license or "",
        base_model=args.base_model or "", sign=args.sign or "",
        pictures=args.pictures, overwrite=args.overwrite, on_progress=console.progress,
    )  # fmt: skip
    console.close()
    for text in pack_warnings(found, how="give it with --license"):
        console.warning(text)
    console.result(
        f"pack  {found.path}  ({len(found.files)} files)", "done", pack=str(found.path),
        model=found.model, files=list(found.files), complete=found.complete, broken=found.broken,
        test_run=found.test_run,
    )  # fmt: skip
    return 0


def _check(args: argparse.Namespace, console: Console) -> int:
    from ..report.pack_proof import BAD, SHOWS, SHOWS_NOT, check_pack

    found = check_pack(Path(args.report), Path(args.checkpoint) if args.checkpoint else None)
    width = max(len(one.name) for one in found.findings)
    lines = [
        f"{one.name:{width}}  {MARKS[one.ok]:11}  {one.detail}".rstrip() for one in found.findings
    ]
    says = [SHOWS, SHOWS_NOT] if found.good else [BAD, SHOWS_NOT]
    console.close()
    console.result(
        "\n".join([*lines, "", *says]), "done", good=found.good, says=says,
        checks=[asdict(one) for one in found.findings],
    )  # fmt: skip
    return 0 if found.good else MISMATCH
