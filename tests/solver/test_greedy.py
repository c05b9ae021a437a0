"""Greedy is always feasible, serves the same tasks as the programme, and knows how far off it may be."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver import allocation, greedy
from solver.costs import AgentLoad, TaskNeed
from solver.programme import Programmes
from tests.solver.rounds import check, rounds

PROGRAMMES = Programmes()


@given(rounds(agents_max=6, tasks_max=9))
def test_every_round_is_feasible(case: tuple[list[AgentLoad], list[TaskNeed]]) -> None:
    agents, tasks = case
    check(agents, tasks, greedy.allocate(agents, tasks))


@settings(max_examples=80, deadline=None)
@given(rounds(agents_max=6, tasks_max=9))
def test_it_serves_what_the_programme_serves_and_the_optimum_lies_between_bound_and_objective(
    case: tuple[list[AgentLoad], list[TaskNeed]],
) -> None:
    agents, tasks = case
    near, best = greedy.allocate(agents, tasks), allocation.allocate(agents, tasks, PROGRAMMES)
    assert [a.task_id for a in near.assignments] == [a.task_id for a in best.assignments]
    assert (near.waiting, near.infeasible) == (best.waiting, best.infeasible)
    assert near.bound_s - 1e-9 <= best.objective_s <= near.objective_s + 1e-6 * near.objective_s


@given(rounds(agents_max=6, tasks_max=9), st.randoms(use_true_random=False))
def test_the_order_of_agents_does_not_matter(case: tuple[list[AgentLoad], list[TaskNeed]], random: object) -> None:
    agents, tasks = case
    shuffled = list(agents)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert greedy.allocate(agents, tasks) == greedy.allocate(shuffled, tasks)


def test_it_swaps_where_the_first_come_would_keep_the_best_seat() -> None:
    fast, slow = AgentLoad("fast", 100.0, 100.0), AgentLoad("slow", 10.0, 10.0)
    result = greedy.allocate([slow, fast], [TaskNeed("small", 10, 10), TaskNeed("large", 1000, 100)])
    assert {a.task_id: a.agent_id for a in result.assignments} == {"small": "slow", "large": "fast"}


def test_ties_do_not_all_fall_on_one_agent() -> None:
    agents = [AgentLoad(str(number), 10.0, 10.0, slots_free=9) for number in range(8)]
    chosen = {greedy.allocate(agents, [TaskNeed(f"t{n}", 10, 10)]).assignments[0].agent_id for n in range(32)}
    assert len(chosen) >= 6


@pytest.mark.parametrize("reason", ["the solver process is starting", "HiGHS gave up"])
def test_it_says_what_it_is_and_why(reason: str) -> None:
    result = greedy.allocate([AgentLoad("a")], [TaskNeed("t", 1, 1)], reason)
    assert (result.method, result.method_reason) == ("greedy", reason)
