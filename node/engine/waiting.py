"""Which of the waiting requests is next: the highest priority, then the owner who had the least, then who came first.

Idea: start-time fair queueing. Each owner has a clock of its own that moves by the cost of what was begun for it; the
owner whose clock is furthest behind is next. Whoever comes back after a while starts at the present and not in the
past, so nobody saves up. A request that was dropped or came too late costs its owner nothing.

Not guaranteed: a fair share among running requests; there every row of a batch counts the same. Owners are what the
daemon says they are.

Source: Goyal, Vin, Cheng: Start-time Fair Queueing (SIGCOMM 1996).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from node.engine.api import Asked

#: Owners whose clock is remembered while nothing of theirs waits. Threat: a new name with every request.
OWNERS_MAX = 1024

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
    owner: str
    cost: float
    begin_by: float


class Waiting(Generic[T]):
    """Not thread-safe. Each priority keeps its own account."""

    def __init__(self) -> None:
        self._entries: list[Entry[T]] = []  # in order of arrival
        self._clocks: dict[tuple[int, str], float] = {}  # by priority and owner
        self._present: dict[int, float] = {}  # by priority: where those start who had nothing waiting

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: Entry[T]) -> None:
        assert entry.cost > 0
        key = (entry.priority, entry.owner)
        if not any((other.priority, other.owner) == key for other in self._entries):
            self._clocks[key] = max(self._clocks.get(key, 0.0), self._present.get(entry.priority, 0.0))
        self._entries.append(entry)

    def take(self) -> T | None:
        """The next one, which is begun now; None where nothing waits."""
        if not self._entries:
            return None
        priority = max(entry.priority for entry in self._entries)
        # Among equals `min` keeps the order of arrival.
        ready = [entry for entry in self._entries if entry.priority == priority]
        chosen = min(ready, key=lambda entry: self._clocks[priority, entry.owner])
        key = (priority, chosen.owner)
        self._present[priority] = max(self._present.get(priority, 0.0), self._clocks[key])
        self._clocks[key] += chosen.cost
        self._entries.remove(chosen)
        self._forget()
        return chosen.item

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
