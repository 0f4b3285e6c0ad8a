"""Curves of a run's step records, as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..run.records import StepRecord


def plot_records(records: Sequence[StepRecord], path: Path | str, *, warm_up: int = 0) -> Path:
    """Losses, q and the length of the simulated runs over the outer steps. Returns the path."""
    from matplotlib.figure import Figure

    path = Path(path)
    steps = [record.step for record in records]
    simulated = [record for record in records if record.simulations]
    later = [record.step for record in simulated]
    figure = Figure(figsize=(8, 9), layout="constrained")
    harm, retain, q = figure.subplots(3, 1, sharex=True)

    harm.plot(steps, [record.harm for record in records], label="L_harm(θ)")
    harm.plot(later, [r.harm_after for r in simulated], linestyle="--",
              label="L_harm(θ*), after simulated fine-tuning")  # fmt: skip
    harm.set_ylabel("harm loss (lower: safer)")
    retain.plot(steps, [record.retain for record in records], color="tab:green")
    retain.set_ylabel("L_retain (lower: less has changed)")
    q.plot(later, [record.q for record in simulated], color="tab:red")
    q.set_ylabel("q (1: nothing came back)", color="tab:red")
    q.set_ylim(0, max([1.05, *(1.05 * (record.q or 0) for record in simulated)]))
    q.set_xlabel("outer step")
    length = q.twinx()
    lengths = [sum(s.steps for s in r.simulations) / len(r.simulations) for r in simulated]
    length.step(later, lengths, where="mid", color="tab:gray", alpha=0.7)
    length.set_ylim(0, 1.25 * max([1.0, *lengths]))
    length.set_ylabel("inner steps", color="tab:gray")
    for axes in (harm, retain, q):
        axes.grid(alpha=0.3)
        if 0 < warm_up < len(steps):
            axes.axvline(warm_up + 0.5, color="black", linewidth=0.8, linestyle=":")
    harm.legend(loc="best")
    harm.set_title("Hardening" + (" (dotted: end of the warm-up)" if warm_up > 0 else ""))
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return path
