"""audit, pack: what is made of a report that is there. Neither loads a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..jobs.audit import apply_labels, begin_audit
from ..jobs.live_state import LiveState
from ..probe.headline import headline
from ..probe.verdict import of_probe
from ..progress import with_check
from ..report.audit_section import audit_words
from ..report.pack import pack_report
from ..report.pack_words import pack_warnings
from .requests import AuditRequest, PackRequest, checkpoint_path

Check = Callable[[], None]
Done = tuple[dict[str, Any], str]


def audit(request: AuditRequest, live: LiveState, check: Check) -> Done:
    folder = Path(request.report)
    if not request.labels:
        drawn = begin_audit(
            folder, count=request.pictures, seed=request.seed, overwrite=request.overwrite
        )
        count = len(drawn.audit.pictures)
        result = {"folder": str(folder), "page": str(drawn.page), "pictures": count}
        return result, f"{drawn.page.name} has {count} pictures to label"
    found = apply_labels(folder, Path(request.labels))
    assert found.result and found.summary and found.files
    own = found.summary.audit
    said = audit_words(own) if own else "These labels are of another scorer than the headline's."
    verdict, live.verdict = of_probe(found.result, found.summary)
    text = headline(found.summary)
    result = {
        "folder": str(folder), "page": str(found.page), "report": str(found.files.html),
        "labelled": found.audit.labelled, "headline": text,
    }  # fmt: skip
    return result, "\n".join(filter(None, [verdict, said, text]))


def pack(request: PackRequest, live: LiveState, check: Check) -> Done:
    found = pack_report(
        request.report, request.output, model=request.model,
        checkpoint=checkpoint_path(request.checkpoint) if request.checkpoint else "",
        license=request.license, base_model=request.base_model, sign=request.sign,
        pictures=request.pictures, overwrite=request.overwrite, on_progress=with_check(live, check),
    )  # fmt: skip
    warnings = pack_warnings(found)
    if found.broken or found.test_run or found.too_short or not found.complete:
        live.verdict = "doubtful"
    result = {
        "path": str(found.path), "model": found.model, "files": list(found.files),
        "license": found.license, "warnings": warnings,
    }  # fmt: skip
    return result, f"{found.path.name}: {len(found.files)} files, for {found.model}"
