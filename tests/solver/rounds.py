"""Rounds for the tests of the allocators, and what every result must satisfy."""

from hypothesis import strategies as st

from solver.allocation import Allocation
from solver.costs import AgentLoad, TaskNeed, cost_matrix, why_not
from solver.matching import place_in_order

RATES = st.sampled_from([0.0, 10.0, 20.0, 100.0]) | st.floats(1.0, 400.0)


@st.composite
def rounds(draw: st.DrawFn, agents_max: int = 4, tasks_max: int = 5) -> tuple[list[AgentLoad], list[TaskNeed]]:
    """Small rounds with panels, exclusions, several slots, busy and unmeasured agents, and many ties."""
    agents = [
        AgentLoad(
            agent_id=f"n{number}/default",
            prefill_tokens_per_s=draw(RATES),
            decode_tokens_per_s=draw(RATES),
            queued_prompt_tokens=draw(st.sampled_from([0, 0, 500])),
            context_tokens=draw(st.sampled_from([0, 0, 200])),
            slots_free=draw(st.integers(0, 3)),
            abilities=draw(st.sampled_from([frozenset({"generate"}), frozenset({"generate", "score"})])),
        )
        for number in range(draw(st.integers(0, agents_max)))
    ]
    ids = [agent.agent_id for agent in agents]
    tasks = [
        TaskNeed(
            task_id=f"t{number}",
            prompt_tokens=draw(st.sampled_from([10, 100, 300])),
            output_tokens=draw(st.sampled_from([1, 50])),
            ability=draw(st.sampled_from(["generate", "generate", "score"])),
            forbidden_agents=draw(st.frozensets(st.sampled_from(ids), max_size=1)) if ids else frozenset(),
            panel=draw(st.sampled_from(["", "", "p", "q"])),
            priority=draw(st.sampled_from([0, 0, 1])),
        )
        for number in range(draw(st.integers(0, tasks_max)))
    ]
    return agents, tasks


def check(agents: list[AgentLoad], tasks: list[TaskNeed], result: Allocation) -> None:
    """The invariants of a result, whatever the method."""
    agent_by_id = {agent.agent_id: agent for agent in agents}
    task_by_id = {task.task_id: task for task in tasks}
    served = [assigned.task_id for assigned in result.assignments]
    assert sorted([*served, *result.waiting, *result.infeasible]) == sorted(task_by_id), "each task in one place"
    for agent in agents:
        assert sum(assigned.agent_id == agent.agent_id for assigned in result.assignments) <= agent.slots_free
    seats = [(task_by_id[a.task_id].panel, a.agent_id) for a in result.assignments if task_by_id[a.task_id].panel]
    assert len(seats) == len(set(seats)), "members of a panel sit on distinct agents"
    for assigned in result.assignments:
        task = task_by_id[assigned.task_id]
        costs = dict(zip(agent_by_id, cost_matrix(agents, [task])[0], strict=True))
        assert assigned.cost_s == sum(assigned.terms.values()) == costs[assigned.agent_id]
        others = [
            cost for name, cost in costs.items() if name != assigned.agent_id and not why_not(agent_by_id[name], task)
        ]
        assert (assigned.runner_up_agent == "") == (not others)
        assert assigned.runner_up_cost_s == min(others, default=0.0)
    assert result.objective_s == sum(assigned.cost_s for assigned in result.assignments)
    assert result.bound_s <= result.objective_s
    assert all(reason for reason in [*result.waiting.values(), *result.infeasible.values()])
    in_order = sorted((task for task in tasks if task.task_id not in result.infeasible), key=lambda t: -t.priority)
    choices = [[index for index, agent in enumerate(agents) if not why_not(agent, task)] for task in in_order]
    where = place_in_order(choices, [agent.slots_free for agent in agents], [task.panel for task in in_order])
    expected = [task.task_id for task, at in zip(in_order, where, strict=True) if at is not None]
    assert served == expected, "the round serves the largest, earliest set, in the order of service"
