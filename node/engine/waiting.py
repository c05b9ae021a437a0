"""Which of the waiting requests is next: the highest priority, then the owner who had the least, then who came first.
The one rule of all queues: at the node's door (turns.py), in an engine, before a server (hosted/places.py).

Idea: start-time fair queueing. Each owner has a clock of its own that moves by the cost of what was begun for it; the
owner whose clock is furthest behind is next. Whoever comes back after a while starts at the present and not in the
past, so nobody saves up. A request that was dropped or came too late costs its owner nothing.

Not guaranteed: a fair share among running requests, but as far as who takes the next one says what each owner holds; in
the engine every row of a batch counts the same. Owners are what the daemon says they are.

Source: Goyal, Vin, Cheng: Start-time Fair Queueing (SIGCOMM 1996).
"""

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from node.engine.api import Asked

#: Owners whose clock is remembered while nothing of theirs waits. Threat: a new name with every request.
OWNERS_MAX = 1024
#: A request that waited so long, in seconds, is as urgent as any where `raise_to` is called with it: at the door and of
#: embeddings. Threat: urgent ones without end, and another that never begins, or is begun and never goes on.
AGED_S = 10.0

T = TypeVar("T")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A request that waits.

    Args:
        cost: what it will take, in tokens; above 0.
        begin_by: seconds of the caller's clock after which it is of no use any more; infinity: never.
    """

    @classmethod
    def of(cls, item: T, asked: Asked, cost: float, came_at: float) -> "Entry[T]":
        """Args: `came_at`: seconds of the caller's clock."""
        begin_by = came_at + asked.useful_seconds if asked.useful_seconds > 0 else math.inf
        return cls(item, asked.priority, asked.owner, cost, begin_by)

    item: T
    priority: int
    owner: Hashable
    cost: float
    begin_by: float


class Waiting(Generic[T]):
    """Not thread-safe. Each priority keeps its own account."""

    def __init__(self) -> None:
        self._entries: list[Entry[T]] = []  # in order of arrival
        self._clocks: dict[tuple[int, Hashable], float] = {}  # by priority and owner
        self._present: dict[int, float] = {}  # by priority: where those start who had nothing waiting

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: Entry[T]) -> None:
        assert entry.cost > 0
        key = (entry.priority, entry.owner)
        if not any((other.priority, other.owner) == key for other in self._entries):
            self._clocks[key] = max(self._clocks.get(key, 0.0), self._present.get(entry.priority, 0.0))
        self._entries.append(entry)

    def take(self, holds: Callable[[Hashable], int | None] = lambda _owner: 0) -> T | None:
        """The next one, which is begun now; None where nothing may be.

        Args:
            holds: what runs of an owner: of those with the same priority, whoever holds less is before who had less.
                None: nothing of that owner may begin now.
        """
        held = {owner: holds(owner) for owner in {entry.owner for entry in self._entries}}
        able = [(-entry.priority, count, entry) for entry in self._entries if (count := held[entry.owner]) is not None]
        if not able:
            return None
        # Among equals `min` keeps the order of arrival.
        chosen = min(able, key=lambda one: (*one[:2], self._clocks[one[2].priority, one[2].owner]))[2]
        priority = chosen.priority
        least = min(self._clocks[priority, entry.owner] for entry in self._entries if entry.priority == priority)
        self._present[priority] = max(self._present.get(priority, 0.0), least)
        self._clocks[priority, chosen.owner] += chosen.cost
        self._entries.remove(chosen)
        self._forget()
        return chosen.item

    def raise_to(self, priority: int, which: Callable[[T], bool]) -> None:
        """Give those that had less of it this priority: whoever starts there starts at the present."""
        raised: list[Entry[T]] = []
        kept: list[Entry[T]] = []
        for entry in self._entries:
            (raised if entry.priority < priority and which(entry.item) else kept).append(entry)
        self._entries = kept
        for entry in raised:
            self.add(replace(entry, priority=priority))

    def drop(self, unwanted: Callable[[T], bool]) -> list[T]:
        """Take out those that nobody wants any more."""
        dropped, kept = [], []
        for entry in self._entries:  # each is asked once: the answer may change meanwhile
            if unwanted(entry.item):
                dropped.append(entry.item)
            else:
                kept.append(entry)
        self._entries = kept
        return dropped

    def too_late(self, now: float) -> list[T]:
        """Take out those that are of no use any more."""
        late = [entry.item for entry in self._entries if entry.begin_by < now]
        if late:
            self._entries = [entry for entry in self._entries if entry.begin_by >= now]
        return late

    def _forget(self) -> None:
        """Clocks that say nothing (behind the present), and the least ones, where there are too many."""
        if len(self._clocks) <= OWNERS_MAX:
            return
        wanted = {(entry.priority, entry.owner) for entry in self._entries}
        idle = [key for key in self._clocks if key not in wanted]
        for key in idle:
            if self._clocks[key] <= self._present.get(key[0], 0.0):
                del self._clocks[key]
        idle = sorted((key for key in idle if key in self._clocks), key=lambda key: self._clocks[key])
        for key in idle[: max(0, len(idle) - OWNERS_MAX)]:
            del self._clocks[key]

    def validate(self) -> None:
        """Assert the invariants."""
        wanted = {(entry.priority, entry.owner) for entry in self._entries}
        assert all(key in self._clocks for key in wanted)
        assert all(self._clocks[key] >= self._present.get(key[0], 0.0) for key in wanted)
        assert len(self._clocks) <= len(wanted) + OWNERS_MAX + 1
