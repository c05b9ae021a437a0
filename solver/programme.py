"""The assignment programme in cvxpy: the cheapest way to give every task to exactly one agent.

    minimise  Σ c_ji x_ji
    such that Σ_i x_ji = 1        every task j to exactly one agent
              Σ_j x_ji ≤ s_i      no agent i over its free slots
              Σ_{j ∈ p} x_ji ≤ 1  members of panel p on distinct agents
              x_ji ≥ 0            variables exist only for pairs that are allowed: no penalty costs

Solved as a linear programme, and exact as one. The task rows are disjoint sets of pairs; the agent rows and the panel
rows (each panel row lies inside one agent row, and a task has one panel) are nested sets. The incidence matrix of two
such laminar families is totally unimodular (Edmonds 1970; Schrijver, Combinatorial Optimization, section 41.4), so
every vertex is integral, panels included, and the simplex method ends in a vertex. Integrality is checked all the
same, and a fractional answer is an error, never rounded.

The lower bound is not taken from the solver. Any prices m_i, n_pi ≥ 0 prove by weak duality

    Σ_j min_i (c_ji + m_i + n_{p(j) i}) - Σ_i s_i m_i - Σ n_pi  ≤  every feasible objective,

so the solver's dual values are put into this formula: a wrong one gives a weak bound, never a false one.

cvxpy compiles a programme once per structure and re-solves it with new costs and slots: costs enter as one flat
parameter (`c @ x`; a parameter that is a matrix takes memory in the square of the pairs) against sparse constants.

This is the one module here that imports cvxpy (seconds, and most of the memory of the process it runs in).
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp

#: Structures kept compiled; a structure is the pairs and the panels, whatever the costs. Bounds memory.
STRUCTURES_MAX = 8
#: An entry of x this close to 0 or 1 is 0 or 1. HiGHS works to 1e-7.
INTEGRALITY_TOLERANCE = 1e-5
#: Costs are scaled to this before solving, so that HiGHS' absolute tolerances mean the same for any unit.
COST_SCALE = 1e3
#: Costs of a round that differ by less than this are equal; dividing by it overflows nothing.
DIFFERENCE_MIN = 1e-100
#: HiGHS' time limit, seconds; the caller ends what hangs for longer.
TIME_LIMIT_S = 4.0

METHOD = f"cvxpy {cp.__version__}/HIGHS"


class ProgrammeError(Exception):
    """The solver gave no optimal vertex: infeasible input, its time limit, or numerical trouble."""


@dataclass(frozen=True, slots=True)
class Solution:
    """`agent_of[j]` is the agent of task j. Invariant: `bound <= objective`, up to rounding."""

    agent_of: list[int]
    objective: float
    bound: float


class Programmes:
    """Compiled programmes by structure, the least recently used dropped first."""

    def __init__(self) -> None:
        self._compiled: OrderedDict[tuple[object, ...], _Compiled] = OrderedDict()

    def solve(
        self,
        choices: Sequence[Sequence[int]],
        costs: Sequence[Sequence[float]],
        capacity: Sequence[int],
        panels: Sequence[str] | None = None,
    ) -> Solution:
        """Solve one round.

        Args:
            choices: for each task the agents it may go to, at least one each.
            costs: for each task the cost of each of its choices, in the order of `choices`; finite.
            capacity: for each agent the tasks it can take.
            panels: for each task its panel; "" or None: none.

        Raises:
            ProgrammeError: there is no feasible assignment, or the solver did not find the optimum.
        """
        if not choices:
            return Solution([], 0.0, 0.0)
        if not all(choices):
            raise ProgrammeError("a task has no agent it may go to")
        pairs = [sorted(zip(*row, strict=True)) for row in zip(choices, costs, strict=True)]  # one order a structure
        rows = tuple(tuple(agent for agent, _ in row) for row in pairs)
        numbers: dict[str, int] = {}
        panel_of = tuple(numbers.setdefault(name, len(numbers)) if name else -1 for name in panels or ())
        structure = (rows, len(capacity), panel_of)
        compiled = self._compiled.pop(structure, None) or _Compiled(rows, len(capacity), panel_of)
        self._compiled[structure] = compiled
        while len(self._compiled) > STRUCTURES_MAX:
            self._compiled.popitem(last=False)
        return compiled.solve([cost for row in pairs for _, cost in row], capacity)


class _Compiled:
    """One structure: constants, the parameters and cvxpy's compiled problem."""

    def __init__(self, choices: Sequence[Sequence[int]], agents: int, panel_of: Sequence[int]) -> None:
        self.task_of = np.array([task for task, row in enumerate(choices) for _ in row])
        self.agent_of = np.array([agent for row in choices for agent in row])
        self.starts = np.cumsum([0, *(len(row) for row in choices[:-1])])
        pairs = len(self.agent_of)
        columns = np.arange(pairs)
        tasks_rows = _incidence(self.task_of, columns, len(choices), pairs)
        agent_rows = _incidence(self.agent_of, columns, agents, pairs)
        self.x = cp.Variable(pairs, nonneg=True)
        self.cost = cp.Parameter(pairs)
        self.slots = cp.Parameter(agents, nonneg=True)
        self.agent_limit = agent_rows @ self.x <= self.slots
        constraints = [tasks_rows @ self.x == 1, self.agent_limit]
        self.seat_of, seats = _seats(self.task_of, self.agent_of, panel_of)
        self.seat_limit: Any = None
        if seats:
            seated = np.flatnonzero(self.seat_of >= 0)
            self.seat_limit = _incidence(self.seat_of[seated], seated, seats, pairs) @ self.x <= 1
            constraints.append(self.seat_limit)
        self.problem = cp.Problem(cp.Minimize(self.cost @ self.x), constraints)

    def solve(self, flat_costs: Sequence[float], capacity: Sequence[int]) -> Solution:
        costs = np.asarray(flat_costs, dtype=float)
        assert costs.shape == self.agent_of.shape, "one cost a pair"
        slots = np.maximum(np.asarray(capacity, dtype=float), 0.0)
        # Taking a constant from every pair of a task changes no choice, since each task has exactly one.
        reduced = costs - np.minimum.reduceat(costs, self.starts)[self.task_of]
        top = float(reduced.max())
        unit = top / COST_SCALE if top > DIFFERENCE_MIN else 1.0
        self.cost.value = reduced / unit
        self.slots.value = slots
        try:
            # No warm start: of several optimal vertices the same one is found whatever was solved before.
            self.problem.solve(
                solver=cp.HIGHS, warm_start=False, highs_options={"threads": 1, "time_limit": TIME_LIMIT_S}
            )
        except cp.error.SolverError as error:
            raise ProgrammeError(f"HiGHS gave up: {error}") from error
        if self.problem.status != cp.OPTIMAL:
            raise ProgrammeError(f"HiGHS ended with status {self.problem.status}")
        return self._read(costs, slots, unit)

    def _read(self, costs: Any, slots: Any, unit: float) -> Solution:
        """The assignment from the vertex, checked, and the bound from the duals."""
        x = np.asarray(self.x.value)
        if np.abs(x - np.round(x)).max() > INTEGRALITY_TOLERANCE:
            raise ProgrammeError("the linear programme ended in a fractional point")
        chosen = np.flatnonzero(np.round(x) == 1.0)
        if not np.array_equal(self.task_of[chosen], np.arange(len(self.starts))):
            raise ProgrammeError("a task was not given to exactly one agent")
        if (np.bincount(self.agent_of[chosen], minlength=len(slots)) > slots).any():
            raise ProgrammeError("an agent was given more tasks than it has slots")
        agent_price = np.maximum(np.asarray(self.agent_limit.dual_value), 0.0) * unit
        priced = costs + agent_price[self.agent_of]
        paid = float(slots @ agent_price)
        if self.seat_limit is not None:
            seats_taken = self.seat_of[chosen][self.seat_of[chosen] >= 0]
            if len(np.unique(seats_taken)) != len(seats_taken):
                raise ProgrammeError("two members of a panel were given to one agent")
            seat_price = np.maximum(np.asarray(self.seat_limit.dual_value), 0.0) * unit
            seated = self.seat_of >= 0
            priced[seated] += seat_price[self.seat_of[seated]]
            paid += float(seat_price.sum())
        objective = float(costs[chosen].sum())
        bound = float(np.minimum.reduceat(priced, self.starts).sum()) - paid
        return Solution([int(agent) for agent in self.agent_of[chosen]], objective, min(bound, objective))


def _incidence(rows: Any, columns: Any, n_rows: int, n_columns: int) -> Any:
    """Sparse 0/1 matrix with a one at each (row, column)."""
    return sp.csr_matrix((np.ones(len(columns)), (rows, columns)), shape=(n_rows, n_columns))


def _seats(task_of: Any, agent_of: Any, panel_of: Sequence[int]) -> tuple[Any, int]:
    """For each pair the number of its (panel, agent) seat, -1 without a panel; and how many seats there are."""
    seat_of = np.full(len(task_of), -1)
    numbers: dict[tuple[int, int], int] = {}
    if panel_of:
        for pair, (task, agent) in enumerate(zip(task_of, agent_of, strict=True)):
            if panel_of[task] >= 0:
                seat_of[pair] = numbers.setdefault((panel_of[task], int(agent)), len(numbers))
    return seat_of, len(numbers)
