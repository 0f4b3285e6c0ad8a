"""A rank among several: tensors go through gloo, everything else through a key-value store.

Before any tensors move, all ranks meet: each writes a line to the store and polls for the others'
lines, in Python, a few times a second. Meanwhile it notices which rank has stopped (a note says
why), died (its heartbeat ends) or hangs, and it can be interrupted. A collective begins when all
ranks have arrived, so it lasts as long as the transfer, and no rank waits for work inside one.

Tensors travel through the host's memory, also from CUDA: they are as small as the adapter, and
NCCL ends a process whose peer is gone before its state could be saved (docs/decisions/0004).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from .. import errors
from ..errors import ConfigError, RankError, ResAlignError
from ..progress import ProgressCallback, silent, with_check
from .heartbeat import Heartbeat
from .ranks import Classes, assign
from .wire import pack, unpack

T = TypeVar("T")
SILENCE = 30.0  # seconds without a heartbeat after which a rank counts as dead
_PIECE = 64 * 2**20  # bytes of one collective
_MESSAGE = 4 * 2**20  # bytes of one entry of the store, which takes no more than 8 MiB
_CHECKS = 0.25  # seconds between two checks of the other ranks


class ProcessGroup:
    """Connected to the other ranks until its context ends. `Ranks` describes the methods.

    All ranks must call those that begin with a meeting (`share`, `spread`, `adopt`,
    `require_same`) in the same order, and `claims` equally often.
    """

    def __init__(self, rank: int, count: int, local_rank: int, *, patience: float) -> None:
        self.rank, self.count, self._local = rank, count, local_rank
        self._patience, silence = patience, min(SILENCE, patience)
        try:
            wait = timedelta(seconds=max(patience, 60))
            store, _, _ = next(rendezvous("env://", rank=rank, world_size=count, timeout=wait))
            self._store = dist.PrefixStore("resalign", store)
            self._heartbeat = Heartbeat(self._store, rank, count, silence)
            dist.init_process_group(
                "gloo", store=dist.PrefixStore("gloo", store), rank=rank, world_size=count,
                timeout=timedelta(seconds=max(silence, 120)),
            )  # fmt: skip
        except RuntimeError as error:
            raise RankError(
                f"rank {rank} did not meet the other {count - 1} processes "
                f"({str(error).splitlines()[0]}): start all of them, with the same "
                "MASTER_ADDR and MASTER_PORT"
            ) from error
        self._meetings = self._claimed = self._sent = 0
        self._received = [0] * count
        self._checked = 0.0
        self.meet()

    # The interface of `Ranks`.

    @property
    def first(self) -> bool:
        return self.rank == 0

    def place(self, device: str) -> str:
        if device == "cpu":
            return device
        if device not in ("auto", "cuda"):
            raise ConfigError(
                f"device is {device!r}, but each of {self.count} processes takes a GPU of its "
                "own: use cuda or auto, or cpu"
            )
        if device == "auto" and not torch.cuda.is_available():
            return "cpu"
        there = torch.cuda.device_count()
        if self._local >= there:
            raise ConfigError(
                f"rank {self.rank} is process {self._local + 1} of its machine, which has {there} "
                "GPUs: start one process per GPU, or use device cpu"
            )
        from accelerate import PartialState

        return str(PartialState().device)

    def share(self, value: T, classes: Classes = ()) -> T:
        blob = pack(value) if self.first else torch.empty(0, dtype=torch.uint8)
        size = int(self.meet(str(len(blob)))[0])
        if not self.first:
            blob = torch.empty(size, dtype=torch.uint8)
        for piece in blob.split(_PIECE):
            self._collective(lambda piece=piece: dist.broadcast(piece, src=0))
        return value if self.first else unpack(blob, classes)

    def spread(
        self,
        tasks: Sequence[tuple[float, Callable[[], Any]]],
        classes: Classes = (),
        device: torch.device | str = "cpu",
    ) -> Iterator[Any]:
        places = assign([cost for cost, _ in tasks], self.count)
        own = [work() for (_, work), place in zip(tasks, places, strict=True) if place == self.rank]
        by_rank = [
            iter(unpack(blob, classes, device)) if len(blob) else iter(())
            for blob in self._gather(pack(own) if own else torch.empty(0, dtype=torch.uint8))
        ]
        return (next(by_rank[place]) for place in places)

    def claims(self, items: Sequence[T]) -> Iterator[T]:
        self._claimed += 1
        name = f"claims/{self._claimed}"
        while (place := self._ask(lambda: self._store.add(name, 1)) - 1) < len(items):
            yield items[place]

    def send(self, value: Any) -> None:
        self._sent += 1
        blob, name = pack(value), f"mail/{self.rank}/{self._sent}"
        pieces = blob.split(_MESSAGE)
        for number, piece in enumerate(pieces):
            self._set(f"{name}/{number}", bytes(piece.numpy()))
        self._set(name, str(len(pieces)))

    def received(self, classes: Classes = ()) -> list[Any]:
        found = []
        for rank in range(1, self.count) if self.first else ():
            while self._has(name := f"mail/{rank}/{self._received[rank] + 1}"):
                parts = [f"{name}/{n}" for n in range(int(self._get(name)))]
                data = bytearray(b"".join(self._get(part) for part in parts))
                for key in (name, *parts):
                    self._ask(lambda key=key: self._store.delete_key(key))
                self._received[rank] += 1
                found.append(unpack(torch.frombuffer(data, dtype=torch.uint8), classes))
        return found

    def wait_until(self, done: Callable[[], bool]) -> None:
        began = time.monotonic()
        while not done():
            self._heartbeat.count_work()  # ranks that wait for this one must not give it up
            self._check_others()
            idle = [
                self._heartbeat.idle_seconds(rank)
                for rank in range(self.count)
                if rank != self.rank
            ]
            if min(idle) > self._patience < time.monotonic() - began:
                raise RankError(
                    f"the other ranks live but have done nothing for {self._patience:.0f} s: "
                    "--rank-timeout waits longer"
                )
            time.sleep(0.05)

    def adopt(self, tensors: Iterable[Tensor]) -> None:
        tensors = list(tensors)
        values = self.share([tensor.detach() for tensor in tensors] if self.first else [])
        if not self.first:
            with torch.no_grad():
                for tensor, value in zip(tensors, values, strict=True):
                    tensor.copy_(value)

    def require_same(self, text: str, what: str) -> None:
        texts = self.meet(text)
        other = [str(rank) for rank, found in enumerate(texts) if found != texts[0]]
        if other:
            raise ConfigError(f"{what} differs on rank {', '.join(other)} from that on rank 0")

    def watching(self, on_progress: ProgressCallback) -> ProgressCallback:
        def check() -> None:
            self._heartbeat.count_work()
            self.check()

        return with_check(on_progress if self.first else silent, check)

    def check(self) -> None:
        self._check_others()

    def died(self) -> str:
        return _say_dead(self._heartbeat.find_dead(), self.count)

    # How ranks meet and end.

    def meet(self, text: str = "") -> list[str]:
        """Wait until all ranks are here; return what each has brought, in their order."""
        self._heartbeat.count_work()
        self._meetings += 1
        number, began = self._meetings, time.monotonic()
        names = [f"meet/{number}/{rank}" for rank in range(self.count)]
        self._set(names[self.rank], text or " ")
        while not self._has(*names):
            self._check_others(
                lambda: [r for r in range(self.count) if not self._has(names[r])], began
            )
            # Polling adds a fiftieth to a wait, at most 20 times a second.
            time.sleep(min(0.05, 0.0005 + (time.monotonic() - began) / 50))
        found = self._ask(lambda: self._store.multi_get(names))
        if number > 1:  # all have read the lines of the meeting before
            self._ask(lambda: self._store.delete_key(f"meet/{number - 1}/{self.rank}"))
        return [line.decode() for line in found]

    def __enter__(self) -> ProcessGroup:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and not getattr(error, "from_note", False):
            self._leave_note(error)
        self._heartbeat.stop(wait=self.first)
        dist.destroy_process_group()

    def _leave_note(self, error: BaseException) -> None:
        """Tell the other ranks why this one ends; only the first note counts."""
        kinds = [kind.__name__ for kind in type(error).__mro__]
        name = next((kind for kind in kinds if hasattr(errors, kind)), kinds[0])
        if not isinstance(error, Exception):
            name = KeyboardInterrupt.__name__  # a host's interrupt is one too
        note = {"rank": self.rank, "error": name, "text": str(error)}
        try:
            if self._store.add("notes", 1) == 1:
                self._store.set("note", json.dumps(note))
        except RuntimeError:
            return  # the store is gone, which the others notice themselves

    def _check_others(
        self, missing: Callable[[], list[int]] | None = None, since: float | None = None
    ) -> None:
        """Raise where another rank has stopped, died or hangs; checks a few times a second.

        missing: the ranks that are waited for. since: when the waiting began.
        """
        now = time.monotonic()
        if now - self._checked < _CHECKS:
            return
        self._checked = now
        if self._heartbeat.lost:
            raise _unreachable()
        if self._has("note"):
            raise _error_of_note(json.loads(self._get("note")), self.count)
        dead = self._ask(self._heartbeat.silent_ranks)
        if dead:
            raise _rank_error(_say_dead(dead, self.count), first_is_gone=0 in dead)
        if missing is not None and since is not None and now - since > self._patience:
            late = [r for r in missing() if self._heartbeat.idle_seconds(r) > self._patience]
            if late:
                raise RankError(
                    f"rank {', '.join(map(str, late))} of {self.count} lives but has not come for "
                    f"{self._patience:.0f} s: --rank-timeout waits longer"
                )

    # Tensors and keys.

    def _gather(self, blob: Tensor) -> list[Tensor]:
        """Return each rank's bytes, on all ranks."""
        sizes = [int(text) for text in self.meet(str(len(blob)))]
        longest = max(sizes)
        parts = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.count)]
        parts[self.rank][: len(blob)] = blob
        for start in range(0, longest, _PIECE):
            pieces = [part[start : start + _PIECE] for part in parts]
            self._collective(lambda p=pieces: dist.all_gather(p, p[self.rank].clone()))
        return [part[:size] for part, size in zip(parts, sizes, strict=True)]

    def _collective(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except RuntimeError as error:  # a peer is gone: its connection is closed, or timed out
            dead = self._heartbeat.find_dead()
            text = _say_dead(dead, self.count) or "the connection to another rank broke"
            text += f" ({str(error).splitlines()[0]})"
            raise _rank_error(text, first_is_gone=0 in dead) from error

    def _set(self, key: str, value: str | bytes) -> None:
        self._ask(lambda: self._store.set(key, value))  # type: ignore[arg-type]  # bytes too

    def _get(self, key: str) -> bytes:
        return self._ask(lambda: self._store.get(key))

    def _has(self, *keys: str) -> bool:
        return self._ask(lambda: self._store.check(list(keys)))

    def _ask(self, question: Callable[[], T]) -> T:
        try:
            return question()
        except RuntimeError as error:
            raise _unreachable() from error


def _rank_error(text: str, *, first_is_gone: bool) -> RankError:
    error = RankError(text)
    error.first_is_gone = first_is_gone
    return error


def _say_dead(dead: Sequence[int], count: int) -> str:
    if not dead:
        return ""
    which = ", ".join(map(str, dead))
    return f"rank {which} of {count} died: its heartbeat has stopped"


def _unreachable() -> RankError:
    text = "rank 0, or the machine it runs on, can no longer be reached"
    return _rank_error(text, first_is_gone=True)


def _error_of_note(note: dict[str, Any], count: int) -> BaseException:
    """Return what a rank raises that has read another's note; it leaves no note of its own."""
    where, name, text = f"rank {note['rank']} of {count}", note["error"], note["text"]
    known = getattr(errors, name, None)
    if name == KeyboardInterrupt.__name__:
        error: BaseException = KeyboardInterrupt(f"interrupted on {where}")
    elif isinstance(known, type) and issubclass(known, ResAlignError):
        error = known(text if known is RankError else f"{where}: {text}")
    else:
        error = RankError(f"{where} failed: {name}: {text}; see its own output")
    error.from_note = True  # type: ignore[attr-defined]
    return error
