"""Which tasks a round serves: as many as fit, and among those sets the one with the earliest tasks.

The sets of tasks that can be served together are those that a flow can carry:

    source → task (1) → its panel's seat at an agent (1) → agent (its free slots) → sink

Such sets form a matroid (a gammoid: Perfect 1968; Schrijver, Combinatorial Optimization, chapter 39). So going through
the tasks in order and keeping each one that an augmenting path can add gives a set that is largest and, among the
largest, earliest: no price of "waiting" has to be weighed against seconds, and none can be set wrong. An augmenting
path moves tasks that were placed before to other agents; it never drops one.

Not guaranteed: low cost. The placing is feasible; the assignment programme then finds the cheapest for the same set.
"""

from collections import deque
from collections.abc import Sequence


def place_in_order(
    choices: Sequence[Sequence[int]], capacity: Sequence[int], panels: Sequence[str] | None = None
) -> list[int | None]:
    """Place tasks in the order given, dropping none that was placed; None for those that find no place.

    Args:
        choices: for each task the agents that can do it, best first; an agent at most once.
        capacity: for each agent the tasks it can take; negative counts as 0.
        panels: for each task its panel; tasks of one non-empty panel go to distinct agents.

    Returns:
        for each task its agent. Costs O(tasks · pairs) at worst, O(pairs) where nothing has to move.
    """
    seat_of = [(panel or index) for index, panel in enumerate(panels)] if panels else list(range(len(choices)))
    where: list[int | None] = [None] * len(choices)
    at_agent: list[set[int]] = [set() for _ in capacity]
    free = sum(max(0, slots) for slots in capacity)
    for task in range(len(choices)):
        if free == 0:
            break
        path = _augmenting_path(task, choices, capacity, seat_of, at_agent)
        for moved, agent in path:
            previous = where[moved]
            if previous is not None:
                at_agent[previous].discard(moved)
            where[moved] = agent
            at_agent[agent].add(moved)
        free -= bool(path)
    return where


def _augmenting_path(
    start: int,
    choices: Sequence[Sequence[int]],
    capacity: Sequence[int],
    seat_of: Sequence[str | int],
    at_agent: Sequence[set[int]],
) -> list[tuple[int, int]]:
    """Moves (task, its new agent) that make room for `start`, breadth first; empty where there is no room."""
    came_from: dict[int, tuple[int, int]] = {}  # task that must move → (task that takes its place, at which agent)
    seats_seen: set[tuple[str | int, int]] = set()
    agents_seen: set[int] = set()
    queue = deque([start])
    while queue:
        task = queue.popleft()
        for agent in choices[task]:
            seat = (seat_of[task], agent)
            if seat in seats_seen:
                continue
            seats_seen.add(seat)
            sitting = [other for other in at_agent[agent] if seat_of[other] == seat_of[task]]
            if sitting:  # the panel has its one seat here: only the member that sits on it can make room
                must_move = sitting
            elif agent in agents_seen:
                continue
            else:
                agents_seen.add(agent)
                if len(at_agent[agent]) < capacity[agent]:
                    return _moves(task, agent, came_from)
                must_move = sorted(at_agent[agent])
            for other in must_move:
                if other != start and other not in came_from:
                    came_from[other] = (task, agent)
                    seats_seen.add((seat_of[other], agent))
                    queue.append(other)
    return []


def _moves(task: int, agent: int, came_from: dict[int, tuple[int, int]]) -> list[tuple[int, int]]:
    """The path, last move first, so that no agent is over its capacity on the way."""
    moves = [(task, agent)]
    while task in came_from:
        task, agent = came_from[task]
        moves.append((task, agent))
    return moves
