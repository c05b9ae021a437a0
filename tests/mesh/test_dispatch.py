"""Tests of mesh/dispatch.py: leases of tasks in flight, as scenarios."""

import pytest

from mesh.dispatch import ACCEPT_S, LEASE_S, REST_S, Dispatch, TaskKey
from mesh.identity import NodeId
from mesh.ledger import TaskRef
from mesh.wire import common_pb2, work_pb2

A, B = NodeId("a" * 32), NodeId("b" * 32)
KEY = TaskKey(b"j" * 32, TaskRef(3, 0))


def agent(node: NodeId) -> common_pb2.AgentRef:
    return common_pb2.AgentRef(node_id=node, agent="default")


def event(node: NodeId = A, **kind: object) -> work_pb2.TaskEvent:
    return work_pb2.TaskEvent(job_id=KEY.job_id, task_index=3, agent=agent(node), **kind)  # type: ignore[arg-type]


def flying(now: float = 0.0) -> Dispatch:
    dispatch = Dispatch()
    assert dispatch.assigned(KEY, agent(A), now, prompt_tokens=100, output_tokens=10) == 1
    return dispatch


def test_an_assignment_that_is_not_accepted_in_time_is_free_again() -> None:
    dispatch = flying()
    assert dispatch.tick(ACCEPT_S) == []
    [lost] = dispatch.tick(ACCEPT_S + 0.1)
    assert (lost.key, lost.node_id) == (KEY, A)
    assert dispatch.assigned(KEY, agent(B), 6.0, 1, 1) == 2, "attempts go on counting"


def test_progress_renews_the_lease_and_silence_ends_it() -> None:
    dispatch = flying()
    dispatch.event_received(A, event(accepted=work_pb2.TaskEvent.Accepted()), 1.0)
    assert dispatch.tick(1.0 + LEASE_S) == []
    dispatch.event_received(A, event(progress=work_pb2.TaskProgress(output_tokens=4)), 20.0)
    assert dispatch.tick(20.0 + LEASE_S) == []
    [flight] = dispatch.on_node(A)
    assert flight.progress is not None
    assert flight.progress.output_tokens == 4
    assert [lost.key for lost in dispatch.tick(20.1 + LEASE_S)] == [KEY]


def test_a_declined_task_is_given_back_at_once() -> None:
    dispatch = flying()
    declined = dispatch.event_received(A, event(declined=common_pb2.Problem(code="busy")), 1.0)
    assert declined is not None
    assert not dispatch.in_flight
    assert dispatch.rests(A, 1.0 + REST_S / 2), "who declined is not asked again at once"
    assert not dispatch.rests(A, 1.0 + REST_S)
    assert not dispatch.rests(B, 1.0)


@pytest.mark.parametrize("sender", [A, B])
def test_only_the_assigned_node_speaks_for_a_task(sender: NodeId) -> None:
    dispatch = flying()
    forged = event(B, declined=common_pb2.Problem(code="busy"))
    assert dispatch.event_received(sender, forged, 1.0) is None
    assert KEY in dispatch.in_flight


def test_a_result_or_a_lost_member_ends_the_flight() -> None:
    dispatch = flying()
    assert dispatch.done(KEY) is not None
    assert dispatch.done(KEY) is None
    dispatch = flying()
    assert dispatch.member_lost(B) == []
    assert [lost.key for lost in dispatch.member_lost(A)] == [KEY]


def test_a_new_leader_adopts_what_is_reported_and_keeps_its_own() -> None:
    dispatch = Dispatch()
    dispatch.reported(A, work_pb2.WorkReport(running=[event(A), event(B)]), 5.0)
    [flight] = dispatch.of_job(KEY.job_id)
    assert (flight.node_id, flight.accepted) == (A, True), "nobody reports for another"
    dispatch.reported(B, work_pb2.WorkReport(running=[event(B)]), 6.0)
    assert dispatch.of_job(KEY.job_id) == [flight]
    dispatch.reset()
    assert not dispatch.in_flight
