"""What survives a crash: facts, blobs and the vote whose sync had ended. Writes end late and in order.

Writes that wait together are one transaction with one sync, as in node/store.py. A crash loses what was not synced;
the transaction under way either just made it or has a torn tail, which the real store's checksums find, so it is gone
as a whole. The disk may therefore know more than was said, never less.

A whole disk may be lost, or be replaced by an old backup of itself: `generation` counts that, so that the checks know
which copies an accident took.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from mesh.facts import Fact, FactRange, Place, Retired, StreamId
from mesh.journal import Fork, Position, in_stream_order
from tests.sim.clock import Call, Clock

#: A blob that was put so recently is not dropped, as in node/store.py, whose time is longer than a simulated world:
#: here just longer than a slow disk takes from the write to the fact that names it. Virtual seconds.
FRESH_S = 3.0


@dataclass
class Write:
    """One change, and `done`, which runs once it is synced."""

    facts: Sequence[Fact] = ()
    retired: Sequence[Retired] = ()  # in place of facts that are gone, before those of `facts` that follow them
    vote: tuple[int, str] | None = None
    blobs: Sequence[tuple[bytes, bytes]] = ()  # (SHA-256, content)
    dropped_blobs: Sequence[bytes] = ()
    retire: Sequence[FactRange] = ()  # stored facts whose content goes
    fork: Fork | None = None
    cut: Sequence[tuple[StreamId, Position]] = ()  # streams that end there
    done: Call = lambda: None

    @property
    def is_vital(self) -> bool:
        """A node that can not keep these must stop: it could not keep its word."""
        return bool(self.facts or self.cut) or self.vote is not None or self.fork is not None


@dataclass
class Content:
    """Everything durable."""

    streams: dict[StreamId, list[Fact | Retired]] = field(default_factory=dict)
    facts: dict[bytes, Fact] = field(default_factory=dict)  # by hash, in the order in which they were stored
    heads: dict[Place, bytes] = field(default_factory=dict)  # hash of the fact in each place, retired ones included
    forks: dict[StreamId, Fork] = field(default_factory=dict)
    blobs: dict[bytes, bytes] = field(default_factory=dict)  # by SHA-256
    jobs: set[bytes] = field(default_factory=set)  # of which a `submitted` fact was ever stored
    term: int = 0
    voted_for: str = ""

    def copy(self) -> Content:
        streams = {stream_id: list(items) for stream_id, items in self.streams.items()}
        return Content(
            streams, dict(self.facts), dict(self.heads), dict(self.forks), dict(self.blobs), set(self.jobs),
            self.term, self.voted_for,
        )  # fmt: skip

    def end_of(self, stream_id: StreamId) -> int:
        """The last sequence of a stream that is synced; 0: none."""
        items = self.streams.get(stream_id)
        return items[-1].last if items else 0

    def retired(self) -> list[Retired]:
        return [item for items in self.streams.values() for item in items if isinstance(item, Retired)]

    # Changes

    def add(self, item: Fact | Retired) -> None:
        items = self.streams.setdefault(item.stream_id, [])
        last = items[-1] if items else None
        assert item.first == (last.last if last else 0) + 1, "the store was given a stream with a hole"
        if isinstance(item, Fact):
            assert item.predecessor == (last.head if last else b""), "the store was given a fork"
            self.facts[item.hash] = item
            if item.kind == "job_submitted":
                self.jobs.add(item.body.job_submitted.job_id)
        items.append(item)
        self.heads[Place(item.stream_id, item.last)] = item.head

    def retire(self, gone: FactRange) -> None:
        """Put one range in the place of facts, joined with the ranges beside it."""
        items = self.streams[gone.stream_id]
        assert gone.last < items[-1].last, "the last fact of a stream is never retired"
        kept: list[Fact | Retired] = []
        for item in items:
            if not gone.first <= item.first <= item.last <= gone.last:
                kept.append(item)
                continue
            if isinstance(item, Fact):
                del self.facts[item.hash]
            kept.append(Retired(item.stream_id, item.first, item.last, item.head))
        joined: list[Fact | Retired] = []
        for item in kept:
            before = joined[-1] if joined else None
            if isinstance(item, Retired) and isinstance(before, Retired):
                joined[-1] = Retired(item.stream_id, before.first, item.last, item.head)
            else:
                joined.append(item)
        self.streams[gone.stream_id] = joined

    def void(self, fork: Fork) -> None:
        """Keep the proof; the stream ends before it."""
        self.forks[fork.stream_id] = fork
        self.cut(fork.stream_id, Position(fork.sequence - 1, fork.one.predecessor))

    def cut(self, stream_id: StreamId, end: Position) -> None:
        """Nothing is kept after `end`; of a retired range that reaches over it the part before."""
        items = self.streams.pop(stream_id, [])
        kept = [item for item in items if item.last <= end.sequence]
        for item in items[len(kept) :]:
            self.heads.pop(Place(item.stream_id, item.last), None)
            if isinstance(item, Fact):
                del self.facts[item.hash]
            elif item.first <= end.sequence:
                kept.append(Retired(stream_id, item.first, end.sequence, end.head))
                self.heads[Place(stream_id, end.sequence)] = end.head
        if kept:
            self.streams[stream_id] = kept


class Disk:
    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self.clock = clock
        self.rng = rng
        self.content = Content()
        self.generation = 0
        self.slow = False
        self.full = False  # no room for blobs, nor for facts: the next vital write stops the node
        self.full_ever = False
        self.on_error: Call = lambda: None
        self.on_synced: Callable[[Write], None] = lambda _: None
        self._backup: Content | None = None
        self._waiting: list[Write] = []
        self._under_way: list[Write] = []
        self._put_at: dict[bytes, float] = {}  # by this process; SHA-256 → virtual time

    # While the process runs

    def write(self, write: Write) -> None:
        if self.full and write.is_vital:
            self.clock.after(0.0, self.on_error)
            return
        self._waiting.append(write)
        if not self._under_way:
            self._begin()

    # Accidents

    def crash(self) -> None:
        """What is not synced is lost, but for a transaction that the disk had just ended without anybody hearing."""
        if self._under_way and self.rng.random() < 0.5:
            for write in self._under_way:
                self._apply(write)
        self._under_way = []
        self._waiting = []
        self._put_at = {}

    def lose(self) -> None:
        """The whole store is gone. Only while the process does not run."""
        self.content = Content()
        self.generation += 1

    def back_up(self) -> None:
        self._backup = self.content.copy()

    def restore_backup(self) -> None:
        """Go back to the last backup. Only while the process does not run."""
        assert self._backup is not None
        self.content = self._backup.copy()
        self.generation += 1

    # Inside

    def _begin(self) -> None:
        group = self._under_way = self._waiting
        self._waiting = []
        sync_s = self.rng.uniform(0.2, 1.5) if self.slow else self.rng.uniform(0.001, 0.012)
        self.clock.after(sync_s, partial(self._end, group))

    def _end(self, group: list[Write]) -> None:
        if self._under_way is not group:
            return  # a crash took it
        for write in group:
            self._apply(write)
        self._under_way = []
        if self._waiting:
            self._begin()
        for write in group:
            write.done()

    def _apply(self, write: Write) -> None:
        content = self.content
        for item in in_stream_order(write.facts, write.retired):
            content.add(item)
        for gone in write.retire:
            content.retire(gone)
        if write.fork is not None:
            content.void(write.fork)
        for stream_id, end in write.cut:
            content.cut(stream_id, end)
        content.blobs.update(write.blobs)
        self._put_at |= {sha256: self.clock.now for sha256, _ in write.blobs}
        for sha256 in write.dropped_blobs:
            if self._put_at.get(sha256, -FRESH_S) <= self.clock.now - FRESH_S:
                content.blobs.pop(sha256, None)
        if write.vote is not None:
            assert write.vote[0] >= content.term, "a saved term went back"
            content.term, content.voted_for = write.vote
        self.on_synced(write)
