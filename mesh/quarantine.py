"""Tasks that run alone, because an engine died under each of them: who may, when, and in which engine.

Idea: what an engine dies of is found by giving each such task an engine of its own. The innocent ones end there, and
the guilty one kills nobody's engine but its own. The solver chooses where, as for any task: among the engines that are
empty, if there are any. Where it chooses one that is at work, that engine is *kept*: it gets nothing more, and takes
the task once it is empty. So neither waits for ever, whatever else there is to do.

    has its turn ─ chosen, empty ──▶ starts; nothing beside it while it runs
                 ─ chosen, at work ─▶ kept ─ empty ──▶ starts, there or wherever an engine is empty first

An engine for one task is lost to many, so only a few have a turn at a time; the others wait without a place in a round.
Whoever had a turn in vain is last in the queue. A task that is merely late holds its turn; its second copy starts in
what is empty, and no engine is kept for it.

Does not: know why a task is to run alone (standing.py), or keep chat out of an engine (no leader hears of it).
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from mesh.dispatch import Agent, Dispatch, TaskKey

#: One task has its turn for so many agents that take work; one at least.
AGENTS_PER_TURN = 4


@dataclass
class Quarantine:
    """Invariant: an engine is kept for one task at most, and for a task one engine at most."""

    dispatch: Dispatch
    #: Those that are to run alone, among what is ready or in flight.
    alone: frozenset[TaskKey] = frozenset()
    #: Of those, who waits for its turn.
    queued: frozenset[TaskKey] = frozenset()
    _turns: frozenset[TaskKey] = frozenset()  # who has it in this round
    _at_work: frozenset[Agent] = frozenset()  # as the round began: nothing starts while it is put together
    _turns_had: dict[TaskKey, int] = field(default_factory=dict)  # how often in vain
    _kept: dict[Agent, TaskKey] = field(default_factory=dict)

    def reset(self) -> None:
        """A new leadership."""
        self.alone = frozenset()
        self._kept.clear()
        self._turns_had.clear()

    def begin(self, alone: Iterable[TaskKey], wanting: Iterable[TaskKey], take_work: Collection[Agent]) -> None:
        """A round begins.

        Args:
            wanting: the tasks that want an engine, in turn, but for those that are merely late.
            take_work: the agents that may get any now.
        """
        # What runs alone goes on alone, also while its job is not looked at.
        self.alone = frozenset(alone).union(key for key in self.alone if self.dispatch.of_task(key))
        self._at_work = frozenset(self.dispatch.agents_at_work()) if self.alone else frozenset()
        queue = [key for key in wanting if key in self.alone]
        queued = set(queue)
        self._kept = {agent: key for agent, key in self._kept.items() if key in queued and agent in take_work}
        served = set(self._kept.values())
        self._turns_had = {key: self._turns_had.get(key, 0) for key in queue}
        queue.sort(key=lambda key: (key not in served, self._turns_had[key]))
        others = [self.dispatch.of_task(key) for key in self.alone - queued]
        running = sum(any(flight.uses_engine for flight in flights) for flights in others)
        turns = max(len(self._kept), max(1, len(take_work) // AGENTS_PER_TURN) - running)
        self._turns, self.queued = frozenset(queue[:turns]), frozenset(queue[turns:])

    def room(self, agent: Agent, slots_free: int) -> int:
        """How many of its free slots may be filled."""
        keys = self.dispatch.in_engine(agent)
        if not self.alone.isdisjoint(keys):
            return 0
        return slots_free if agent not in self._kept else int(not keys and slots_free > 0)

    def offer(self, key: TaskKey, forbidden: Collection[Agent], free: set[Agent]) -> set[Agent]:
        """A task is offered in this round. Returns the agents that it must not get, `forbidden` among them.

        Args:
            forbidden: those that it must not get whoever is alone.
            free: the agents that have room.
        """
        for agent in [agent for agent, kept_for in self._kept.items() if kept_for == key and agent in forbidden]:
            del self._kept[agent]
        shut = {agent for agent, kept_for in self._kept.items() if kept_for != key}.union(forbidden)
        if key not in self.alone:
            return shut
        shut_or_at_work = shut | self._at_work
        if key not in self._turns or self.waits(key):
            return shut_or_at_work
        if not free:
            return shut
        self._turns_had[key] += 1
        # Nobody knows here whether it can run in those that are empty: every other time it may get any.
        only_empty = self._turns_had[key] % 2 == 1 and not free <= shut_or_at_work
        return shut_or_at_work if only_empty else shut

    def rank(self, key: TaskKey) -> int:
        """Who is offered, and placed, first: those that others wait for; last, who is merely late."""
        if key not in self.alone:
            return 1
        return 0 if key in self._turns else 2

    def may_start(self, key: TaskKey, agent: Agent) -> bool:
        """Whether this task may start where the solver put it; if it must wait for the engine, that one is kept."""
        keys = self.dispatch.in_engine(agent)
        if self._kept.get(agent, key) != key or not self.alone.isdisjoint(keys):
            return False
        if key in self.alone and keys:
            if key in self._turns and not self.waits(key):
                self._kept[agent] = key
            return False
        return True

    def waits(self, key: TaskKey) -> bool:
        """Whether an engine is kept for this task."""
        return key in self._kept.values()
