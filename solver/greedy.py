"""The round without a solver: the same rule and the same result type, near the least cost instead of at it.

Why: cvxpy takes seconds to import and may crash; a new leader must place work at once. It serves exactly the tasks that
the programme would serve (`allocation.prepare`), starts from a feasible placing and takes the best single step, a move
to an agent with room or a swap of two tasks, for one task after the other, until a pass changes nothing.

Not guaranteed: the optimum; cyclic exchanges of three tasks or more are not seen. `bound_s` is the sum of each task's
cheapest agent, which no assignment can beat, so the distance to the optimum is at most objective_s - bound_s.
"""

from collections.abc import Sequence

from solver.allocation import Allocation, Round, prepare
from solver.costs import AgentLoad, TaskNeed

#: Passes over all tasks; each step lowers the total, so it ends anyway, but a bound on time is a bound.
PASSES_MAX = 8
#: A step must save more than this, seconds, so that rounding can not make it go back and forth.
SAVING_MIN_S = 1e-9


def allocate(agents: Sequence[AgentLoad], tasks: Sequence[TaskNeed], reason: str = "asked for") -> Allocation:
    """A feasible round; never raises for operating reasons. `reason` says why it is not the programme."""
    prepared = prepare(agents, tasks)
    bound = sum(row[0] for row in prepared.costs())
    return prepared.result(_improve(prepared), bound, "greedy", reason)


def _improve(prepared: Round) -> list[int]:
    costs = [dict(zip(*pair, strict=True)) for pair in zip(prepared.choices, prepared.costs(), strict=True)]
    panels = [task.panel for task in prepared.served]
    capacity = prepared.capacity()
    where = list(prepared.placed)
    at_agent: list[set[int]] = [set() for _ in capacity]
    for task, agent in enumerate(where):
        at_agent[agent].add(task)

    def may_sit(task: int, agent: int, leaving: int | None) -> bool:
        """Whether the panel of `task` has its seat free at `agent` once `leaving` is gone."""
        return not panels[task] or all(
            panels[other] != panels[task] for other in at_agent[agent] if other not in (task, leaving)
        )

    def best_step(task: int) -> tuple[float, int, int | None]:
        """(saving, agent to go to, task to swap with)."""
        here = where[task]
        best: tuple[float, int, int | None] = (SAVING_MIN_S, here, None)
        for agent in prepared.choices[task]:
            saving = costs[task][here] - costs[task][agent]
            if agent == here:
                continue
            if len(at_agent[agent]) < capacity[agent]:
                if saving > best[0] and may_sit(task, agent, None):
                    best = (saving, agent, None)
                continue
            for other in sorted(at_agent[agent]):
                if here not in costs[other]:
                    continue
                swap_saving = saving + costs[other][agent] - costs[other][here]
                if swap_saving > best[0] and may_sit(task, agent, other) and may_sit(other, here, task):
                    best = (swap_saving, agent, other)
        return best

    for _ in range(PASSES_MAX):
        changed = False
        for task in range(len(where)):
            _, agent, other = best_step(task)
            here = where[task]
            if agent == here:
                continue
            changed = True
            at_agent[here].discard(task)
            at_agent[agent].add(task)
            where[task] = agent
            if other is not None:
                at_agent[agent].discard(other)
                at_agent[here].add(other)
                where[other] = here
        if not changed:
            break
    return where
