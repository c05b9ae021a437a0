"""How far a job is, read from its facts: what is ready, and when failures are final."""

import pytest

from mesh.ledger import Job
from mesh.standing import (
    ENGINE_GONE,
    ENGINE_GONE_SHARED,
    FAILURES_MAX,
    FAILURES_TOTAL_MAX,
    failed_for_good,
    standing_of,
)
from mesh.wire import common_pb2, facts_pb2, work_pb2
from tests.mesh.building import B, C, D, E
from tests.mesh.lone import Lone, ref

JOB, PLAN = b"j" * 32, ref("plan")


def plan(*depends_on: tuple[int, ...]) -> work_pb2.Plan:
    return work_pb2.Plan(tasks=[work_pb2.Task(index=i, depends_on=needs) for i, needs in enumerate(depends_on)])


def finished(
    index: int, on: str = B, replica: int = 0, *, success: bool = True, code: str = ""
) -> facts_pb2.TaskFinished:
    done = facts_pb2.TaskFinished(job_id=JOB, plan_sha256=PLAN.sha256, task_index=index, replica=replica)
    done.agent.CopyFrom(common_pb2.AgentRef(node_id=on, agent="default"))
    if success:
        done.result.CopyFrom(ref(f"result {index} {replica}"))
    else:
        done.failure.code = code or f"failed on {on[:4]}"
    return done


def job(*facts: facts_pb2.TaskFinished) -> Job:
    node = Lone(peers=1)
    node.says(B, "job_submitted", facts_pb2.JobSubmitted(job_id=JOB))
    node.says(B, "job_planned", facts_pb2.JobPlanned(job_id=JOB, plan=PLAN, task_count=4))
    for fact in facts:
        node.says(B, "task_finished", fact)
    return node.replica.ledger.jobs[JOB]


def test_a_task_is_ready_once_all_replicas_of_what_it_needs_are_done() -> None:
    panel = plan((), (), (0, 1))
    panel.tasks.insert(1, work_pb2.Task(index=0, replica=1))
    standing = standing_of(job(finished(0), finished(1)), panel, PLAN.sha256)
    assert [(one.task.index, one.task.replica) for one in standing.ready] == [(0, 1)]
    standing = standing_of(job(finished(0), finished(0, replica=1), finished(1)), panel, PLAN.sha256)
    [last] = standing.ready
    assert (last.task.index, list(last.inputs)) == (2, [ref("result 0 0"), ref("result 1 0")])
    assert not standing.done
    standing = standing_of(job(*[finished(i) for i in range(3)], finished(0, replica=1)), panel, PLAN.sha256)
    assert standing.done
    assert not standing.ready


def test_failures_are_remembered_until_there_is_a_result() -> None:
    failed = finished(0, success=False)
    standing = standing_of(job(failed), plan((), ()), PLAN.sha256)
    assert [one.failed_on for one in standing.ready] == [{(B, "default")}, frozenset()]
    assert standing.failed == ((failed,),)
    standing = standing_of(job(failed, finished(0, on=C)), plan((), ()), PLAN.sha256)
    assert standing.failed == ()


@pytest.mark.parametrize(
    ("failed_on", "final"),
    [
        ([B], False),
        ([B, C], False),
        ([B, C, E], True),  # three nodes
        ([B, B, B], False),  # C may do better
        ([B, C, C], True),  # wherever there is an agent, three times
        ([B] * FAILURES_TOTAL_MAX, True),
    ],
)
def test_when_failures_are_enough(failed_on: list[str], final: bool) -> None:
    node = Lone(peers=3)
    node.profile(B, slots=1)
    node.profile(C, slots=1)
    node.profile(D)
    assert failed_for_good(node.replica, [finished(0, on=on, success=False) for on in failed_on]) is final


def test_who_only_embeds_could_not_have_done_better() -> None:
    node = Lone(peers=2)
    node.profile(B, slots=1)
    node.profile(C, slots=1, abilities=("embed",))
    failed = [finished(0, on=B, success=False)] * FAILURES_MAX
    assert failed_for_good(node.replica, failed)
    assert not failed_for_good(node.replica, failed[1:])


def test_an_engine_that_died_under_several_is_no_failure_of_one_task_until_it_is_too_much() -> None:
    node = Lone(peers=3)
    node.profile(B, slots=1)
    shared = [finished(0, on=on, success=False, code=ENGINE_GONE_SHARED) for on in (B, C, D, E, B, C)]
    assert not failed_for_good(node.replica, shared[:-1])
    assert not failed_for_good(node.replica, [*shared[:3], finished(0, success=False)])
    assert failed_for_good(node.replica, shared)
    assert len(shared) == FAILURES_TOTAL_MAX


def test_whose_engine_died_runs_alone_and_anywhere_that_it_did_not_die_alone() -> None:
    facts = [
        finished(0, on=B, success=False, code=ENGINE_GONE_SHARED),
        finished(0, on=C, success=False, code=ENGINE_GONE),
        finished(1, on=B, success=False),
        finished(2, on=B, success=False, code=ENGINE_GONE_SHARED),
        finished(3, on=B, success=False, code=ENGINE_GONE),
        finished(4, on=B, success=False, code=ENGINE_GONE_SHARED),
        finished(4, on=B, success=False, code=ENGINE_GONE_SHARED),
    ]
    standing = standing_of(job(*facts), plan((), (), (), (), ()), PLAN.sha256)
    assert [one.alone for one in standing.ready] == [True, False, False, True, True], "not after one kill"
    own = [{(C, "default")}, {(B, "default")}, set(), {(B, "default")}, set()]
    assert [one.failed_on for one in standing.ready] == own
    assert [one.failure.code for one in standing.failed[0]] == [ENGINE_GONE, ENGINE_GONE_SHARED], "its own come first"
