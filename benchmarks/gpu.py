"""Everything that only a GPU can answer, in one command of about ten minutes.

    python benchmarks/gpu.py                       all stages, on CUDA, at full size
    python benchmarks/gpu.py --device cpu --small  a rehearsal on tiny networks, in minutes
    python benchmarks/gpu.py --stages steps memory --out DIR

It needs no network and nothing but PyTorch and the packages of requirements.txt; what is missing is
installed from `--wheels DIR` into a folder of its own. Each stage is a process with a time limit.
Its results are written as they come: one JSON object per line in OUT/gpu.jsonl, and all of them as
tables in OUT/gpu.md. A stage that fails or runs out of time is recorded, and the next one begins.

Stages, the most valuable first:

    tests    the tests marked `gpu`: every code path that differs on CUDA
    steps    seconds per outer step of SD 1.5 by precision and kernels, where they go, hidden
             synchronisation, and images per second against a bare diffusers-and-PEFT LoRA step
    memory   peaks of a dozen plans of SD 1.5, SD 2.1 and SDXL, measured and predicted
    path     harden, export, verify and probe of a whole checkpoint file, by the command line
    demo     the demo's resilience benchmark with more seeds than a CPU allows
    export   export and hashing at SDXL's size from this machine's disk
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LIMITS = {"tests": 110, "steps": 170, "memory": 110, "path": 150, "demo": 60, "export": 60}
NEEDED = ("torch", "diffusers", "transformers", "peft", "safetensors", "scipy", "filelock", "PIL")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:1 or cpu")
    parser.add_argument("--small", action="store_true", help="tiny networks: a rehearsal")
    parser.add_argument("--stages", nargs="+", choices=LIMITS, default=list(LIMITS))
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder of results")
    parser.add_argument("--wheels", type=Path, help="folder of wheels of packages that are missing")
    parser.add_argument("--limit", type=float, default=1.0, help="multiplies every time limit")
    parser.add_argument("--stage", choices=LIMITS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.stage:
        run_stage(given)
        return 0
    environment = prepared(given)
    results = given.out / "gpu.jsonl"
    results.unlink(missing_ok=True)
    failed = 0
    for stage in given.stages:
        failed += not supervise(stage, given, environment)
        (given.out / "gpu.md").write_text(as_markdown(read(results)), encoding="utf-8")
    print(f"{given.out / 'gpu.md'}: {len(given.stages) - failed} of {len(given.stages)} complete")
    return 1 if failed else 0


def prepared(given: argparse.Namespace) -> dict[str, str]:
    """Return the environment of the stages; install what is missing from the wheels."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    paths = [str(HERE), str(HERE.parent / "tests")]
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing and given.wheels:
        site = (given.out / "site").resolve()
        wheels = [str(path) for path in sorted(given.wheels.glob("*.whl"))]
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
        subprocess.run([*command, "--target", str(site), *wheels], check=True)
        paths.append(str(site))
    elif missing:
        sys.exit(f"missing: {', '.join(missing)}; give a folder of their wheels with --wheels")
    if importlib.util.find_spec("resalign") is None:
        (link := given.out.resolve() / "package" / "resalign").parent.mkdir(exist_ok=True)
        if not link.exists():
            link.symlink_to(HERE.parent, target_is_directory=True)
        paths.append(str(link.parent))
    environment["PYTHONPATH"] = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])
    return environment


def supervise(stage: str, given: argparse.Namespace, environment: dict[str, str]) -> bool:
    """Run a stage in a process of its own; record how it ended; return True if it completed."""
    limit = LIMITS[stage] * given.limit
    environment = environment | {"RESALIGN_STAGE_SECONDS": str(limit)}
    command = [
        sys.executable, __file__, "--stage", stage, "--device", given.device,
        "--out", str(given.out), *(["--small"] if given.small else []),
    ]  # fmt: skip
    print(f"== {stage} (at most {limit:.0f} s)", flush=True)
    began = time.monotonic()
    try:
        done = subprocess.run(
            command, env=environment, timeout=limit, stderr=subprocess.PIPE, text=True
        )
        error = "" if done.returncode == 0 else last_lines(done.stderr)
    except subprocess.TimeoutExpired as expired:
        seen = expired.stderr or b""
        text = seen.decode(errors="replace") if isinstance(seen, bytes) else seen
        error = f"stopped after {limit:.0f} s; {last_lines(text)}"
    seconds = round(time.monotonic() - began, 1)
    record(given.out, stage, {"result": "stage", "complete": not error, "seconds": seconds}
           | ({"error": error} if error else {}))  # fmt: skip
    print(f"   {error or 'complete'} ({seconds} s)", flush=True)
    return not error


def run_stage(given: argparse.Namespace) -> None:
    """Run one stage here. Its module's `run` is given a function that records a result."""
    import torch

    module = importlib.import_module(f"gpu_stages.{given.stage}")
    torch.set_num_threads(1 if given.device == "cpu" else os.cpu_count() or 1)
    record(given.out, given.stage, {"result": "machine", **machine(given.device)})

    def tell(**values: Any) -> None:
        record(given.out, given.stage, values)
        print("  ", json.dumps(values, ensure_ascii=False)[:200], flush=True)

    module.run(given.device, given.small, given.out, tell)


def machine(device: str) -> dict[str, Any]:
    import diffusers
    import peft
    import torch

    found: dict[str, Any] = {
        "device": device, "python": platform.python_version(), "torch": torch.__version__,
        "diffusers": diffusers.__version__, "peft": peft.__version__,
    }  # fmt: skip
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(torch.device(device))
        found["card"], found["memory"] = properties.name, properties.total_memory
        found["cuda"], found["context MiB"] = torch.version.cuda, context(device)
    return found


def context(device: str) -> int:
    """Return the MiB that CUDA and its libraries hold beside tensors, if nobody else computes."""
    import torch

    before = torch.cuda.memory_reserved(device)
    size = (1, 64, 64, 64)
    layer = torch.nn.Conv2d(64, 64, 3).to(device, torch.float16)
    layer(torch.ones(size, device=device, dtype=torch.float16)).sum().backward()
    (torch.ones(512, 512, device=device) @ torch.ones(512, 512, device=device)).sum().item()
    free, total = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_reserved(device)
    return round((total - free - max(held, before)) / 2**20)


def record(out: Path, stage: str, values: dict[str, Any]) -> None:
    line = {"stage": stage, **values, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    with (out / "gpu.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def last_lines(text: str, count: int = 3) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-count:])[:600]


def as_markdown(lines: list[dict[str, Any]]) -> str:
    """Write all results as one table per stage and kind of result."""
    told = next((line for line in lines if line["result"] == "machine"), {})
    hidden = ("stage", "result", "time")
    text = ["# Measured by benchmarks/gpu.py", ""]
    text += [", ".join(f"{k} {v}" for k, v in told.items() if k not in hidden), ""]
    for stage in dict.fromkeys(line["stage"] for line in lines):
        text += [f"## {stage}", ""]
        own = [line for line in lines if line["stage"] == stage and line["result"] != "machine"]
        for result in dict.fromkeys(line["result"] for line in own):
            rows = [line for line in own if line["result"] == result]
            columns = [k for k in dict.fromkeys(k for row in rows for k in row) if k not in hidden]
            text += [f"{result}:", "", "| " + " | ".join(columns) + " |"]
            text += ["|" + "---|" * len(columns)]
            for row in rows:
                cells = [str(row.get(column, "")).replace("|", "/") for column in columns]
                text += ["| " + " | ".join(cells) + " |"]
            text += [""]
    return "\n".join(text)


if __name__ == "__main__":
    sys.exit(main())
