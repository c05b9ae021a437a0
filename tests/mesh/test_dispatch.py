"""Tests of mesh/dispatch.py: leases, lateness and rest of attempts in flight, as scenarios."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.dispatch import (
    ACCEPT_LATE_S,
    ACCEPT_S,
    COPYING,
    COPYING_LATE_S,
    GAP_MAX_S,
    GAPS_KEPT,
    INPUTS_MISSING,
    INPUTS_REST_MAX_S,
    INPUTS_REST_S,
    LATE_GAPS,
    LATE_S,
    LEASE_S,
    REST_MAX_S,
    REST_S,
    STUCK_REST_MAX_S,
    STUCK_REST_S,
    Dispatch,
    InFlight,
    TaskKey,
)
from mesh.identity import NodeId
from mesh.ledger import TaskRef
from mesh.wire import common_pb2, work_pb2

A, B, C = NodeId("a" * 32), NodeId("b" * 32), NodeId("c" * 32)
KEY = TaskKey(b"j" * 32, TaskRef(3, 0))
PLAN = b"p" * 32


def agent(node: NodeId) -> common_pb2.AgentRef:
    return common_pb2.AgentRef(node_id=node, agent="default")


def event(node: NodeId = A, attempt: int = 1, **kind: object) -> work_pb2.TaskEvent:
    return work_pb2.TaskEvent(job_id=KEY.job_id, task_index=3, attempt=attempt, agent=agent(node), **kind)  # type: ignore[arg-type]


def assign(dispatch: Dispatch, node: NodeId, now: float = 0.0) -> int:
    return dispatch.assigned(KEY, PLAN, agent(node), now, prompt_tokens=100, output_tokens=10)


def flying(*nodes: NodeId) -> Dispatch:
    dispatch = Dispatch()
    for node in nodes or (A,):
        assign(dispatch, node)
    return dispatch


def accepts(dispatch: Dispatch, now: float, node: NodeId = A) -> InFlight:
    dispatch.event_received(node, event(node, accepted=work_pb2.TaskEvent.Accepted()), now)
    return next(flight for flight in dispatch.of_task(KEY) if flight.node_id == node)


def moves(dispatch: Dispatch, now: float, node: NodeId = A, phase: str = "writing") -> None:
    dispatch.event_received(node, event(node, progress=work_pb2.TaskProgress(output_tokens=4, phase=phase)), now)


def test_an_assignment_that_is_not_accepted_in_time_is_free_again() -> None:
    dispatch = flying()
    assert dispatch.tick(ACCEPT_S) == []
    [lost] = dispatch.tick(ACCEPT_S + 0.1)
    assert (lost.key, lost.node_id) == (KEY, A)
    assert assign(dispatch, B, 6.0) == 2, "attempts go on counting"


def test_progress_renews_the_lease_and_silence_ends_it() -> None:
    dispatch = flying()
    accepts(dispatch, 1.0)
    assert dispatch.tick(1.0 + LEASE_S) == []
    moves(dispatch, 20.0)
    assert dispatch.tick(20.0 + LEASE_S) == []
    [flight] = dispatch.on_node(A)
    assert flight.progress is not None
    assert flight.progress.output_tokens == 4
    assert [lost.key for lost in dispatch.tick(20.1 + LEASE_S)] == [KEY]


def test_two_attempts_of_a_task_run_at_most_and_on_two_nodes() -> None:
    dispatch = flying()
    assert not dispatch.may_start(KEY, A)
    assert dispatch.may_start(KEY, B)
    assign(dispatch, B)
    assert not dispatch.may_start(KEY, C)
    dispatch.validate()


@pytest.mark.parametrize("sender", [A, B])
def test_only_the_assigned_node_speaks_for_a_task(sender: NodeId) -> None:
    dispatch = flying()
    forged = event(B, declined=common_pb2.Problem(code="busy"))
    assert dispatch.event_received(sender, forged, 1.0) is None
    assert KEY in dispatch.in_flight


def test_a_declined_task_is_given_back_at_once_and_who_goes_on_declining_rests_longer() -> None:
    dispatch = Dispatch()
    now, rests = 0.0, []
    for attempt in range(1, 8):
        assign(dispatch, A, now)
        declined = dispatch.event_received(A, event(attempt=attempt, declined=common_pb2.Problem(code="busy")), now)
        assert declined is not None
        assert not dispatch.in_flight
        rests.append(dispatch.resting[A] - now)
        assert dispatch.rests(A, now)
        assert not dispatch.rests(A, dispatch.resting[A])
        assert not dispatch.rests(B, now)
        now = dispatch.resting[A]
    assert rests == sorted(rests)
    assert (rests[0], rests[-1]) == (REST_S, REST_MAX_S)
    assign(dispatch, A, now)
    accepts(dispatch, now)
    dispatch.done(KEY)
    attempt = assign(dispatch, A, now)
    dispatch.event_received(A, event(attempt=attempt, declined=common_pb2.Problem(code="busy")), now)
    assert dispatch.resting[A] - now == REST_S, "who accepted is asked again soon"


def test_a_late_no_to_an_earlier_attempt_does_not_end_the_next() -> None:
    dispatch = flying()
    dispatch.tick(ACCEPT_S + 0.1)
    assert assign(dispatch, A, 6.0) == 2
    assert dispatch.event_received(A, event(attempt=1, declined=common_pb2.Problem(code="busy")), 6.1) is None
    assert len(dispatch.of_task(KEY)) == 1


def test_missing_inputs_hold_a_task_back_and_not_the_node() -> None:
    dispatch = Dispatch()
    now, waits = 0.0, []
    for attempt in range(1, 8):
        assign(dispatch, A, now)
        problem = common_pb2.Problem(code=INPUTS_MISSING)
        assert dispatch.event_received(A, event(attempt=attempt, declined=problem), now) is not None
        assert not dispatch.rests(A, now)
        assert dispatch.is_held_back(KEY, now)
        assert not dispatch.is_held_back(TaskKey(KEY.job_id, TaskRef(4, 0)), now)
        waits.append(dispatch.held_back[KEY][0] - now)
        now = dispatch.held_back[KEY][0]
        assert not dispatch.is_held_back(KEY, now)
    assert (waits[0], waits[1], waits[-1]) == (INPUTS_REST_S, 2 * INPUTS_REST_S, INPUTS_REST_MAX_S)
    dispatch.job_ended(KEY.job_id)
    assert not dispatch.held_back


def test_what_a_worker_does_not_report_does_not_run_there() -> None:
    dispatch = flying(A, B)
    assert dispatch.not_running(A, []) == [], "it may not have arrived yet"
    accepts(dispatch, 1.0)
    assert dispatch.not_running(A, [KEY]) == []
    assert [flight.node_id for flight in dispatch.not_running(A, [])] == [A]
    assert [flight.node_id for flight in dispatch.of_task(KEY)] == [B]
    dispatch.validate()


def test_a_result_ends_all_attempts_and_a_failure_one() -> None:
    dispatch = flying(A, B)
    dispatch.ended(KEY, PLAN, A)
    assert [flight.node_id for flight in dispatch.of_task(KEY)] == [B]
    dispatch = flying(A, B)
    assert [flight.node_id for flight in dispatch.done(KEY)] == [A, B]
    assert dispatch.done(KEY) == []


def test_a_lost_member_takes_its_attempts_along() -> None:
    dispatch = flying(A, B)
    assert dispatch.member_lost(C) == []
    assert [lost.node_id for lost in dispatch.member_lost(A)] == [A]
    assert [flight.node_id for flight in dispatch.of_task(KEY)] == [B]


def test_an_ended_job_leaves_nothing_behind() -> None:
    dispatch = flying(A, B)
    assert dispatch.runs(KEY.job_id)
    assert {flight.node_id for flight in dispatch.job_ended(KEY.job_id)} == {A, B}
    assert not dispatch.runs(KEY.job_id)
    dispatch.validate()
    assert not dispatch.in_flight
    assert not dispatch.attempts


def test_a_new_leader_adopts_what_is_reported_but_no_third_attempt() -> None:
    dispatch = Dispatch()
    assert dispatch.adopt(A, PLAN, event(A, attempt=4), 5.0)
    assert not dispatch.adopt(A, PLAN, event(B), 5.0), "nobody reports for another"
    [flight] = dispatch.of_job(KEY.job_id)
    assert (flight.node_id, flight.accepted) == (A, True)
    assert assign(dispatch, B) == 5
    assert not dispatch.adopt(C, PLAN, event(C), 6.0)
    dispatch.reset()
    assert not dispatch.in_flight


def test_an_assignment_is_late_soon_and_lost_later() -> None:
    dispatch = flying()
    [flight] = dispatch.of_task(KEY)
    assert not dispatch.why_late(flight, ACCEPT_LATE_S)
    assert "not accepted" in dispatch.why_late(flight, ACCEPT_LATE_S + 0.1)
    assert dispatch.tick(ACCEPT_LATE_S + 0.1) == []


def test_what_counts_as_late_follows_the_pace_of_the_node() -> None:
    dispatch = flying()
    flight = accepts(dispatch, 0.0)
    assert not dispatch.why_late(flight, LATE_S)
    assert "no progress" in dispatch.why_late(flight, LATE_S + 0.1)
    for moment in (1.0, 2.0, 3.0):
        moves(dispatch, moment)
    assert not dispatch.why_late(flight, 3.0 + LATE_GAPS)
    assert dispatch.why_late(flight, 3.1 + LATE_GAPS)


def test_one_long_stall_does_not_excuse_the_next() -> None:
    dispatch = flying()
    flight = accepts(dispatch, 0.0)
    moves(dispatch, 25.0)
    assert dispatch.why_late(flight, 25.1 + LATE_GAPS * GAP_MAX_S)
    assert LATE_GAPS * GAP_MAX_S < LEASE_S


def test_one_stall_excuses_no_more_than_a_few_times_what_was_late_before() -> None:
    dispatch = flying()
    flight = accepts(dispatch, 0.0)
    moves(dispatch, 25.0)
    assert dispatch.why_late(flight, 25.1 + LATE_GAPS * LATE_S)


def reads_in_long_steps(dispatch: Dispatch, now: float, gap_s: float, words: int = 3) -> float:
    """A task on A has read a prompt by so many words of progress. Returns when it wrote its first."""
    for _ in range(words):
        moves(dispatch, now, phase="reading")
        now += gap_s
    moves(dispatch, now)
    return now


def writes_in_short_steps(dispatch: Dispatch, now: float, words: int = 3 * GAPS_KEPT) -> float:
    for _ in range(words):
        now += 0.1
        moves(dispatch, now)
    return now


def test_a_node_that_reads_in_long_steps_is_known_for_that_however_much_it_writes_between() -> None:
    dispatch = flying()
    accepts(dispatch, 0.0)
    now = writes_in_short_steps(dispatch, reads_in_long_steps(dispatch, 0.0, 3.0))
    dispatch.done(KEY)
    assign(dispatch, A, now)
    flight = accepts(dispatch, now)
    assert not dispatch.why_late(flight, now + 3.0), "it reads already, though it has not said so"
    moves(dispatch, now, phase="reading")
    assert not dispatch.why_late(flight, now + 3.0)
    assert not dispatch.is_stuck(A, now + 3.0)
    assert dispatch.why_late(flight, now + 0.1 + LATE_GAPS * GAP_MAX_S)


def test_long_steps_of_reading_excuse_no_silence_in_writing() -> None:
    dispatch = flying()
    flight = accepts(dispatch, 0.0)
    now = writes_in_short_steps(dispatch, reads_in_long_steps(dispatch, 0.0, 3.0), words=2)
    assert not dispatch.why_late(flight, now + LATE_S)
    assert dispatch.why_late(flight, now + LATE_S + 0.1)
    assert dispatch.is_stuck(A, now + LATE_S + 0.1)


def test_who_writes_beside_a_prompt_that_is_read_waits_for_its_steps() -> None:
    dispatch = flying()
    flight = accepts(dispatch, 0.0)
    now = writes_in_short_steps(dispatch, reads_in_long_steps(dispatch, 0.0, 3.0))
    beside = TaskKey(KEY.job_id, TaskRef(4, 0))
    dispatch.assigned(beside, PLAN, agent(A), now, 1000, 1)
    assert dispatch.why_late(flight, now + 3.0), "what did not arrive is not read"
    arrived = work_pb2.TaskEvent(
        job_id=KEY.job_id, task_index=4, attempt=1, agent=agent(A), accepted=work_pb2.TaskEvent.Accepted()
    )
    dispatch.event_received(A, arrived, now)
    assert not dispatch.why_late(flight, now + 3.0)
    dispatch.done(beside)
    assert dispatch.why_late(flight, now + 3.0)


@pytest.mark.parametrize("reader_speaks_first", [True, False])
def test_who_writes_beside_a_prompt_that_is_read_is_not_known_for_long_steps_of_writing(
    reader_speaks_first: bool,
) -> None:
    dispatch = flying()
    flight = accepts(dispatch, 0.0)
    moves(dispatch, 0.1)
    beside = TaskKey(KEY.job_id, TaskRef(4, 0))
    dispatch.assigned(beside, PLAN, agent(A), 0.1, 1000, 1)

    def says(now: float, **kind: Any) -> None:
        word = work_pb2.TaskEvent(job_id=KEY.job_id, task_index=4, attempt=1, agent=agent(A), **kind)
        dispatch.event_received(A, word, now)

    now = 0.1
    says(now, accepted=work_pb2.TaskEvent.Accepted())
    for phase in ("reading", "reading", "writing"):
        now += 3.0
        if reader_speaks_first:
            says(now, progress=work_pb2.TaskProgress(phase=phase))
        now += 0.01
        assert not reader_speaks_first or not dispatch.why_late(flight, now), "the reader moved in the same step"
        moves(dispatch, now)
        if not reader_speaks_first:
            says(now, progress=work_pb2.TaskProgress(phase=phase))
    assert not dispatch.why_late(flight, now + LATE_S)
    assert dispatch.why_late(flight, now + LATE_S + 0.1), "nothing reads any more"


def test_the_time_that_copies_take_is_no_pace_of_the_engine() -> None:
    dispatch = flying()
    accepts(dispatch, 0.0)
    moves(dispatch, 0.1)
    moves(dispatch, 0.2, phase=COPYING)
    for moment in (4.0, 8.0):
        moves(dispatch, moment, phase=COPYING)
    assert not dispatch.is_stuck(A, 8.0 + LATE_S), "it moves all the same"
    dispatch.done(KEY)
    assign(dispatch, A, 8.0)
    flight = accepts(dispatch, 8.0)
    moves(dispatch, 8.1)
    assert dispatch.why_late(flight, 8.2 + LATE_S)


@given(
    st.floats(LATE_S, GAP_MAX_S),
    st.lists(st.tuples(st.integers(0, GAPS_KEPT), st.integers(0, 3 * GAPS_KEPT)), min_size=1, max_size=5),
)
def test_reading_is_judged_by_reading_and_writing_by_writing(step_s: float, prompts: list[tuple[int, int]]) -> None:
    """Prompts that take so many steps more to read, and so many words to write; one word has taught the leader."""
    dispatch = flying()
    accepts(dispatch, 0.0)
    now = reads_in_long_steps(dispatch, 0.0, step_s, words=2)
    dispatch.done(KEY)
    for reading, writing in prompts:
        assign(dispatch, A, now)
        flight = accepts(dispatch, now)
        assert not dispatch.why_late(flight, now + step_s)
        now = reads_in_long_steps(dispatch, now, step_s, words=1 + reading)
        now = writes_in_short_steps(dispatch, now, words=writing)
        assert dispatch.why_late(flight, now + LATE_S + 0.1)
        assert dispatch.is_stuck(A, now + LATE_S + 0.1)
        dispatch.done(KEY)
        dispatch.validate()


def test_a_result_that_waits_for_copies_is_no_stall() -> None:
    dispatch = flying()
    flight = accepts(dispatch, 0.0)
    busy = [flight.uses_engine]
    moves(dispatch, 1.0, phase=COPYING)
    assert [*busy, flight.uses_engine] == [True, False]
    assert not dispatch.why_late(flight, 1.0 + COPYING_LATE_S)
    assert dispatch.why_late(flight, 1.1 + COPYING_LATE_S)


def test_a_node_is_stuck_only_while_nothing_moves_there() -> None:
    dispatch = flying()
    accepts(dispatch, 0.0)
    assert not dispatch.is_stuck(A, 1.0)
    assert dispatch.is_stuck(A, LATE_S + 0.1)
    assert not dispatch.is_stuck(B, LATE_S + 0.1)
    # Another task of this node moves: one of them is late, the node is not stuck.
    other = TaskKey(KEY.job_id, TaskRef(4, 0))
    dispatch.assigned(other, PLAN, agent(A), 0.0, 1, 1)
    word = work_pb2.TaskEvent(
        job_id=KEY.job_id, task_index=4, attempt=1, agent=agent(A), progress=work_pb2.TaskProgress()
    )
    for moment in (0.5, 1.0, 1.5, 2.0, 2.5):
        dispatch.event_received(A, word, moment)
    [flight] = dispatch.of_task(KEY)
    assert dispatch.why_late(flight, 2.6)
    assert not dispatch.is_stuck(A, 2.6)


def test_a_node_that_work_is_taken_from_rests_longer_each_time_until_it_moves() -> None:
    dispatch = Dispatch()
    rests = []
    for _ in range(8):
        assign(dispatch, A)
        [flight] = dispatch.done(KEY)
        dispatch.resting.clear()
        dispatch.taken_from(flight, 0.0)
        rests.append(dispatch.resting[A])
    assert (rests[0], rests[1], rests[-1]) == (STUCK_REST_S, 2 * STUCK_REST_S, STUCK_REST_MAX_S)
    assign(dispatch, A)
    moves(dispatch, 1.0)
    assert not dispatch.rests(A, 1.0)
    [flight] = dispatch.done(KEY)
    dispatch.taken_from(flight, 1.0)
    assert dispatch.resting[A] == 1.0 + STUCK_REST_S
