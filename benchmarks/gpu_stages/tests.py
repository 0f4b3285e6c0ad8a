"""Stage `tests`: the tests that need a GPU."""

from __future__ import annotations

import io
import os
import xml.etree.ElementTree as ElementTree
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def run(device: str, small: bool, out: Path, tell: Any) -> None:
    import pytest

    report, output = out.resolve() / "tests.xml", io.StringIO()
    os.environ["RESALIGN_GPU_DEVICE"] = device
    os.chdir(ROOT)
    with redirect_stdout(output):
        code = pytest.main([
            "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/test_gpu.py",
            f"--junitxml={report}",
        ])  # fmt: skip
    if not report.exists():
        raise RuntimeError(output.getvalue()[-2000:])
    for case in ElementTree.parse(report).iter("testcase"):
        state, why = "passed", ""
        for kind in ("failure", "error", "skipped"):
            if (found := case.find(kind)) is not None:
                state, why = kind, (found.get("message") or "").splitlines()[0][:300]
        tell(
            result="test", test=case.get("name"), outcome=state,
            seconds=round(float(case.get("time", 0)), 2), why=why,
        )  # fmt: skip
    if code:
        raise RuntimeError(output.getvalue()[-1500:])
