"""The programme's optimum against brute force and against scipy's own assignment solver."""

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from solver.allocation import ROUND_TASKS_MAX, Allocation, allocate, assign
from solver.costs import AgentLoad, TaskNeed, cost_matrix
from solver.programme import DIFFERENCE_MIN, STRUCTURES_MAX, ProgrammeError, Programmes
from tests.solver.rounds import check, rounds

PROGRAMMES = Programmes()


def least_cost(agents: list[AgentLoad], tasks: list[TaskNeed]) -> float:
    """The least cost of serving all of `tasks`, by trying everything."""
    costs = cost_matrix(agents, tasks)
    best = math.inf
    for where in product(range(len(agents)), repeat=len(tasks)):
        if any(where.count(index) > agent.slots_free for index, agent in enumerate(agents)):
            continue
        seats = [(task.panel, at) for task, at in zip(tasks, where, strict=True) if task.panel]
        if len(seats) == len(set(seats)):
            best = min(best, sum(costs[row][at] for row, at in enumerate(where)))
    return best


@settings(max_examples=120, deadline=None)
@given(rounds())
def test_a_round_costs_what_brute_force_finds(case: tuple[list[AgentLoad], list[TaskNeed]]) -> None:
    agents, tasks = case
    result = allocate(agents, tasks, PROGRAMMES)
    check(agents, tasks, result)
    served = {assigned.task_id for assigned in result.assignments}
    expected = least_cost(agents, [task for task in tasks if task.task_id in served])
    assert result.objective_s == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert result.bound_s == pytest.approx(result.objective_s, rel=1e-6, abs=1e-9), "the duals prove the optimum"


@settings(max_examples=60, deadline=None)
@example([[0.0, -3.7e-259]])  # found once: less apart than costs can be
@given(
    st.integers(1, 7).flatmap(
        lambda rows: st.integers(rows, 9).flatmap(
            lambda columns: st.lists(
                st.lists(st.floats(-1e6, 1e6) | st.just(0.0), min_size=columns, max_size=columns),
                min_size=rows,
                max_size=rows,
            )
        )
    )
)
def test_assign_costs_what_scipy_finds(costs: list[list[float]]) -> None:
    where = assign(costs)
    assert len(set(where)) == len(costs)
    rows, columns = linear_sum_assignment(np.array(costs))
    expected = float(np.array(costs)[rows, columns].sum())
    scale = max(abs(cost) for row in costs for cost in row)
    found = sum(row[at] for row, at in zip(costs, where, strict=True))
    assert found == pytest.approx(expected, abs=1e-6 * scale + DIFFERENCE_MIN)


@pytest.mark.parametrize("unit", [1e-90, 1e-9, 1.0, 1e9])
def test_assign_does_not_depend_on_the_unit(unit: float) -> None:
    costs = [[4.0, 1.0, 3.0], [2.0, 0.0, 5.0], [3.0, 2.0, 2.0]]
    assert assign([[cost * unit for cost in row] for row in costs]) == [1, 0, 2]


def test_assign_respects_capacity_and_forbidden_pairs() -> None:
    assert assign([[1.0, 9.0], [1.0, 9.0], [1.0, 3.0]], capacity=[2, 1]) == [0, 0, 1]
    assert assign([[math.inf, 9.0], [1.0, 2.0]]) == [1, 0]
    assert assign([]) == []
    assert assign([], capacity=[1, 1]) == []
    assert assign([[7.0]]) == [0]
    assert assign([[0.0, 5e-324]]) in ([0], [1])


