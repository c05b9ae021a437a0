"""A round of allocation: what the solver is asked, and what is made of its answer when the world moved meanwhile."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import events
from mesh.dispatch import LATE_S, Dispatch, TaskKey
from mesh.effects import Allocate, Author, Effect, ReadyTask
from mesh.identity import NodeId
from mesh.ledger import Job
from mesh.placement import HEDGE, RECORDS_PER_FACT, ROUND_TASKS_MAX, Placement, Ready
from mesh.wire import common_pb2, facts_pb2, membership_pb2, work_pb2
from tests.mesh.building import B, C, D
from tests.mesh.lone import Lone, ref, to, token
from tests.mesh.working import solved

JOB, PLAN = b"j" * 32, ref("plan")


class Round:
    """A leader with agents on itself, B and C, and a planned job."""

    def __init__(self, slots: int = 1, tasks: int = 3) -> None:
        self.node = Lone(peers=2)
        self.token = token(5, self.node.me)
        self.nodes = [self.node.me, B, C]
        for peer in self.nodes:
            self.node.profile(peer, slots=slots)
        planned = facts_pb2.JobPlanned(job_id=JOB, plan=PLAN, task_count=tasks)
        self.node.says(B, "job_submitted", facts_pb2.JobSubmitted(job_id=JOB))
        self.node.says(B, "job_planned", planned)
        self.placement = Placement(self.node.replica, Dispatch(), {})
        self.dispatch = self.placement.dispatch

    @property
    def job(self) -> Job:
        return self.node.replica.ledger.jobs[JOB]

    def ready(self, *indexes: int, panel: str = "", failed_on: tuple[NodeId, ...] = ()) -> list[Ready]:
        failed = frozenset((node, "default") for node in failed_on)
        tasks = [
            work_pb2.Task(index=0 if panel else index, replica=index if panel else 0, panel=panel) for index in indexes
        ]
        return [Ready(self.job, PLAN.sha256, task, (), failed) for task in tasks]

    def ask(self, ready: list[Ready], now: float = 0.0) -> Allocate | None:
        effects = self.placement.ask(ready, self.token, now)
        return next((effect for effect in effects if isinstance(effect, Allocate)), None)

    def answer(self, asked: Allocate, *nodes: NodeId, now: float = 0.0) -> list[Effect]:
        """The first task to the first node, and so on."""
        return self.placement.answered(placed(asked, *nodes), self.token, now)

    def accept(self, key: TaskKey, peer: NodeId, now: float) -> None:
        event = work_pb2.TaskEvent(
            job_id=key.job_id,
            task_index=key.ref.index,
            replica=key.ref.replica,
            attempt=1,
            agent=agent(peer),
            accepted=work_pb2.TaskEvent.Accepted(),
        )
        self.dispatch.event_received(peer, event, now)


def agent(node: NodeId) -> common_pb2.AgentRef:
    return common_pb2.AgentRef(node_id=node, agent="default")


def placed(asked: Allocate, *nodes: NodeId) -> events.Allocated:
    pairs = zip(asked.tasks, nodes, strict=False)
    return events.Allocated(asked.round_number, tuple((task.key, record(task, node)) for task, node in pairs), (), "m")


def record(task: ReadyTask, node: NodeId) -> facts_pb2.AssignmentRecord:
    return facts_pb2.AssignmentRecord(task_index=task.key.ref.index, replica=task.key.ref.replica, agent=agent(node))


def journaled(effects: list[Effect]) -> list[facts_pb2.JobAssigned]:
    return [
        effect.content
        for effect in effects
        if isinstance(effect, Author) and isinstance(effect.content, facts_pb2.JobAssigned)
    ]


def free(asked: Allocate) -> dict[str, int]:
    return {state.agent.node_id: state.slots_free for state in asked.agents}


def test_a_placement_is_commanded_and_journaled() -> None:
    round_ = Round()
    asked = round_.ask(round_.ready(0, 1))
    assert asked is not None
    assert free(asked) == dict.fromkeys(round_.nodes, 1)
    done = round_.answer(asked, B, C)
    assert to(done, "assign") == [B, C]
    [assigned] = journaled(done)
    assert [(one.task_index, one.agent.node_id) for one in assigned.assignments] == [(0, B), (1, C)]
    assert (assigned.round, assigned.method, assigned.token) == (1, "m", round_.token)
    # The next round sees who is busy, and leaves alone what is in flight.
    asked = round_.ask(round_.ready(0, 1, 2))
    assert asked is not None
    assert free(asked) == {round_.node.me: 1, B: 0, C: 0}
    assert [task.key.ref.index for task in asked.tasks] == [2]


def test_one_round_at_a_time_and_only_its_own_answer_counts() -> None:
    round_ = Round()
    asked = round_.ask(round_.ready(0))
    assert asked is not None
    assert round_.ask(round_.ready(1)) is None
    stale = events.Allocated(asked.round_number - 1, placed(asked, B).placements, (), "m")
    assert round_.placement.answered(stale, round_.token, 0.0) == []
    assert round_.answer(asked, B)
    assert round_.answer(asked, B) == []


def test_an_answer_to_an_earlier_leadership_is_dropped() -> None:
    round_ = Round()
    asked = round_.ask(round_.ready(0))
    assert asked is not None
    assert round_.placement.answered(placed(asked, B), token(6, round_.node.me), 0.0) == []
    assert round_.ask(round_.ready(0)) is not None, "the next round may begin"


def test_a_placement_is_checked_against_the_world_that_moved() -> None:
    round_ = Round()
    asked = round_.ask(round_.ready(0, 1, 2))
    assert asked is not None
    finished = facts_pb2.TaskFinished(job_id=JOB, plan_sha256=PLAN.sha256, task_index=0, result=ref("done"))
    round_.node.says(B, "task_finished", finished)
    round_.node.leaves(C)
    done = round_.answer(asked, B, C, round_.node.me)
    assert to(done, "assign") == [round_.node.me]
    asked = round_.ask(round_.ready(1))
    assert asked is not None
    round_.node.says(B, "job_cancelled", facts_pb2.JobCancelled(job_id=JOB))
    assert round_.answer(asked, B) == []


def test_nothing_is_asked_while_nobody_has_room() -> None:
    round_ = Round()
    asked = round_.ask(round_.ready(0, 1, 2))
    assert asked is not None
    round_.answer(asked, *round_.nodes)
    assert round_.ask(round_.ready(3)) is None
    for key, peer in zip((task.key for task in asked.tasks), round_.nodes, strict=True):
        round_.accept(key, peer, 0.0)
    assert round_.ask(round_.ready(0, 1, 2), now=LATE_S + 1.0) is None, "a hedge can not help either"


def test_people_read_why_a_job_waits() -> None:
    round_ = Round()
    waiting = round_.placement.waiting_for
    asked = round_.ask(round_.ready(0))
    assert asked is not None
    answer = events.Allocated(asked.round_number, (), ((asked.tasks[0].key, "no agent can do it"),), "m")
    round_.placement.answered(answer, round_.token, 0.0)
    assert waiting == {JOB: "no agent can do it"}
    asked = round_.ask(round_.ready(0))
    assert asked is not None
    round_.answer(asked, B)
    assert waiting == {}
    empty = Round()
    for peer in empty.nodes:
        empty.node.profile(peer, slots=int(peer == C), abilities=("embed",))
    assert empty.ask(empty.ready(0)) is None
    assert empty.placement.waiting_for == {JOB: "an agent: no engine that writes is ready yet"}


def test_who_can_take_nothing_is_offered_nothing() -> None:
    round_ = Round()
    load = membership_pb2.NodeLoad(engine_stalled=True)
    round_.node.replica.membership.members[B].load_told(load)
    round_.node.replica.membership.members[C].load_told(membership_pb2.NodeLoad(draining=True))
    asked = round_.ask(round_.ready(0))
    assert asked is not None
    assert free(asked)[B] == 0
    assert [state.agent.node_id for state in asked.agents if state.draining] == [C]
    round_.node.replica.membership.load.draining = True
    assert Round.ask(round_, round_.ready(0)) is None


def test_what_a_node_tells_of_its_loads_is_charged_to_the_agent_that_waits() -> None:
    round_ = Round()
    loading = membership_pb2.AgentLoad(agent="default", load_wait_seconds=30.0)
    round_.node.replica.membership.members[B].load_told(membership_pb2.NodeLoad(agents=[loading]))
    asked = round_.ask(round_.ready(0))
    assert asked is not None
    waits = {state.agent.node_id: state.load_wait_s for state in asked.agents}
    assert waits == {round_.node.me: 0.0, B: 30.0, C: 0.0}


def test_a_task_goes_where_it_has_not_failed_unless_it_failed_everywhere() -> None:
    round_ = Round()
    asked = round_.ask(round_.ready(0, failed_on=(B,)) + round_.ready(1, failed_on=tuple(round_.nodes)))
    assert asked is not None
    assert [task.forbidden for task in asked.tasks] == [{(B, "default")}, frozenset()]


def test_who_only_embeds_is_offered_nothing_and_is_nowhere_to_try_again() -> None:
    round_ = Round()
    for peer in (round_.node.me, C):
        round_.node.profile(peer, slots=1, abilities=("embed",))
    asked = round_.ask(round_.ready(0, failed_on=(B,)))
    assert asked is not None
    assert [state.agent.node_id for state in asked.agents] == [B]
    assert asked.tasks[0].forbidden == frozenset()
    round_.answer(asked, B)
    assert round_.ask(round_.ready(1)) is None, "nobody has room"


def test_a_panel_sits_on_distinct_agents() -> None:
    round_ = Round(slots=2)
    finished = facts_pb2.TaskFinished(
        job_id=JOB, plan_sha256=PLAN.sha256, task_index=0, replica=2, agent=agent(C), result=ref("answer")
    )
    round_.node.says(C, "task_finished", finished)
    asked = round_.ask(round_.ready(0, 1, panel="jury"))
    assert asked is not None
    assert {task.panel for task in asked.tasks} == {f"{JOB.hex()}/jury"}
    round_.answer(asked, B)
    asked = round_.ask(round_.ready(1, panel="jury"))
    assert asked is not None
    assert asked.tasks[0].forbidden == {(B, "default"), (C, "default")}


def test_a_panel_member_that_failed_on_the_only_free_seat_is_tried_there_again() -> None:
    round_ = Round(slots=2)
    for replica, node in ((1, B), (2, C)):
        finished = facts_pb2.TaskFinished(
            job_id=JOB, plan_sha256=PLAN.sha256, task_index=0, replica=replica, agent=agent(node), result=ref("answer")
        )
        round_.node.says(node, "task_finished", finished)
    asked = round_.ask(round_.ready(0, panel="jury", failed_on=(round_.node.me,)))
    assert asked is not None
    assert asked.tasks[0].forbidden == {(B, "default"), (C, "default")}


def given_to_b(round_: Round) -> TaskKey:
    """A task that the first round gave to B, not accepted yet."""
    asked = round_.ask(round_.ready(0))
    assert asked is not None
    round_.answer(asked, B)
    return asked.tasks[0].key


def test_a_late_task_is_offered_once_more_elsewhere_and_journaled_apart() -> None:
    round_ = Round()
    asked = round_.ask(round_.ready(0))
    assert asked is not None
    round_.answer(asked, B)
    [task] = asked.tasks
    round_.accept(task.key, B, 0.0)
    assert round_.ask(round_.ready(0), now=LATE_S) is None
    asked = round_.ask(round_.ready(0, 1), now=LATE_S + 0.5)
    assert asked is not None
    assert [(one.key.ref.index, one.hedge) for one in asked.tasks] == [(1, False), (0, True)]
    assert asked.tasks[1].forbidden == {(B, "default")}
    assert free(asked)[B] == 0, "who holds something late gets nothing new"
    done = round_.answer(asked, round_.node.me, C, now=LATE_S + 0.5)
    assert to(done, "assign") == [round_.node.me, C]
    first, hedge = journaled(done)
    assert (first.method, hedge.method) == ("m", HEDGE)
    assert "no progress" in hedge.method_reason
    assert [one.agent.node_id for one in hedge.assignments] == [C]
    for key in (task.key,):
        round_.accept(key, C, LATE_S + 0.5)
    assert round_.ask(round_.ready(0), now=30.0) is None, "two are enough"


def test_a_node_that_holds_something_late_gets_nothing_new_even_where_it_has_room() -> None:
    round_ = Round(slots=2)
    round_.accept(given_to_b(round_), B, 0.0)
    asked = round_.ask(round_.ready(0, 1), now=LATE_S - 0.1)
    assert asked is not None
    assert free(asked)[B] == 1
    round_.placement.answered(events.Allocated(asked.round_number, (), (), "m"), round_.token, 1.4)
    asked = round_.ask(round_.ready(0, 1), now=LATE_S + 0.5)
    assert asked is not None
    assert free(asked)[B] == 0


def test_a_late_task_that_moved_while_the_solver_thought_keeps_its_one_copy() -> None:
    round_ = Round()
    given_to_b(round_)
    asked = round_.ask(round_.ready(0), now=2.0)
    assert asked is not None
    assert asked.tasks[0].hedge
    round_.dispatch.done(asked.tasks[0].key)
    assert round_.answer(asked, C, now=2.1) == [], "it is a first copy now, and not what was asked"


def test_a_late_task_that_moved_while_the_solver_thought_needs_no_second_copy() -> None:
    round_ = Round()
    given_to_b(round_)
    asked = round_.ask(round_.ready(0), now=2.0)
    assert asked is not None
    round_.accept(asked.tasks[0].key, B, 2.05)
    assert round_.answer(asked, C, now=2.1) == []


def test_a_merely_late_task_gets_no_place_that_one_never_started_could_have() -> None:
    round_ = Round()
    round_.accept(given_to_b(round_), B, 0.0)
    late = LATE_S + 0.5
    asked = round_.ask(round_.ready(0, 1, 2), now=late)
    assert asked is not None
    assert [(one.key.ref.index, one.hedge) for one in asked.tasks] == [(1, False), (2, False), (0, True)]
    done = round_.placement.answered(solved(asked), round_.token, late)
    [first] = journaled(done)
    assert [one.task_index for one in first.assignments] == [1, 2], "two places, and no second copy"


def test_a_full_round_is_full_of_tasks_that_never_started() -> None:
    round_ = Round(slots=2)
    round_.accept(given_to_b(round_), B, 0.0)
    asked = round_.ask(round_.ready(*range(ROUND_TASKS_MAX + 1)), now=LATE_S + 0.5)
    assert asked is not None
    assert len(asked.tasks) == ROUND_TASKS_MAX
    assert not any(task.hedge for task in asked.tasks)


@pytest.mark.parametrize("trouble", ["suspected", "stalled"])
def test_who_ran_on_a_lost_node_keeps_its_turn(trouble: str) -> None:
    round_ = Round()
    round_.accept(given_to_b(round_), B, 0.0)
    if trouble == "suspected":
        round_.node.do(events.LinkClosed(B))
    else:
        round_.node.replica.membership.members[B].load_told(membership_pb2.NodeLoad(engine_stalled=True))
    asked = round_.ask(round_.ready(0, 1, 2), now=LATE_S + 0.5)
    assert asked is not None
    assert [(one.key.ref.index, one.hedge) for one in asked.tasks] == [(0, True), (1, False), (2, False)]


@given(st.lists(st.sampled_from(["never started", "late", "moving"]), max_size=8), st.integers(1, 4))
def test_late_copies_get_what_the_others_leave(states: list[str], slots: int) -> None:
    round_ = Round(slots=slots)
    round_.node.profile(B, slots=9)  # it runs all that runs
    tasks = round_.ready(*range(len(states)))
    for one, state in zip(tasks, states, strict=True):
        if state != "never started":
            round_.dispatch.assigned(one.key, PLAN.sha256, agent(B), 0.0, 1, 1)
            round_.accept(one.key, B, 0.0 if state == "late" else LATE_S)
    never, late = states.count("never started"), states.count("late")
    asked = round_.ask(tasks, now=LATE_S + 0.5)
    if asked is None:
        assert never == late == 0
        return
    assert [one.hedge for one in asked.tasks] == [False] * never + [True] * late
    room = sum(free(asked).values())
    done = round_.placement.answered(solved(asked), round_.token, LATE_S + 0.5)
    hedged = sum(len(fact.assignments) for fact in journaled(done) if fact.method == HEDGE)
    started = sum(len(fact.assignments) for fact in journaled(done) if fact.method != HEDGE)
    assert started == min(never, room)
    assert hedged <= max(0, room - never)
    round_.dispatch.validate()


def test_a_suspected_or_stalled_node_is_hedged_at_once() -> None:
    round_ = Round()
    round_.accept(given_to_b(round_), B, 0.0)
    assert round_.ask(round_.ready(0), now=0.1) is None
    round_.node.do(events.LinkClosed(B))
    hedge = round_.ask(round_.ready(0), now=0.1)
    assert hedge is not None
    assert hedge.tasks[0].hedge
    assert B not in free(hedge)


def test_a_round_and_its_facts_are_bounded() -> None:
    round_ = Round(slots=ROUND_TASKS_MAX)
    asked = round_.ask(round_.ready(*range(ROUND_TASKS_MAX + 5)))
    assert asked is not None
    assert len(asked.tasks) == ROUND_TASKS_MAX
    done = round_.answer(asked, *[B] * ROUND_TASKS_MAX)
    facts = journaled(done)
    assert len(facts) == -(-ROUND_TASKS_MAX // RECORDS_PER_FACT)
    assert max(fact.ByteSize() for fact in facts) < 16_000
    assert {fact.round for fact in facts} == {1}


def test_an_agent_that_is_not_in_view_is_not_offered() -> None:
    round_ = Round()
    round_.node.link(D)
    round_.node.leaves(D)
    round_.node.profile(D, slots=1)
    asked = round_.ask(round_.ready(0))
    assert asked is not None
    assert set(free(asked)) == set(round_.nodes)
