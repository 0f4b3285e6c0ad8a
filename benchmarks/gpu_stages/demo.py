"""Stage `demo`: the demo's resilience benchmark, with more seeds than a CPU allows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]


def run(device: str, small: bool, out: Path, tell: Any) -> None:
    folder = out.resolve() / "demo"
    command = [sys.executable, str(HERE / "resilience.py"), "run", "--folder", str(folder)]
    if device != "cpu":
        command += ["--device", device]
    if small:
        command += ["--methods", "base", "--seeds", "0", "--attacks", ""]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-1500:])
    lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    tell(result="benchmark", measurements=len(lines), file=str(folder / "results.jsonl"))
