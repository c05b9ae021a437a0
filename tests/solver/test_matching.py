"""Placing in order is largest and earliest, compared with trying every set."""

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from solver.matching import place_in_order


def placeable(tasks: tuple[int, ...], choices: list[list[int]], capacity: list[int], panels: list[str]) -> bool:
    """Whether all of `tasks` can be placed together, by trying everything."""

    def go(position: int, used: list[int], seats: frozenset[tuple[str, int]]) -> bool:
        if position == len(tasks):
            return True
        task = tasks[position]
        for agent in choices[task]:
            seat = (panels[task], agent)
            if used[agent] < capacity[agent] and not (panels[task] and seat in seats):
                used[agent] += 1
                if go(position + 1, used, seats | {seat}):
                    return True
                used[agent] -= 1
        return False

    return go(0, [0] * len(capacity), frozenset())


@st.composite
def rounds(draw: st.DrawFn) -> tuple[list[list[int]], list[int], list[str]]:
    agents = draw(st.integers(0, 4))
    tasks = draw(st.integers(0, 6))
    choice = st.lists(st.integers(0, agents - 1), unique=True, max_size=agents) if agents else st.just([])
    choices = draw(st.lists(choice, min_size=tasks, max_size=tasks))
    capacity = draw(st.lists(st.integers(0, 3), min_size=agents, max_size=agents))
    panels = draw(st.lists(st.sampled_from(["", "p", "q"]), min_size=tasks, max_size=tasks))
    return choices, capacity, panels


@given(rounds())
def test_the_set_is_largest_and_among_the_largest_the_earliest(
    case: tuple[list[list[int]], list[int], list[str]],
) -> None:
    choices, capacity, panels = case
    where = place_in_order(choices, capacity, panels)
    served = tuple(task for task, agent in enumerate(where) if agent is not None)
    best = next(
        kept
        for size in range(len(choices), -1, -1)
        for kept in combinations(range(len(choices)), size)  # lexicographic: the earliest first
        if placeable(kept, choices, capacity, panels)
    )
    assert served == best


@given(rounds())
def test_every_placing_is_feasible(case: tuple[list[list[int]], list[int], list[str]]) -> None:
    choices, capacity, panels = case
    where = place_in_order(choices, capacity, panels)
    placed = [(task, agent) for task, agent in enumerate(where) if agent is not None]
    assert all(agent in choices[task] for task, agent in placed)
    assert all(sum(at == agent for _, at in placed) <= slots for agent, slots in enumerate(capacity))
    seats = [(panels[task], agent) for task, agent in placed if panels[task]]
    assert len(seats) == len(set(seats))


def test_an_earlier_task_moves_to_make_room() -> None:
    assert place_in_order([[0, 1], [0]], [1, 1]) == [1, 0]


def test_a_panel_that_no_longer_fits_leaves_its_last_member_waiting() -> None:
    assert place_in_order([[0, 1], [0, 1], [0, 1]], [5, 5], ["p", "p", "p"]) == [0, 1, None]
    assert place_in_order([], [1]) == []
    assert place_in_order([[0]], [-1]) == [None]
