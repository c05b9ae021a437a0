"""Tests of mesh/intake.py: whom a worker obeys."""

from mesh.dispatch import TaskKey
from mesh.identity import NodeId
from mesh.intake import Intake, key_of_assign
from mesh.ledger import TaskRef
from mesh.wire import common_pb2, work_pb2

A, B = NodeId("a" * 32), NodeId("b" * 32)
JOB = b"j" * 32


def token(term: int, leader: NodeId) -> common_pb2.FencingToken:
    return common_pb2.FencingToken(term=term, leader_id=leader)


def assign(index: int, by: common_pb2.FencingToken, attempt: int = 1) -> work_pb2.Assign:
    return work_pb2.Assign(token=by, job_id=JOB, task=work_pb2.Task(index=index), attempt=attempt)


def offered(intake: Intake, index: int, by: common_pb2.FencingToken, leader: common_pb2.FencingToken | None) -> str:
    problem = intake.offered(NodeId(by.leader_id), assign(index, by), leader)
    return problem.code if problem else ""


def test_only_the_leader_that_the_node_follows_is_obeyed() -> None:
    intake = Intake(slots=2)
    first = token(1, A)
    assert offered(intake, 0, first, None) == "not-leader"
    assert offered(intake, 0, first, token(2, B)) == "not-leader"
    stranger = intake.offered(B, assign(0, first), first)
    assert stranger is not None
    assert stranger.code == "not-leader", "a token is nobody's but its leader's"
    assert offered(intake, 0, first, first) == ""


def test_a_lower_token_is_declined_even_where_its_leader_is_followed_again() -> None:
    intake = Intake(slots=2)
    assert offered(intake, 0, token(5, B), token(5, B)) == ""
    assert offered(intake, 1, token(4, A), token(4, A)) == "stale-leader"
    assert intake.highest == token(5, B)


def test_slots_and_draining_bound_what_is_taken() -> None:
    intake = Intake(slots=1)
    leader = token(1, A)
    assert offered(intake, 0, leader, leader) == ""
    assert offered(intake, 1, leader, leader) == "busy"
    intake.ended(TaskKey(JOB, TaskRef(0, 0)))
    intake.draining = True
    assert offered(intake, 1, leader, leader) == "node-draining"


def test_a_task_that_runs_goes_on_under_whoever_assigns_it_next() -> None:
    intake = Intake(slots=1)
    assert offered(intake, 0, token(1, A), token(1, A)) == ""
    assert intake.offered(B, assign(0, token(2, B), attempt=2), token(2, B)) is None
    [running] = intake.running.values()
    assert (running.assign.token, running.assign.attempt) == (token(2, B), 2)
    assert key_of_assign(running.assign) == TaskKey(JOB, TaskRef(0, 0))


def test_a_new_leader_hears_of_all_that_runs_and_of_nothing_when_nothing_does() -> None:
    intake = Intake(slots=2)
    assert not intake.leader_changed(token(1, A)).running
    offered(intake, 0, token(1, A), token(1, A))
    offered(intake, 1, token(1, A), token(1, A))
    report = intake.leader_changed(token(2, B))
    assert [event.task_index for event in report.running] == [0, 1]
    assert all(event.token == token(2, B) for event in report.running)
    assert offered(intake, 2, token(1, A), token(1, A)) == "stale-leader"


def test_only_the_highest_leader_cancels() -> None:
    intake = Intake(slots=1)
    offered(intake, 0, token(2, B), token(2, B))
    for by, sender, heard in ((token(1, A), A, False), (token(2, B), A, False), (token(2, B), B, True)):
        cancel = work_pb2.CancelTask(token=by, job_id=JOB)
        assert (intake.cancelled(sender, cancel) is not None) is heard
