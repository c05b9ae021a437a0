"""One allocation round: which agent does which task, what that costs, and what must wait.

The rule of a round, in this order:
1. as many tasks as free slots, abilities and panels allow (`matching`);
2. among those sets the one with the earliest tasks: higher priority first, then the order given;
3. for that set the least total cost in seconds (`programme`, proven optimal; `greedy` where that can not run).

Tasks over are named with a reason: `waiting` (an agent can do it, none has room now) or `infeasible` (no agent of this
round can do it at all). `runner_up` is the cheapest other agent that can do the task, busy or not: it may be cheaper
than the one chosen, when that one serves a task that would lose more.

The result depends on the set of agents, not on their order. solve_seconds is left at 0: the caller has the clock.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from solver.costs import AgentLoad, TaskNeed, cost_terms, why_not
from solver.matching import place_in_order

if TYPE_CHECKING:
    from solver.programme import Programmes

#: Tasks looked at in one round, the earliest; the rest wait. Bounds time and memory of a round.
ROUND_TASKS_MAX = 1000
#: Largest cost, in size, that `assign` takes: above it a float has no room left for the differences.
COST_MAX = 1e12


@dataclass(frozen=True, slots=True)
class Assigned:
    task_id: str
    agent_id: str
    cost_s: float  # sum of terms
    terms: Mapping[str, float]
    runner_up_agent: str = ""  # empty: no other agent can do it
    runner_up_cost_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Allocation:
    """Invariants: every task is in exactly one of assignments, waiting, infeasible; bound_s <= objective_s."""

    assignments: tuple[Assigned, ...]  # in the order of service
    waiting: Mapping[str, str]  # task id → why
    infeasible: Mapping[str, str]  # task id → why
    objective_s: float  # sum of the costs assigned
    bound_s: float  # proven: no assignment of the same tasks costs less
    method: str  # "cvxpy <version>/HIGHS" or "greedy"
    method_reason: str
    solve_seconds: float = 0.0


@dataclass(slots=True)
class Round:
    """One round, prepared: the tasks that are served and a feasible placing. What every method starts from."""

    agents: list[AgentLoad]  # ordered by the hash of their id
    served: list[TaskNeed]  # in the order of service
    choices: list[list[int]]  # of each served task: agents that can do it, cheapest first
    terms: list[list[dict[str, float]]]  # of each served task: cost terms of its choices
    placed: list[int]  # feasible: of each served task the agent
    waiting: dict[str, str] = field(default_factory=dict)
    infeasible: dict[str, str] = field(default_factory=dict)

    def capacity(self) -> list[int]:
        return [max(0, agent.slots_free) for agent in self.agents]

    def costs(self) -> list[list[float]]:
        return [[sum(terms.values()) for terms in row] for row in self.terms]

    def result(self, agent_of: Sequence[int], bound_s: float, method: str, method_reason: str) -> Allocation:
        assignments = []
        for task, choices, terms, agent in zip(self.served, self.choices, self.terms, agent_of, strict=True):
            chosen = choices.index(agent)
            other = (0 if chosen else 1) if len(choices) > 1 else None
            assignments.append(
                Assigned(
                    task_id=task.task_id,
                    agent_id=self.agents[agent].agent_id,
                    cost_s=sum(terms[chosen].values()),
                    terms=terms[chosen],
                    runner_up_agent="" if other is None else self.agents[choices[other]].agent_id,
                    runner_up_cost_s=0.0 if other is None else sum(terms[other].values()),
                )
            )
        objective = sum(assigned.cost_s for assigned in assignments)
        return Allocation(
            assignments=tuple(assignments),
            waiting=self.waiting,
            infeasible=self.infeasible,
            objective_s=objective,
            bound_s=min(bound_s, objective),
            method=method,
            method_reason=method_reason,
        )


def allocate(
    agents: Sequence[AgentLoad], tasks: Sequence[TaskNeed], programmes: "Programmes | None" = None
) -> Allocation:
    """The optimal round, by cvxpy.

    Args:
        agents: ids are unique.
        tasks: ids are unique; earlier ones are served first where priorities are equal.
        programmes: compiled programmes from earlier rounds, to go on with.

    Raises:
        solver.programme.ProgrammeError: the solver failed; `greedy.allocate` still works.
    """
    from solver.programme import METHOD, Programmes

    prepared = prepare(agents, tasks)
    solution = (programmes or Programmes()).solve(
        prepared.choices, prepared.costs(), prepared.capacity(), [task.panel for task in prepared.served]
    )
    return prepared.result(solution.agent_of, solution.bound, METHOD, "proven optimal for the tasks of this round")


def prepare(agents: Sequence[AgentLoad], tasks: Sequence[TaskNeed]) -> Round:
    """Steps 1 and 2 of the rule, without any solver."""
    assert len({agent.agent_id for agent in agents}) == len(agents), "agent ids are unique"
    assert len({task.task_id for task in tasks}) == len(tasks), "task ids are unique"
    ordered_agents = sorted(agents, key=lambda agent: stable_hash(agent.agent_id))
    ordered_tasks = sorted(tasks, key=lambda task: -task.priority)  # stable: equal priorities keep their order
    prepared = Round(agents=ordered_agents, served=[], choices=[], terms=[], placed=[])
    candidates: list[TaskNeed] = []
    able: list[list[int]] = []
    for task in ordered_tasks:
        if len(candidates) == ROUND_TASKS_MAX:
            prepared.waiting[task.task_id] = f"a round looks at {ROUND_TASKS_MAX} tasks and others come first"
            continue
        indices = [index for index, agent in enumerate(ordered_agents) if not why_not(agent, task)]
        if indices:
            candidates.append(task)
            able.append(indices)
        else:
            prepared.infeasible[task.task_id] = _why_nobody(ordered_agents, task)
    where = place_in_order(able, prepared.capacity(), [task.panel for task in candidates])
    for task, indices, place in zip(candidates, able, where, strict=True):
        if place is None:
            prepared.waiting[task.task_id] = _why_waiting(ordered_agents, task, indices)
            continue
        choices, terms = _cheapest_first(ordered_agents, task, indices)
        prepared.served.append(task)
        prepared.choices.append(choices)
        prepared.terms.append(terms)
    again = place_in_order(prepared.choices, prepared.capacity(), [task.panel for task in prepared.served])
    prepared.placed = [place for place in again if place is not None]
    assert len(prepared.placed) == len(prepared.served), "what fits together fits in any order of choices"
    return prepared


def assign(costs: Sequence[Sequence[float]], capacity: Sequence[int] | None = None) -> list[int]:
    """The cheapest assignment of rows to columns: every row to exactly one column.

    Args:
        costs: one row a task, one column an agent; `math.inf` forbids a pair. Any unit; differences below 1e-100
            count as none.
        capacity: rows that each column can take; None: one each.

    Returns:
        for each row its column.

    Raises:
        ValueError: ragged rows, a cost that is NaN, -inf or beyond 1e12 in size, a capacity of the wrong length or
            below zero, or no way to place every row (the message names the first row without a place).

    >>> assign([[1.0, 2.0], [1.0, 5.0]])
    [1, 0]
    """
    from solver.programme import Programmes

    rows = [[float(cost) for cost in row] for row in costs]
    columns = len(rows[0]) if rows else (len(capacity) if capacity is not None else 0)
    slots = [1] * columns if capacity is None else list(capacity)
    for number, row in enumerate(rows):
        if len(row) != columns:
            raise ValueError(f"costs are ragged: row 0 has {columns} columns and row {number} has {len(row)}")
        for column, cost in enumerate(row):
            if math.isnan(cost) or (cost != math.inf and abs(cost) > COST_MAX):
                raise ValueError(f"cost {cost} at row {number}, column {column}: give a number, or inf to forbid")
    if len(slots) != columns:
        raise ValueError(f"capacity has {len(slots)} entries and costs have {columns} columns")
    if any(slot < 0 or slot != int(slot) for slot in slots):
        raise ValueError("a capacity is a whole number, zero or more")
    choices = [[column for column, cost in enumerate(row) if cost != math.inf] for row in rows]
    for number, where in enumerate(place_in_order(choices, slots)):
        if where is None:
            cause = "every pair of it is forbidden" if not choices[number] else "its columns are full"
            raise ValueError(f"infeasible: no column is left for row {number}: {cause}")
    allowed = [[row[column] for column in picks] for row, picks in zip(rows, choices, strict=True)]
    return Programmes().solve(choices, allowed, slots).agent_of


def stable_hash(text: str) -> bytes:
    """The same on every machine and in every run; breaks ties without favouring whoever is listed first."""
    return hashlib.sha256(text.encode()).digest()


def _cheapest_first(
    agents: Sequence[AgentLoad], task: TaskNeed, indices: Sequence[int]
) -> tuple[list[int], list[dict[str, float]]]:
    scored: list[tuple[float, bytes, int, dict[str, float]]] = []
    for index in indices:
        terms = cost_terms(agents[index], task)
        assert terms is not None
        tie = stable_hash(f"{task.task_id}\0{agents[index].agent_id}")
        scored.append((sum(terms.values()), tie, index, terms))
    scored.sort(key=lambda entry: entry[:2])
    return [entry[2] for entry in scored], [entry[3] for entry in scored]


def _why_waiting(agents: Sequence[AgentLoad], task: TaskNeed, able: Sequence[int]) -> str:
    free = sum(agents[index].slots_free > 0 for index in able)
    who = "the agent that can do it" if len(able) == 1 else f"the {len(able)} agents that can do it"
    if not free:
        return f"{who} {'has' if len(able) == 1 else 'have'} no free slot"
    return f"{who} {'serves' if len(able) == 1 else 'serve'} tasks that come first"


def _why_nobody(agents: Sequence[AgentLoad], task: TaskNeed) -> str:
    if not agents:
        return "there is no agent"
    reasons = Counter(why_not(agent, task) for agent in agents).most_common(3)
    return "no agent can do it: " + "; ".join(f"{reason} ({count} of {len(agents)})" for reason, count in reasons)