@pytest.mark.parametrize(
    ("costs", "capacity", "words"),
    [
        ([[1.0, 2.0], [1.0]], None, "ragged: row 0 has 2 columns and row 1 has 1"),
        ([[1.0, math.nan]], None, "nan at row 0, column 1"),
        ([[-math.inf]], None, "-inf at row 0"),
        ([[1e13]], None, "at row 0, column 0"),
        ([[1.0], [2.0]], None, "no column is left for row 1"),
        ([[1.0, 1.0], [math.inf, math.inf]], None, "row 1: every pair of it is forbidden"),
        ([[1.0, 2.0]], [1], "capacity has 1 entries and costs have 2 columns"),
        ([[1.0, 2.0]], [1, -1], "whole number"),
        ([[], []], None, "no column is left for row 0"),
    ],
)
def test_assign_says_what_is_wrong_with_its_input(
    costs: list[list[float]], capacity: list[int] | None, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        assign(costs, capacity)


def test_no_tasks_and_no_agents() -> None:
    assert allocate([AgentLoad("a")], []).assignments == ()
    result = allocate([], [TaskNeed("t", 1, 1)])
    assert result.infeasible == {"t": "there is no agent"}
    assert (result.objective_s, result.bound_s) == (0.0, 0.0)


def test_one_agent_serves_the_first_task_and_the_rest_wait() -> None:
    result = allocate([AgentLoad("a", 10.0, 10.0)], [TaskNeed("long", 100, 100), TaskNeed("short", 1, 1)])
    assert [assigned.task_id for assigned in result.assignments] == ["long"], "earlier beats cheaper"
    assert result.waiting == {"short": "the agent that can do it serves tasks that come first"}
    assert result.assignments[0].runner_up_agent == ""


def test_priority_beats_order() -> None:
    tasks = [TaskNeed("job", 10, 10), TaskNeed("chat", 10, 10, priority=1)]
    assert [assigned.task_id for assigned in allocate([AgentLoad("a")], tasks).assignments] == ["chat"]


def test_a_round_serves_more_rather_than_cheaper() -> None:
    """The cheap pair (generalist, early task) would leave the late task, which only the generalist can do, waiting."""
    generalist = AgentLoad("g", 1000.0, 100.0, abilities=frozenset({"generate", "score"}))
    slow = AgentLoad("s", 1.0, 1.0)
    result = allocate([generalist, slow], [TaskNeed("early", 100, 100), TaskNeed("late", 10, 10, "score")])
    assert {assigned.task_id: assigned.agent_id for assigned in result.assignments} == {"early": "s", "late": "g"}
    early = result.assignments[0]
    assert early.runner_up_agent == "g"
    assert early.runner_up_cost_s < early.cost_s, "the runner-up is cheaper and serves a task that needs it more"


def test_busy_agents_make_tasks_wait_and_incapable_ones_make_them_infeasible() -> None:
    agents = [AgentLoad("a", slots_free=0), AgentLoad("b", context_tokens=10)]
    result = allocate(agents, [TaskNeed("t", 50, 50), TaskNeed("u", 1, 1, "embed")])
    assert result.waiting == {"t": "the agent that can do it has no free slot"}
    assert result.infeasible == {"u": "no agent can do it: it can not embed (2 of 2)"}


def test_terms_and_runner_up_are_kept_for_explain() -> None:
    agents = [AgentLoad("fast", 100.0, 10.0), AgentLoad("slow", 50.0, 5.0, queued_prompt_tokens=100)]
    (assigned,) = allocate(agents, [TaskNeed("t", 200, 20)]).assignments
    assert assigned.agent_id == "fast"
    assert assigned.terms == {"queue": 0.0, "prefill": 2.0, "decode": 2.0}
    assert assigned.cost_s == 4.0
    assert (assigned.runner_up_agent, assigned.runner_up_cost_s) == ("slow", 10.0)


@settings(max_examples=30, deadline=None)
@given(rounds(), st.randoms(use_true_random=False))
def test_the_order_of_agents_does_not_matter(case: tuple[list[AgentLoad], list[TaskNeed]], random: object) -> None:
    agents, tasks = case
    shuffled = list(agents)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert allocate(agents, tasks, PROGRAMMES) == allocate(shuffled, tasks, PROGRAMMES)


def test_tasks_beyond_the_limit_of_a_round_wait() -> None:
    tasks = [TaskNeed(str(number), 1, 1) for number in range(ROUND_TASKS_MAX + 2)]
    result = allocate([AgentLoad("a", slots_free=3)], tasks, PROGRAMMES)
    assert len(result.assignments) == 3
    assert f"a round looks at {ROUND_TASKS_MAX} tasks" in result.waiting[str(ROUND_TASKS_MAX)]


def test_a_structure_is_compiled_once_and_few_are_kept() -> None:
    programmes = Programmes()
    for rate in (10.0, 20.0, 30.0):
        agents = [AgentLoad("a", rate, 5.0), AgentLoad("b", 15.0, 5.0)]
        allocate(agents, [TaskNeed("t", 10, 10), TaskNeed("u", 20, 20)], programmes)
    assert len(programmes._compiled) == 1
    for count in range(1, STRUCTURES_MAX + 3):
        agents = [AgentLoad(str(number)) for number in range(count)]
        allocate(agents, [TaskNeed("t", 10, 10)], programmes)
    assert len(programmes._compiled) == STRUCTURES_MAX


def test_a_re_solve_gives_what_a_first_solve_gives() -> None:
    programmes = Programmes()
    rng = np.random.default_rng(7)
    choices = [list(range(5))] * 8
    for _ in range(5):
        costs = rng.uniform(0.1, 50.0, (8, 5)).tolist()
        warm = programmes.solve(choices, costs, [2] * 5)
        assert warm.objective == pytest.approx(Programmes().solve(choices, costs, [2] * 5).objective)
    assert len(programmes._compiled) == 1


def test_an_infeasible_programme_is_an_error_not_an_answer() -> None:
    with pytest.raises(ProgrammeError, match="infeasible"):
        Programmes().solve([[0], [0]], [[1.0], [1.0]], [1])
    with pytest.raises(ProgrammeError, match="no agent"):
        Programmes().solve([[]], [[]], [1])


def test_results_are_labelled_and_untimed() -> None:
    result: Allocation = allocate([AgentLoad("a")], [TaskNeed("t", 1, 1)], PROGRAMMES)
    assert result.method.startswith("cvxpy")
    assert result.method.endswith("HIGHS")
    assert result.solve_seconds == 0.0


def test_only_the_programme_imports_cvxpy() -> None:
    folder = Path(__file__).parents[2] / "solver"
    users = {path.name for path in folder.glob("*.py") if "import cvxpy" in path.read_text(encoding="utf-8")}
    assert users == {"programme.py"}
