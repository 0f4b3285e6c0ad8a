"""Export of a single file."""

from __future__ import annotations

import time
from dataclasses import replace

from ...errors import ExportError
from .copies import averages_copy, moving_averages
from .job import Export, ExportReport, check_target, now
from .slices import Tally, check_touched
from .stream import Hashes, rewrite

_SPARE = 1 << 20  # the header grows by some kilobytes


def export_file(job: Export) -> ExportReport:
    """Write `job.target`; it appears under its name in one move, or not at all."""
    started = time.monotonic()
    source, target = job.info.path, job.target
    header = job.info.headers[source]
    if target.suffix != ".safetensors":
        raise ExportError(f"{target.name}: a file is written as .safetensors; change the ending")
    if target.is_dir():
        raise ExportError(f"{target} is a folder, but {source.name} is a single file")
    averages = moving_averages(job.info)
    also = {name: job.touched[of] for name, of in averages.items() if of in job.touched}
    touched = {**job.touched, **also}
    job = replace(job, copies=averages_copy(averages), changes=len(touched)).in_one_bar([header])
    check_touched(source.name, [header], touched, job.adapter)
    check_target(source, target, overwrite=job.overwrite, size=job.info.export_bytes + _SPARE)
    tally, date = Tally(), now()

    def metadata(hashes: Hashes) -> dict[str, str]:
        job.check_source(source, hashes)
        return job.metadata(header.metadata, hashes, date)

    hashes = rewrite(
        source,
        target,
        header,
        {name: tally.change(name, own, job.adapter) for name, own in touched.items()},
        metadata,
        hash_file=job.hash_file,
        on_progress=job.on_progress,
    )
    return job.report(
        tally,
        hashes,
        untouched=len(header.tensors) - tally.touched,
        size=target.stat().st_size,
        seconds=time.monotonic() - started,
    )
