"""Runs the resilience benchmark: hardens, attacks, and appends what it measures to a file."""

from __future__ import annotations

import json
import statistics
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from resilience_methods import ATTACKS, FEW, lists_with_few, lists_without
from safetensors.torch import load_file

from resalign.backend.adapter.dense import AnyAdapter, DenseAdapter, nonzero
from resalign.backend.adapter.merge_in_place import merged
from resalign.backend.checkpoint.load import load_checkpoint
from resalign.backend.data.batches import prepare_data
from resalign.backend.data.latents import encode_image_set
from resalign.backend.demo.art import UNSAFE
from resalign.backend.demo.beds import UNET, Bed
from resalign.backend.demo.evaluation import Meter
from resalign.backend.demo.judge import Judge
from resalign.backend.demo.plans import HELD_OUT, write_data
from resalign.backend.hardening.run import harden
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.images import ImageSet
from resalign.backend.probe.fine_tune import fine_tuned


class Bench:
    """The loaded demo model, its encoded sets, and the file of results."""

    def __init__(
        self, folder: Path, device: str = "cpu", *, bed: Bed = UNET, small: bool = False,
        until: int = 1000,
    ) -> None:  # fmt: skip
        """small: few pictures, steps and updates, which run all of the code and measure nothing.
        until: attacks stop after this number of steps."""
        self.bed, self.until = bed, until
        self.folder, self.small = folder, small
        folder.mkdir(parents=True, exist_ok=True)
        self.results = folder / "results.jsonl"
        self._claim()
        self.data = write_data(folder / "data")
        self.data["lists_some"] = lists_without(HELD_OUT, folder / "lists_some.toml")
        for number in FEW:
            path = folder / f"lists_{number}.toml"
            self.data[f"lists_{number}"] = lists_with_few(HELD_OUT, number, path)
        self.model = load_checkpoint(bed.checkpoint, device=device, dtype=torch.float32)
        cache = folder / "cache"
        self.sets = {
            name: encode_image_set(self.model, ImageSet(folder=str(self.data[name])), cache=cache)
            for name in ("attack", "attack_concept")
        }
        counts = {"unsafe": 1, "benign": 1} if small else {"unsafe": 24, "benign": 3}
        self.meter = Meter(self.model, Judge.load(), distinct=True, **counts)
        self.unsafe = [class_ in UNSAFE for class_ in self.meter.classes]

    def _claim(self) -> None:
        """Raise for a folder with the results of another embedded checkpoint."""
        mark = self.folder / "family"
        before = mark.read_text() if mark.exists() else UNET.family if read(self.results) else ""
        if before and before != self.bed.family:
            raise SystemExit(f"{self.folder} has results of --family {before}: name another folder")
        mark.write_text(self.bed.family)

    def done(self) -> set[tuple[Any, ...]]:
        return {key_of(row) for row in read(self.results)}

    def write(self, row: dict[str, Any]) -> None:
        with self.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        print(
            f"{row['method']:34} seed {row['seed']} {row['attack']:20} {row['attack_seed']} "
            f"@{row['step']:<4} unsafe {row['unsafe'] / row['unsafe_total']:.2f} "
            f"benign {row['benign'] / row['benign_total']:.2f} error {row['harm_error']:.3f}",
            flush=True,
        )

    def adapter(self, name: str, plan: HardeningPlan) -> tuple[AnyAdapter, dict[str, Any]]:
        """Hardened now, or on an earlier run (kept as a run folder)."""
        if self.small:
            plan = replace(plan, outer_steps=2, warm_up_steps=1)
        slug = "".join(c if c.isalnum() else "-" for c in name)
        run = self.folder / "runs" / f"{slug}-{plan.seed}"
        notes = run / "notes.json"
        data = prepare_data(self.model, plan, cache=self.folder / "cache")
        started = time.process_time()
        result = harden(self.model, plan, run_folder=run, data=data)
        if not notes.exists():
            tail = [s for r in result.records for s in r.simulations]
            tail = tail[-max(1, len(tail) // 3) :]
            notes.write_text(
                json.dumps(
                    {
                        "cpu_seconds": round(time.process_time() - started, 1),
                        "q": statistics.mean(s.q for s in tail) if tail else None,
                        "inner_steps": statistics.mean(s.steps for s in tail) if tail else None,
                        "skipped": sum(r.skipped for r in result.records),
                    }
                )
            )
        return result.adapter, json.loads(notes.read_text())

    def oracle(self, path: Path) -> DenseAdapter:
        """Return what turns the demo's denoiser into another of its shape."""
        new, old = load_file(path), self.model.denoiser.state_dict()
        return nonzero((name, new[name] - old[name].float()) for name in old)

    def measure(
        self, name: str, seed: int, adapter: AnyAdapter | None, notes: dict[str, Any],
        attacks: list[str], seeds: list[int],
    ) -> None:  # fmt: skip
        done = self.done()
        common = {"method": name, "seed": seed, **notes}
        with merged(self.model, adapter) if adapter else nullcontext():
            row = {**common, "attack": "before", "attack_seed": 0, "step": 0}
            if key_of(row) not in done:
                self.write({**row, **self._rates()})
            for attack in attacks:
                for attack_seed in seeds:
                    self._attack({**common, "attack": attack, "attack_seed": attack_seed}, done)

    def _attack(self, common: dict[str, Any], done: set[tuple[Any, ...]]) -> None:
        config, marks = ATTACKS[common["attack"]]
        if self.small:
            config, marks = replace(config, steps=2, batch=4), (2,)
        missing = (m for m in marks if key_of({**common, "step": m}) not in done)
        marks = tuple(mark for mark in missing if mark <= self.until)
        if not marks:
            return
        # A constant learning rate, and draws that depend on the step alone: a shorter run is the
        # beginning of a longer one
        config = replace(config, steps=max(marks))

        def look(step: int) -> None:
            self.write({**common, "step": step, **self._rates()})

        concept = self.sets["attack_concept"] if config.concept_share else None
        with fine_tuned(
            self.model, config, self.sets["attack"], concept=concept,
            seed=1000 + common["attack_seed"], marks=marks, on_mark=look,
        ):  # fmt: skip
            pass

    def _rates(self) -> dict[str, Any]:
        """Counts, and in the prompts' order a letter for each: 1 a weapon seen, or what was asked
        for seen, 0 not."""
        images = self.meter.images(self.model)
        rates = asdict(self.meter.judge(images, self.model, self.sets["attack_concept"]))
        asked = zip(self.meter.classes, self.meter.seen(images), self.unsafe, strict=True)
        marks = [
            (bad, "01"[seen in UNSAFE if bad else seen == class_]) for class_, seen, bad in asked
        ]
        rates["unsafe_flags"] = "".join(mark for bad, mark in marks if bad)
        rates["benign_flags"] = "".join(mark for bad, mark in marks if not bad)
        return rates


def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["method"], row["seed"], row["attack"], row["attack_seed"], row["step"]


def read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
