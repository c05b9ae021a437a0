"""Tasks that run alone: an engine died under each of them, and nobody knows yet whose fault that was.

Idea: what an engine dies of is found by giving each task that was in it an engine of its own. The innocent ones end
there, and the guilty one kills nobody's engine but its own. The solver chooses where, as for any task. Where it chooses
an engine that is at work, that engine is *kept*: it gets nothing more, and takes the task once it is empty. So neither
waits for ever, whatever else there is to do.

    chosen ─ empty ──▶ starts; nothing beside it while it runs
           ─ at work ─▶ kept ─ empty ──▶ starts, there or wherever an engine is empty first

Does not: know why a task is to run alone (standing.py), or keep chat out of an engine (no leader hears of it).
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from mesh.dispatch import Agent, Dispatch, TaskKey


@dataclass
class Quarantine:
    """Invariant: an engine is kept for one task at most, and for a task one engine at most."""

    dispatch: Dispatch
    #: Those that are to run alone, among what is ready or in flight.
    alone: frozenset[TaskKey] = frozenset()
    _kept: dict[Agent, TaskKey] = field(default_factory=dict)

    def reset(self) -> None:
        """A new leadership."""
        self._kept.clear()

    def begin(
        self, alone: Iterable[TaskKey], wanting: Collection[TaskKey], takes_work: Callable[[Agent], bool]
    ) -> None:
        """A round begins. `wanting`: the tasks that want an engine; `takes_work`: whether an agent may get any now."""
        self.alone = frozenset(alone)
        wanting = self.alone.intersection(wanting)
        self._kept = {agent: key for agent, key in self._kept.items() if key in wanting and takes_work(agent)}

    def room(self, agent: Agent, slots_free: int) -> int:
        """How many of its free slots may be filled."""
        keys = self.dispatch.in_engine(agent)
        if not self.alone.isdisjoint(keys):
            return 0
        return slots_free if agent not in self._kept else int(not keys and slots_free > 0)

    def forbidden(self, key: TaskKey, agents: Iterable[Agent]) -> set[Agent]:
        """Which of these agents this task must not get now."""
        others = {agent for agent, kept_for in self._kept.items() if kept_for != key}
        if key in self._kept.values():
            return others | {agent for agent in agents if self.dispatch.in_engine(agent)}
        return others

    def may_start(self, key: TaskKey, agent: Agent) -> bool:
        """Whether this task may start where the solver put it; if it must wait for the engine, that one is kept."""
        keys = self.dispatch.in_engine(agent)
        if self._kept.get(agent, key) != key or not self.alone.isdisjoint(keys):
            return False
        if key in self.alone and keys:
            if key not in self._kept.values():
                self._kept[agent] = key
            return False
        return True

    def waits(self, key: TaskKey) -> bool:
        """Whether an engine is kept for this task."""
        return key in self._kept.values()
