"""Heartbeats: which ranks are waited for at the end of a run."""

from __future__ import annotations

import time

from resalign.backend.parallel import heartbeat as module
from resalign.backend.parallel.heartbeat import Heartbeat


class Store(dict):
    """A key-value store in this process, with the methods of torch's that are used."""

    def set(self, key: str, value: str) -> None:
        self[key] = value.encode()

    def multi_get(self, keys: list[str]) -> list[bytes]:
        return [self[key] for key in keys]


def test_the_end_does_not_wait_for_a_rank_that_was_found_dead(monkeypatch):
    """A launcher kills the first rank 30 s after it has asked it to stop: it must be quicker."""
    monkeypatch.setattr(module, "PERIOD", 0.05)
    store = Store()
    store.set("heartbeat/1", "7 3")  # its last, as it was killed
    first = Heartbeat(store, 0, 2, silence=30.0)
    assert first.find_dead() == [1]
    began = time.monotonic()
    first.stop(wait=True)
    assert time.monotonic() - began < 5
    assert store["heartbeat/0"] == b"ended"


def test_the_end_waits_for_those_that_live(monkeypatch):
    monkeypatch.setattr(module, "PERIOD", 0.05)
    store = Store()
    other = Heartbeat(store, 1, 2, silence=30.0)
    first = Heartbeat(store, 0, 2, silence=30.0)
    assert first.find_dead() == []
    other.stop(wait=False)
    first.stop(wait=True)
    assert store["heartbeat/1"] == b"ended"
