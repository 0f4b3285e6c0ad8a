"""Signs of life of the ranks, in the store: who lives, who works, who has ended properly.

A thread of each rank writes a line a second, two growing numbers: seconds lived, and pieces of
work done by the main thread. Waiting for a slow rank is right as long as either grows.
"""

from __future__ import annotations

import threading
import time
from typing import Any

ENDED = "ended"
SIGNS = 1.0  # seconds between two signs of life


class Life:
    """This rank's signs, and what it knows of the others'."""

    def __init__(self, store: Any, rank: int, count: int, silence: float) -> None:
        self.lost = False  # the store cannot be reached
        self._store, self._rank, self._silence = store, rank, silence
        self._names = [f"life/{other}" for other in range(count)]
        self._work = self._lived = 0
        self._seen = [("", 0.0)] * count  # line, and when it was first seen
        self._worked = [("", 0.0)] * count
        self._dead: set[int] = set()  # as `dead_now` has found
        self._over = threading.Event()
        self._period = min(SIGNS, silence / 4)
        self._write()
        self._thread = threading.Thread(target=self._live, name="resalign-life", daemon=True)
        self._thread.start()

    def work(self) -> None:
        """The main thread has got on."""
        self._work += 1

    def silent(self) -> list[int]:
        """Ranks without a sign of life for longer than is thinkable. Call it now and then."""
        now = time.monotonic()
        lines = self._lines()
        for rank, line in enumerate(lines):
            if line != self._seen[rank][0]:
                self._seen[rank] = line, now
            work = line.partition(" ")[2]
            if work != self._worked[rank][0]:
                self._worked[rank] = work, now
        return [
            rank
            for rank, (line, since) in enumerate(self._seen)
            if line != ENDED and rank != self._rank and now - since > self._silence
        ]

    def idle(self, rank: int) -> float:
        """Seconds for which a rank has not got on, as far as `silent` has seen."""
        return time.monotonic() - self._worked[rank][1]

    def dead_now(self) -> list[int]:
        """Ranks that neither live nor have ended properly; takes two or three seconds."""
        try:
            before = self._lines()
            time.sleep(2.5 * self._period)
            after = self._lines()
        except RuntimeError:  # the store went with the rank that held it
            return [0] if self._rank else []
        found = [
            rank
            for rank, (old, new) in enumerate(zip(before, after, strict=True))
            if old == new != ENDED and rank != self._rank
        ]
        self._dead.update(found)
        return found

    def end(self, *, wait: bool) -> None:
        """No more signs. wait: until the others have ended or died, as they may need the store.

        Nobody is waited for who was found dead before: a launcher kills what has not ended 30 s
        after it was asked to, and the one that waits has still to say how to go on.
        """
        self._over.set()
        self._thread.join()
        try:
            self._store.set(self._names[self._rank], ENDED)
            deadline = time.monotonic() + 2 * self._silence
            while wait and time.monotonic() < deadline:
                dead = {*self.silent(), *self._dead}
                lines = self._lines()
                waiting = (r for r, line in enumerate(lines) if line != ENDED and r not in dead)
                if not any(True for _ in waiting):
                    return
                time.sleep(0.05)
        except RuntimeError:
            self.lost = True

    def _lines(self) -> list[str]:
        return [line.decode() for line in self._store.multi_get(self._names)]

    def _live(self) -> None:
        while not self._over.wait(self._period):
            try:
                self._write()
            except RuntimeError:
                self.lost = True
                return

    def _write(self) -> None:
        self._lived += 1
        self._store.set(self._names[self._rank], f"{self._lived} {self._work}")
