"""verify: compare a hardened file with its header, its source and its recorded probe."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from .arguments import parts_of
from .console import Console

MISMATCH = 1  # exit code: the file is not what it claims to be
MARKS = {True: "ok", False: "WRONG", None: "not checked"}


def verify(args: argparse.Namespace, console: Console) -> int:
    from ..jobs.verify import verify_job

    found = verify_job(
        Path(args.file), source=Path(args.source) if args.source else None,
        probe=not args.no_probe, device=args.device or "auto", budget=args.budget,
        parts=parts_of(args), on_progress=console.progress,
    )  # fmt: skip
    width = max(len(check.name) for check in found.checks)
    lines = [
        f"{check.name:{width}}  {MARKS[check.ok]:11}  {check.detail}".rstrip()
        for check in found.checks
    ]
    checks = []
    for check in found.checks:
        fields = asdict(check)
        checks.append({"check": fields.pop("name"), **fields})
    says = list(found.says)
    console.result(
        "\n".join([*lines, "", *says]), "done", verified=found.good, checks=checks, says=says
    )
    return 0 if found.good else MISMATCH
