"""Starts a few processes as a launcher would, each of which runs a piece of Python.

Importing torch and diffusers takes each process seconds. So one process, this file run as a
script, imports them once, computes nothing, and forks every rank.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_HEAD = """
import os, signal, sys, time, torch
from pathlib import Path
from resalign.backend.parallel.launch import join_ranks
from resalign.backend.hardening.run import harden
from fakes import encoded_data, tiny_model
from test_harden import FAST, SLOW, plan
"""


@dataclass
class Rank:
    """A process under way: its number, what it says, how it ended."""

    pid: int
    output: Path

    def text(self) -> str:
        return self.output.read_text()

    def code(self) -> int | None:
        """Exit code, or minus the signal that ended it; None while it runs."""
        file = self.output.with_suffix(".code")
        return int(file.read_text()) if file.exists() else None

    def kill(self, number: int = signal.SIGKILL) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)


class Launcher:
    """Forks ranks from a process that has imported everything."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def start(self, lines: str, count: int, folder: Path, **environment: str) -> list[Rank]:
        """`count` processes of one run, each executing `lines` with `folder` as `here`."""
        folder.mkdir(parents=True, exist_ok=True)
        code = _HEAD + f"here = Path({str(folder)!r})\n" + textwrap.dedent(lines)
        shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", **environment}
        shared["MASTER_PORT"] = str(free_port())
        ranks = []
        for rank in range(count):
            own = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            output = folder / f"rank{rank}-{time.monotonic_ns()}.txt"
            pid = self._ask({"code": code, "environment": own, "output": str(output)})
            ranks.append(Rank(pid, output))
        return ranks

    def run(self, lines: str, count: int, folder: Path, **environment: str) -> list[Rank]:
        """As `start`; all must end well."""
        ranks = self.start(lines, count, folder, **environment)
        codes = finish(ranks)
        assert codes == [0] * count, [rank.text() for rank in ranks]
        return ranks

    def close(self) -> None:
        self._process.communicate()

    def _ask(self, wish: dict) -> int:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(wish) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def finish(ranks: list[Rank], seconds: float = 60) -> list[int | None]:
    """Exit codes of all; those that run for longer are killed, and have none."""
    deadline = time.monotonic() + seconds
    while any(rank.code() is None for rank in ranks) and time.monotonic() < deadline:
        time.sleep(0.05)
    codes = [rank.code() for rank in ranks]
    for rank, code in zip(ranks, codes, strict=True):
        if code is None:
            rank.kill()
    return codes


def until(true, seconds: float = 40) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "this should have come by now"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _serve() -> None:
    """Fork a process per line of stdin; write down how each ends."""
    running: dict[int, Path] = {}
    asking = True
    while asking or running:
        if asking and select.select([sys.stdin], [], [], 0.05)[0]:
            line = sys.stdin.readline()
            asking = bool(line)
            if line:
                wish = json.loads(line)
                pid = os.fork()
                if not pid:
                    _become(wish)
                running[pid] = Path(wish["output"]).with_suffix(".code")
                os.write(1, f"{pid}\n".encode())
        elif not asking:
            time.sleep(0.05)
        pid, status = os.waitpid(-1, os.WNOHANG) if running else (0, 0)
        if pid:
            file = running.pop(pid)
            file.with_suffix(".tmp").write_text(str(os.waitstatus_to_exitcode(status)))
            file.with_suffix(".tmp").replace(file)


def _become(wish: dict) -> None:
    """The forked process: run the code, say everything into its file."""
    code = 1
    output = os.open(wish["output"], os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ |= wish["environment"]
    try:
        exec(wish["code"], {"__name__": "rank"})  # noqa: S102
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    import conftest  # noqa: F401
    import torch

    torch.set_num_threads(1)
    import torch.distributed
    from diffusers import UNet2DConditionModel  # noqa: F401
    from test_harden import plan  # noqa: F401

    import resalign.backend.hardening.run
    import resalign.backend.parallel.process_group  # noqa: F401
    from fakes import tiny_model  # noqa: F401

    _serve()
