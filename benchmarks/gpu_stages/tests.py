"""Stage `tests`: the tests that need a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def run(device: str, small: bool, out: Path, tell: Any) -> None:
    report = out.resolve() / "tests.xml"
    command = [
        sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider",
        "tests/test_gpu.py", f"--junitxml={report}",
    ]  # fmt: skip
    environment = os.environ | {"RESALIGN_GPU_DEVICE": device}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if not report.exists():
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    for case in ElementTree.parse(report).iter("testcase"):
        state, why = "passed", ""
        for kind in ("failure", "error", "skipped"):
            if (found := case.find(kind)) is not None:
                state, why = kind, (found.get("message") or "").splitlines()[0][:300]
        tell(
            result="test", test=case.get("name"), outcome=state,
            seconds=round(float(case.get("time", 0)), 2), why=why,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stdout[-1500:])
