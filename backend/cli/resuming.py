"""resume: continue a hardening run or a probe from its folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..plan.probe import ProbeJob
from .asking import asker
from .console import Console
from .ranks import on_ranks

if TYPE_CHECKING:
    from ..parallel.ranks import Ranks


def resume(args: argparse.Namespace, console: Console) -> int:
    from ..jobs.resume import job_in

    def run(ranks: Ranks) -> int:
        job = job_in(
            args.run_folder, args.device or "", output=args.output or "", allow=asker(args)
        )
        if isinstance(job, ProbeJob):
            from .probing import probe_to_report

            return probe_to_report(job, console, ranks)
        from .hardening import harden_to_files

        folder = Path(args.run_folder)
        return harden_to_files(job, folder, "resume", args.overwrite, console, ranks)

    return on_ranks(run, args, console)
