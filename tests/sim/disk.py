"""What survives a crash: facts, blobs and the vote whose sync had ended. Writes end late and in order.

Writes that wait together are one transaction with one sync, as in node/store.py. A crash loses what was not synced;
the transaction under way either just made it or has a torn tail, which the real store's checksums find, so it is gone
as a whole. The disk may therefore know more than was said, never less.

A whole disk may be lost, or be replaced by an old backup of itself: `generation` counts that, so that the checks know
which copies an accident took.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from mesh.facts import Fact, StreamId
from tests.sim.clock import Call, Clock


@dataclass
class Write:
    """Facts to add, a vote to keep, blobs to hold; `done` runs once they are synced."""

    facts: Sequence[Fact] = ()
    vote: tuple[int, str] | None = None
    blobs: Sequence[tuple[bytes, bytes]] = ()  # (SHA-256, content)
    done: Call = lambda: None

    @property
    def is_vital(self) -> bool:
        """A node that can not keep these must stop: it could not keep its word."""
        return bool(self.facts) or self.vote is not None


@dataclass
class Content:
    """Everything durable. `order` is the order in which facts were stored."""

    facts: dict[StreamId, list[Fact]] = field(default_factory=dict)
    order: list[Fact] = field(default_factory=list)
    bodies: set[bytes] = field(default_factory=set)
    blobs: dict[bytes, bytes] = field(default_factory=dict)  # by SHA-256
    term: int = 0
    voted_for: str = ""

    def copy(self) -> Content:
        facts = {stream_id: list(stream) for stream_id, stream in self.facts.items()}
        return Content(facts, list(self.order), set(self.bodies), dict(self.blobs), self.term, self.voted_for)


class Disk:
    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self.clock = clock
        self.rng = rng
        self.content = Content()
        self.generation = 0
        self.slow = False
        self.full = False  # no room for blobs, nor for facts: the next vital write stops the node
        self.on_error: Call = lambda: None
        self._backup: Content | None = None
        self._waiting: list[Write] = []
        self._under_way: list[Write] = []

    # While the process runs

    def write(self, write: Write) -> None:
        if self.full and write.is_vital:
            self.clock.after(0.0, self.on_error)
            return
        self._waiting.append(write)
        if not self._under_way:
            self._begin()

    def holds(self, stream_id: StreamId) -> int:
        """How many facts of a stream are synced."""
        return len(self.content.facts.get(stream_id, ()))

    # Accidents

    def crash(self) -> None:
        """What is not synced is lost, but for a transaction that the disk had just ended without anybody hearing."""
        if self._under_way and self.rng.random() < 0.5:
            for write in self._under_way:
                self._apply(write)
        self._under_way = []
        self._waiting = []

    def lose(self) -> None:
        """The whole store is gone. Only while the process does not run."""
        self.content = Content()
        self.generation += 1

    def back_up(self) -> None:
        self._backup = self.content.copy()

    def restore_backup(self) -> bool:
        """Go back to the last backup, if there is one. Only while the process does not run."""
        if self._backup is None:
            return False
        self.content = self._backup.copy()
        self.generation += 1
        return True

    # Inside

    def _begin(self) -> None:
        group = self._under_way = self._waiting
        self._waiting = []
        sync_s = self.rng.uniform(0.2, 1.5) if self.slow else self.rng.uniform(0.001, 0.012)
        self.clock.after(sync_s, lambda: self._end(group))

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
        for fact in write.facts:
            stream = content.facts.setdefault(fact.stream_id, [])
            assert fact.sequence == len(stream) + 1, "the store was given a stream with a hole"
            assert fact.predecessor == (stream[-1].hash if stream else b""), "the store was given a fork"
            stream.append(fact)
            content.order.append(fact)
            content.bodies.add(fact.signed.body)
        content.blobs.update(write.blobs)
        if write.vote is not None:
            assert write.vote[0] >= content.term, "a saved term went back"
            content.term, content.voted_for = write.vote
