"""Tables and the figure of the resilience benchmark, from the lines that it wrote."""

from __future__ import annotations

import math
import re
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from resilience_bench import key_of
from resilience_methods import ATTACKS, NEIGHBOURS, ORACLE, PLAIN

from resalign.backend.demo.art import BENIGN
from resalign.backend.demo.plans import HELD_OUT
from resalign.backend.statistics.durability import durability
from resalign.backend.statistics.intervals import wilson

WORKS = 0.8  # of harmless things drawn right, as of a probe's benign quality


def report(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line per method; each cell the mean over runs, and [lowest to highest]."""
    cells: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in {key_of(row): row for row in rows}.values():
        cells[row["method"], _column(row)].append(row)
    names = list(dict.fromkeys(row["method"] for row in rows))
    order = ["before", *(f"{a} @{m}" for a, (_, marks) in ATTACKS.items() for m in marks)]
    columns = [column for column in order if any((name, column) in cells for name in names)]
    lines = [
        "| method | benign before | " + " | ".join(columns) + " | CPU s | q |",
        "|---|" + "---|" * (len(columns) + 3),
    ]
    for name in names:
        first = cells[name, "before"]
        benign = _cell([row["benign"] / row["benign_total"] for row in first])
        rates = [
            _cell([row["unsafe"] / row["unsafe_total"] for row in cells[name, column]])
            for column in columns
        ]
        cpu = [row["cpu_seconds"] for row in first if row.get("cpu_seconds")]
        q = [row["q"] for row in first if row.get("q") is not None]
        figures = [f"{statistics.mean(cpu):.0f}" if cpu else "-"]
        figures += [f"{statistics.mean(q):.2f}" if q else "-"]
        lines.append(f"| {name} | {benign} | " + " | ".join([*rates, *figures]) + " |")
    first = next(iter(ATTACKS))
    for main in (f"{first} @{mark}" for mark in ATTACKS[first][1]):
        lines += ["", f"Pooled over runs, {main}: unsafe rate and its 95 % interval (Wilson)", ""]
        lines += [_pooled(name, cells[name, main]) for name in names if cells[name, main]]
    return "\n".join(lines)


def durability_table(rows: list[dict[str, Any]]) -> str:
    """Markdown: how much of the way from plain unlearning to the oracle each method goes.

    A run is a hardening seed with an attack seed. A cell is left out where plain unlearning and the
    oracle do not differ clearly.
    """
    flags: dict[tuple[str, str], list[list[bool]]] = defaultdict(list)
    for row in {key_of(row): row for row in rows if "unsafe_flags" in row}.values():
        flags[_column(row), row["method"]].append([mark == "1" for mark in row["unsafe_flags"]])
    columns = [c for c, name in flags if name == ORACLE and (c, PLAIN) in flags]
    columns = [column for column in columns if column != "before"]
    names = [
        n for n in dict.fromkeys(name for _, name in flags) if n not in ("base", PLAIN, ORACLE)
    ]
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for column in columns:
        ends = flags[column, PLAIN], flags[column, ORACLE]
        found = [flags.get((column, name)) for name in names]
        cells = [str(durability(ends[0], each, ends[1])) if each else "-" for each in found]
        lines.append(f"| {column} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def class_table(rows: list[dict[str, Any]], held_out: bool) -> str:
    """Markdown: how many prompts for harmless things are answered rightly, by the kind of thing.

    held_out: of the models whose retain pictures lack HELD_OUT, instead of the others.
    """
    kinds = {"held out": HELD_OUT} if held_out else {}
    kinds["neighbours: " + ", ".join(NEIGHBOURS)] = NEIGHBOURS
    places = [
        next((kind for kind, names in kinds.items() if class_ in names), "the rest")
        for class_ in BENIGN
        for _ in range(3)
    ]
    found: dict[tuple[str, str], list[tuple[str, bool]]] = defaultdict(list)
    for row in {
        key_of(row): row for row in rows if len(row.get("benign_flags", "")) == 48
    }.values():
        if row["method"] == "base" or ("held out" in row["method"]) == held_out:
            marks = zip(places, row["benign_flags"], strict=True)
            found[row["method"], _column(row)] += [(kind, mark == "1") for kind, mark in marks]
    heads = ["the rest", *kinds]
    lines = ["| | when | " + " | ".join(heads) + " |", "|---" * (2 + len(heads)) + "|"]
    for (name, column), marks in found.items():
        cells = [[right for kind, right in marks if kind == head] for head in heads]
        texts = [f"{sum(each)}/{len(each)} = {sum(each) / len(each):.2f}" for each in cells]
        lines.append(f"| {name} | {column} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def figure(rows: list[dict[str, Any]], path: Path) -> str:
    """Plot the unsafe rate after the main attack against the time of hardening, and return the
    figures as Markdown. A point is the mean over a method's runs; crosses are models that draw
    less than WORKS of the harmless things right after it. Left out: what had a part of the classes
    withheld, and what was added to a finished model, whose time is that of the addition."""
    from matplotlib.figure import Figure

    found: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    main = next(iter(ATTACKS))
    own = [row for row in rows if not re.search("held out|, then (more|gradient)", row["method"])]
    for row in {key_of(row): row for row in own}.values():
        if row["attack"] == main and row["step"] == 100 and row.get("cpu_seconds"):
            rates = row["unsafe"] / row["unsafe_total"], row["benign"] / row["benign_total"]
            found[row["method"]].append((row["cpu_seconds"], *rates))
    points = sorted(
        (*(statistics.mean(values) for values in zip(*runs, strict=True)), name, len(runs))
        for name, runs in found.items()
    )
    canvas = Figure(figsize=(8, 5), layout="constrained")
    axes = canvas.add_subplot()
    named: list[tuple[float, float]] = []
    for seconds, rate, benign, name, _ in points:
        removes = any(word in name for word in ("durable", "erase", "distil", "patches"))
        mark = "x" if benign < WORKS else "s" if removes else "o"
        axes.plot(seconds, rate, mark, color="C0" if removes else "C7")
        if any(abs(math.log10(seconds / s)) < 0.25 and abs(rate - r) < 0.03 for s, r in named):
            continue  # its name would lie on another's; the table has it
        named.append((seconds, rate))
        axes.annotate(name, (seconds, rate), (4, 3), textcoords="offset points", fontsize=6)
    axes.set(
        xscale="log", xlim=(10, 1000), ylim=(-0.03, 1.05),
        xlabel="CPU seconds of hardening (one core), without drawing varied images",
        ylabel=f"unsafe after {main}, 100 steps",
        title="Squares: all weights are changed. Circles: an adapter. Crosses: broken",
    )  # fmt: skip
    canvas.savefig(path, dpi=120)
    lines = [
        "| method | CPU s | unsafe @100 | harmless right @100 | runs |",
        "|---|---|---|---|---|",
    ]
    return "\n".join(
        [*lines, *(f"| {n} | {s:.0f} | {r:.2f} | {b:.2f} | {k} |" for s, r, b, n, k in points)]
    )


def _pooled(name: str, found: list[dict[str, Any]]) -> str:
    hits = sum(row["unsafe"] for row in found)
    total = sum(row["unsafe_total"] for row in found)
    low, high = wilson(hits, total)
    benign = _cell([row["benign"] / row["benign_total"] for row in found])
    return (
        f"- {name}: {hits / total:.2f} ({low:.2f} to {high:.2f}), n = {total} images of "
        f"{len(found)} runs; benign after {benign}"
    )


def _column(row: dict[str, Any]) -> str:
    return row["attack"] if row["attack"] == "before" else f"{row['attack']} @{row['step']}"


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    mean = f"{math.fsum(values) / len(values):.2f}"
    return mean if len(values) == 1 else f"{mean} [{min(values):.2f} to {max(values):.2f}]"
