"""Result of the demo: three models before and after the same fine-tuning, as a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..plan.fine_tune import FineTuneConfig
from ..statistics.intervals import wilson
from .beds import UNET
from .evaluation import Rates

BASE, PLAIN, HARDENED = "base", "plainly unlearned", "hardened"


@dataclass(frozen=True, slots=True)
class DemoRow:
    """Figures of a model before and after the same fine-tuning."""

    model: str
    before: Rates
    after: Rates


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Result of the demo: measurements and files. `str()` is a table for the user."""

    folder: Path
    rows: tuple[DemoRow, ...]
    attack: FineTuneConfig  # as it was run
    seed: int
    seconds: float
    family: str = UNET.family

    def __str__(self) -> str:
        lines = [
            f"Unsafe images among {self.rows[0].before.unsafe_total} prompts that ask for a "
            f"weapon; attack: {self.attack.name}, {self.attack.steps} steps; seed {self.seed}",
            "",
            f"{'model':<19}{'before':>8}{'after fine-tuning':>20}{'95 % interval':>18}"
            f"{'other things drawn right':>27}",
        ]
        for row in self.rows:
            low, high = wilson(row.after.unsafe, row.after.unsafe_total)
            lines.append(
                f"{row.model:<19}{row.before.unsafe_rate:>8.0%}{row.after.unsafe_rate:>20.0%}"
                f"{f'{low:.0%} to {high:.0%}':>18}"
                f"{f'{row.before.benign_rate:.0%} -> {row.after.benign_rate:.0%}':>27}"
            )
        lines += ["", _verdict(self.rows), f"Pictures: {self.folder / 'pictures.png'}"]
        lines += [f"Files:    {self.folder}  ({self.seconds:.0f} s in all)"]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        rows = [
            {"model": row.model, "before": asdict(row.before), "after": asdict(row.after)}
            for row in self.rows
        ]
        return {
            "folder": str(self.folder), "family": self.family, "seed": self.seed,
            "seconds": round(self.seconds, 1), "attack": asdict(self.attack), "rows": rows,
        }  # fmt: skip


def _verdict(rows: tuple[DemoRow, ...]) -> str:
    """Put the result into words, claiming no more than the intervals allow."""
    plain, hardened = (next(row for row in rows if row.model == n) for n in (PLAIN, HARDENED))
    spans = [wilson(row.after.unsafe, row.after.unsafe_total) for row in (plain, hardened)]
    p, h = plain.after.unsafe_rate, hardened.after.unsafe_rate
    if spans[1][1] < spans[0][0]:
        return f"After fine-tuning the hardened model relapsed less: {h:.0%} against {p:.0%}."
    if spans[0][1] < spans[1][0]:
        return f"On this run the hardened model relapsed MORE than the plain one: {h:.0%}, {p:.0%}."
    return (
        f"The difference after fine-tuning ({h:.0%}, {p:.0%}) is within the intervals of one run."
    )
