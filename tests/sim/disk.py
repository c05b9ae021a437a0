"""What survives a crash: the facts and the vote whose sync had ended. Writes end late and in order.

A crash ends some prefix of the writes under way without telling anybody: the disk may know more than was said, never
less. A write is atomic, as a transaction of the real store is.
"""

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from mesh.facts import Fact, StreamId
from tests.sim.clock import Call, Clock


@dataclass
class Write:
    """Facts to add, or a vote to keep; `done` runs once it is synced."""

    facts: Sequence[Fact]
    vote: tuple[int, str] | None
    done: Call


class Disk:
    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self.clock = clock
        self.rng = rng
        self.facts: dict[StreamId, list[Fact]] = {}
        self.order: list[Fact] = []
        self.bodies: set[bytes] = set()
        self.term = 0
        self.voted_for = ""
        self.slow = False
        self._pending: deque[Write] = deque()
        self._last_end = 0.0

    def write(self, write: Write) -> None:
        sync_s = self.rng.uniform(0.2, 1.5) if self.slow else self.rng.uniform(0.001, 0.012)
        self._last_end = max(self._last_end, self.clock.now + sync_s)
        self._pending.append(write)
        self.clock.after(self._last_end - self.clock.now, lambda: self._end(write))

    def holds(self, stream_id: StreamId) -> int:
        """How many facts of a stream are synced."""
        return len(self.facts.get(stream_id, ()))

    def crash(self) -> None:
        """Writes under way are lost, but for those that the disk had just done."""
        for _ in range(self.rng.randint(0, len(self._pending))):
            self._apply(self._pending.popleft())
        self._pending.clear()
        self._last_end = 0.0

    def _end(self, write: Write) -> None:
        if not self._pending or self._pending[0] is not write:
            return  # a crash took it
        self._pending.popleft()
        self._apply(write)
        write.done()

    def _apply(self, write: Write) -> None:
        for fact in write.facts:
            stream = self.facts.setdefault(fact.stream_id, [])
            assert fact.sequence == len(stream) + 1, "the store was given a stream with a hole"
            assert fact.predecessor == (stream[-1].hash if stream else b""), "the store was given a fork"
            stream.append(fact)
            self.order.append(fact)
            self.bodies.add(fact.signed.body)
        if write.vote is not None:
            assert write.vote[0] >= self.term, "a saved term went back"
            self.term, self.voted_for = write.vote
