"""A few ratios against stored ones: has something become slower?

    python benchmarks/guard.py            compare; exit 1 where one is more than 20 % over
    python benchmarks/guard.py --store    measure, and keep the ratios in guard.json

Each is the time of something of ours over that of the bare work it consists of, both measured in
turn in the same run, so that it says little of the machine: the least of several, in CPU seconds.
One that seems slower is measured again, up to five rounds: noise passes, a slowdown stays.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cost
import torch
from cost import cpu_seconds

from resalign.backend.adapter.apply import AdaptedDenoiser
from resalign.backend.adapter.lora import Adapter
from resalign.backend.checkpoint.save import export_merged
from resalign.backend.hardening.setup import set_up
from resalign.backend.hardening.training import train_step
from resalign.backend.plan.adapter import AdapterConfig

STORED = Path(__file__).with_name("guard.json")
ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "backend/demo/assets/demo_sd.safetensors"
ALLOWED, ROUNDS, REPEATS = 1.2, 5, 5

# What is measured and its bare work; each call does it once and returns seconds.
Pair = tuple[Callable[[], float], Callable[[], float]]


@contextmanager
def outer_step(method: str) -> Iterator[Pair]:
    """An outer step over the bare passes that it needs, on the network of the demo."""
    _, context, _, _, side = cost.SIZES["tiny"]
    model, data = cost.build("tiny")
    with AdaptedDenoiser(model, AdapterConfig()) as denoiser:
        setup = set_up(denoiser, cost.plan(method), data)
        bare = cost.bare(denoiser, cost.INNER, side, context)
        frozen = cost.forward(denoiser, cost.RETAIN, side, context)
        products = 2 * cost.PRODUCTS if method == "richardson" else 0

        def needed() -> None:
            frozen()
            for _ in range(3 + cost.STEPS + products):  # every batch is of the same size
                bare()

        yield lambda: cpu_seconds(lambda: train_step(setup, 1)), lambda: cpu_seconds(needed)


@contextmanager
def export() -> Iterator[Pair]:
    """An export over the SHA-256 of its source, twice: what it hashes."""
    names = ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source.safetensors", Path(folder) / "out.safetensors"
        shape = _padded_demo(source)
        tensors = {}
        for name in names:
            tensors[name + ".lora_A.weight"] = torch.ones(4, shape[1]) * 1e-3
            tensors[name + ".lora_B.weight"] = torch.ones(shape[0], 4) * 1e-3
        adapter = Adapter(tensors, 4, 4.0)

        def hashes() -> None:
            data = source.read_bytes()
            for _ in range(2):
                hashlib.sha256(data).digest()

        yield (
            lambda: cpu_seconds(lambda: export_merged(source, adapter, target, overwrite=True)),
            lambda: cpu_seconds(hashes),
        )


def _padded_demo(path: Path) -> tuple[int, int]:
    """The demo's checkpoint with 256 MiB more in it; the shape of its first to_q weight."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(DEMO, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    tensors["padding"] = torch.zeros(1 << 28, dtype=torch.uint8)
    save_file(tensors, path, metadata)
    name = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    height, width = tensors[name].shape
    return height, width


@contextmanager
def start(*arguments: str) -> Iterator[Pair]:
    """Ten starts of Python with ours over ten that import some of its own library.

    Bare starts would be no measure: they take twice as long where the package is installed for
    editing.
    """
    python = [sys.executable, "-I"]
    library = "import asyncio, http.client, unittest.mock, xml.dom.minidom"

    def seconds(command: list[str]) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def ten(command: list[str]) -> float:
        return sum(seconds(command) for _ in range(10))

    yield lambda: ten([*python, *arguments]), lambda: ten([*python, "-c", library])


MEASURED: dict[str, Callable[[], object]] = {
    "outer step, first order / passes": lambda: outer_step("first_order"),
    "outer step, 4 products / passes": lambda: outer_step("richardson"),
    "export / two hashes": export,
    "resalign --help / imports": lambda: start("-m", "resalign", "--help"),
    "resalign inspect / imports": lambda: start("-m", "resalign", "inspect", str(DEMO)),
    "import resalign / imports": lambda: start("-c", "import resalign"),
}


def measure(name: str, most: float | None) -> tuple[float, float]:
    """(ratio, seconds of ours); measured again while the ratio is over `most`."""
    ours, bare = [], []
    with MEASURED[name]() as (work, baseline):  # type: ignore[attr-defined]
        work(), baseline()
        for _ in range(ROUNDS):
            for _ in range(REPEATS):
                ours.append(work())
                bare.append(baseline())
            if most is None or min(ours) / min(bare) <= most:
                break
    return min(ours) / min(bare), min(ours)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--store", action="store_true", help="keep what is measured as the rule")
    given = parser.parse_args()
    torch.set_num_threads(1)
    stored = {} if given.store else json.loads(STORED.read_text(encoding="utf-8"))
    if not given.store and set(stored) != set(MEASURED):
        print(f"{STORED.name} holds other measurements: run with --store and review the change")
        return 1
    found, slower = {}, []
    for name in MEASURED:
        most = None if given.store else ALLOWED * stored[name]
        ratio, seconds = measure(name, most)
        found[name] = round(ratio, 3)
        rule = "" if most is None else f", {stored[name]:.2f} stored, at most {most:.2f}"
        print(f"{name}: {ratio:.2f} ({seconds * 1000:.0f} ms{rule})", flush=True)
        if most is not None and ratio > most:
            slower.append(name)
    if given.store:
        STORED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if slower:
        print("slower than before by more than 20 %:", "; ".join(slower))
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
