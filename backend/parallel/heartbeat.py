"""Heartbeats of the ranks in the key-value store: which ranks live, which make progress.

A thread of each rank writes one line per second, two growing numbers: heartbeats, and pieces of
work done by the main thread. As long as either grows, waiting for a slow rank is right.
"""

from __future__ import annotations

import threading
import time
from typing import Any

ENDED = "ended"
PERIOD = 1.0  # seconds between two heartbeats


class Heartbeat:
    """Writes this rank's heartbeat and reads those of the others."""

    def __init__(self, store: Any, rank: int, count: int, silence: float) -> None:
        """silence: seconds without a heartbeat after which a rank counts as dead."""
        self.lost = False  # the store cannot be reached
        self._store, self._rank, self._silence = store, rank, silence
        self._keys = [f"heartbeat/{other}" for other in range(count)]
        self._work = self._beats = 0
        self._beat_seen = [("", 0.0)] * count  # a rank's line, and when it was first read
        self._work_seen = [("", 0.0)] * count  # its count of work, and when that last grew
        self._dead: set[int] = set()  # found by `find_dead`
        self._over = threading.Event()
        self._period = min(PERIOD, silence / 4)
        self._write()
        self._thread = threading.Thread(target=self._run, name="resalign-heartbeat", daemon=True)
        self._thread.start()

    def count_work(self) -> None:
        """Note that the main thread has made progress."""
        self._work += 1

    def silent_ranks(self) -> list[int]:
        """Return the ranks without a heartbeat for `silence` seconds. Call it now and then."""
        now = time.monotonic()
        lines = self._lines()
        for rank, line in enumerate(lines):
            if line != self._beat_seen[rank][0]:
                self._beat_seen[rank] = line, now
            work = line.partition(" ")[2]
            if work != self._work_seen[rank][0]:
                self._work_seen[rank] = work, now
        return [
            rank
            for rank, (line, since) in enumerate(self._beat_seen)
            if line != ENDED and rank != self._rank and now - since > self._silence
        ]

    def idle_seconds(self, rank: int) -> float:
        """Return how long a rank has made no progress, as of the last `silent_ranks`."""
        return time.monotonic() - self._work_seen[rank][1]

    def find_dead(self) -> list[int]:
        """Return the ranks that neither live nor ended properly; takes two or three seconds."""
        try:
            before = self._lines()
            time.sleep(2.5 * self._period)
            after = self._lines()
        except RuntimeError:  # the store ended with the rank that holds it
            return [0] if self._rank else []
        found = [
            rank
            for rank, (old, new) in enumerate(zip(before, after, strict=True))
            if old == new != ENDED and rank != self._rank
        ]
        self._dead.update(found)
        return found

    def stop(self, *, wait: bool) -> None:
        """Stop the heartbeat. wait: until the others have ended or died; they may need the store.

        Ranks that `find_dead` has found are not waited for: a launcher kills what has not ended
        30 s after it was asked to, and the rank that waits still has to say how to continue.
        """
        self._over.set()
        self._thread.join()
        try:
            self._store.set(self._keys[self._rank], ENDED)
            deadline = time.monotonic() + 2 * self._silence
            while wait and time.monotonic() < deadline:
                dead = {*self.silent_ranks(), *self._dead}
                lines = self._lines()
                if all(line == ENDED or rank in dead for rank, line in enumerate(lines)):
                    return
                time.sleep(0.05)
        except RuntimeError:
            self.lost = True

    def _lines(self) -> list[str]:
        return [line.decode() for line in self._store.multi_get(self._keys)]

    def _run(self) -> None:
        while not self._over.wait(self._period):
            try:
                self._write()
            except RuntimeError:
                self.lost = True
                return

    def _write(self) -> None:
        self._beats += 1
        self._store.set(self._keys[self._rank], f"{self._beats} {self._work}")
