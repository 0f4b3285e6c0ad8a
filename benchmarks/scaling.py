"""Speed-up by several processes: measured with real and with sleeping passes, modelled beyond.

`sleep`: the steps of a run with everything but the mathematics real: terms are given to ranks, each
pass (forward and backward) is a sleep, gradients of an adapter's true size are gathered and added
up, θ is adopted. Sleeping processes do not disturb one another, so this shows what sharing costs,
also on a machine with fewer cores than processes.
`real`: `harden` on the tests' tiny network. Where cores are busy, or fewer than processes, wall
time measures the machine; CPU seconds of the busiest rank say how it would be with free cores.
`model`: the sums of docs/scaling.md for machines that are not here.

    python benchmarks/scaling.py sleep [--passes 0.05] [--users 4] [--json FILE]
    python benchmarks/scaling.py real
    python benchmarks/scaling.py model
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

INNER = 15  # inner steps of a user
SIZES = {"sd1": 797_184, "sdxl": 5_806_080}  # parameters of an adapter of rank 4, attention
BEFORE = 1  # steps that are not counted: connections open, libraries load
COUNTED = {"sleep": 5, "real": 2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("sleep", "real", "model"))
    parser.add_argument("--passes", type=float, default=0.05, help="seconds of a sleeping pass")
    parser.add_argument("--users", type=int, default=4, help="J")
    parser.add_argument("--size", choices=SIZES, default="sd1")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--rank", metavar="FILE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        rank(args)
    elif args.what == "model":
        tables()
    else:
        measure(args)


# Measured.


def rank(args: argparse.Namespace) -> None:
    """One process: the first writes down how long each step took."""
    import torch

    torch.set_num_threads(1)
    from resalign.backend.parallel.launch import join_ranks

    with join_ranks() as ranks:
        marks = []  # CPU seconds of this process at the end of each step, and before the first
        adopt = ranks.adopt

        def marking(tensors):
            adopt(tensors)
            marks.append(time.process_time())

        ranks.adopt = marking  # type: ignore[method-assign]
        seconds = (sleeping if args.what == "sleep" else hardening)(args, ranks)
    cpu = [after - before for before, after in pairwise(marks)]
    found = {"seconds": seconds[BEFORE:], "cpu": cpu[BEFORE:]}
    Path(f"{args.rank}.{ranks.rank}").write_text(json.dumps(found))


def sleeping(args: argparse.Namespace, ranks) -> list[float]:
    import torch

    theta = {"θ": torch.zeros(SIZES[args.size])}
    gradient = torch.ones(SIZES[args.size])

    def work(passes: int):
        time.sleep(passes * args.passes)
        return passes, [gradient]

    def term(passes: int):
        return float(passes), lambda: work(passes)

    found = []
    ranks.adopt(theta.values())
    for _ in range(BEFORE + COUNTED[args.what]):
        started = time.perf_counter()
        terms = [term(1), term(1), *[term(INNER + 1) for _ in range(args.users)]]
        for _, gradients in ranks.spread(terms):
            theta["θ"].add_(gradients[0], alpha=1e-3)
        ranks.adopt(theta.values())
        found.append(time.perf_counter() - started)
    return found


def hardening(args: argparse.Namespace, ranks) -> list[float]:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    import resalign as ra
    from fakes import encoded_data, tiny_model

    users = tuple(
        ra.FineTuneConfig(name=str(j), learning_rate=1e-3, steps=INNER, batch=2)
        for j in range(args.users)
    )
    plan = ra.HardeningPlan(
        concept=ra.Concept("bad", prompts=("bad",)), fine_tunes=users,
        configurations_per_step=args.users, outer_steps=BEFORE + COUNTED["real"], warm_up_steps=0,
        regulator=ra.RegulatorConfig(enabled=False),
    )  # fmt: skip
    result = ra.harden(tiny_model(), plan, data=encoded_data(), ranks=ranks)
    return [record.seconds for record in result.records]


def measure(args: argparse.Namespace) -> None:
    """1, 2 and 4 processes in turn, several times over."""
    seconds: dict[int, list[float]] = {1: [], 2: [], 4: []}
    cpu: dict[int, list[float]] = {1: [], 2: [], 4: []}
    for _ in range(args.repeats):
        for count in seconds:
            ranks = timed(args, count)
            seconds[count] += ranks[0]["seconds"]
            cpu[count] += [max(steps) for steps in zip(*(r["cpu"] for r in ranks), strict=True)]
    cores = os.cpu_count() or 1
    print(f"J = {args.users}, {args.what}; {cores} cores, load {os.getloadavg()[0]:.1f}\n")
    real = args.what == "real"
    more = " CPU s of the busiest rank | speed-up by it |" if real else ""
    print(f"| processes | s per outer step (min to max) | speed-up | best possible |{more}")
    print("|---|---|---|---|" + "---|---|" * real)
    rows = []
    for count, found in seconds.items():
        middle, busy = statistics.median(found), statistics.median(cpu[count])
        gain, bound = statistics.median(seconds[1]) / middle, best(args.users, count)
        more = f" {busy:.3f} | {statistics.median(cpu[1]) / busy:.2f} |" if real else ""
        print(
            f"| {count} | {middle:.3f} ({min(found):.3f} to {max(found):.3f}) | {gain:.2f} | "
            f"{bound:.2f} |{more}"
        )
        rows.append({"processes": count, "seconds": found, "cpu": cpu[count], "best": bound})
    if args.json:
        record = {"what": args.what, "users": args.users, "passes": args.passes, "rows": rows}
        Path(args.json).write_text(json.dumps(record, indent=2) + "\n")


def timed(args: argparse.Namespace, count: int) -> list[dict]:
    """Return the step times that each rank recorded."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
        probe.close()
        file = Path(folder) / "seconds.json"
        command = [sys.executable, __file__, *sys.argv[1:], "--rank", str(file)]
        processes = []
        for number in range(count):
            own = {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(count)}
            own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
            processes.append(subprocess.Popen(command, env=os.environ | own))
        try:
            codes = [process.wait() for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert codes == [0] * count, codes
        return [json.loads(Path(f"{file}.{rank}").read_text()) for rank in range(count)]


# Modelled.


def loads(users: int, ranks: int) -> tuple[float, int, float]:
    """Passes of the rank with most to do, most terms of one rank, passes of all together."""
    from resalign.backend.parallel.ranks import assign

    costs = [1.0, 1.0, *[INNER + 1.0] * users]
    places = assign(costs, ranks)
    by_rank = [sum(c for c, p in zip(costs, places, strict=True) if p == r) for r in range(ranks)]
    return max(by_rank), max(places.count(r) for r in range(ranks)), sum(costs)


def best(users: int, ranks: int) -> float:
    """Speed-up if nothing but the mathematics took time."""
    longest, _, total = loads(users, ranks)
    return total / longest


def step_seconds(
    users: int, ranks: int, *, size: int, passes: float, bandwidth: float, latency: float
) -> tuple[float, float]:
    """(all, communication alone) of an outer step with users.

    Gradients go round a ring of `ranks`, θ down a tree; the meetings before them cost what a rank
    waits too long (a fiftieth of the wait, at most 50 ms) and a few round trips.
    """
    longest, terms, total = loads(users, ranks)
    if ranks == 1:
        return total * passes, 0.0
    adapter = 4 * size
    ring = (ranks - 1) * (terms * adapter / bandwidth + latency)
    tree = math.ceil(math.log2(ranks)) * (adapter / bandwidth + latency)
    meetings = 0.05 + 2 * 6 * latency
    told = ring + tree + meetings
    return longest * passes + told, told


GB = 1e9
NETWORKS = {"10 Gbit/s": (1.0 * GB, 1e-4), "100 Gbit/s": (5.0 * GB, 5e-5)}
MODELS = {"SD 1.5, 512 px": ("sd1", 0.15), "SDXL, 1024 px": ("sdxl", 0.8)}


def tables() -> None:
    """For docs/scaling.md; its assumptions are named there."""
    for name, (size, passes) in MODELS.items():
        for network, (bandwidth, latency) in NETWORKS.items():
            print(f"\n{name}, {network}\n")
            print("| GPUs | J | s per step | of it talking | speed-up | efficiency |")
            print("|---|---|---|---|---|---|")
            for ranks, users in ((1, 3), (4, 3), (8, 8), (64, 8), (16, 16), (64, 64), (64, 256)):
                options = {"size": SIZES[size], "passes": passes, "latency": latency}
                both = step_seconds(users, ranks, bandwidth=bandwidth, **options)
                alone, _ = step_seconds(users, 1, bandwidth=bandwidth, **options)
                gain = alone / both[0]
                print(
                    f"| {ranks} | {users} | {both[0]:.2f} | {both[1]:.2f} | {gain:.1f} | "
                    f"{gain / ranks:.0%} |"
                )


if __name__ == "__main__":
    main()
