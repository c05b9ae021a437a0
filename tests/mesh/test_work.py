"""How the work of a node is wired into its replica."""

import itertools
import random

import pytest

from mesh import events
from mesh.coordinator import SAY_AGAIN_S
from mesh.dispatch import REPORT_WAIT_S
from mesh.effects import Allocate, Author, MakePlan, Persist, Send
from mesh.facts import Fact
from mesh.identity import NodeId
from mesh.replica import Replica
from mesh.wire import common_pb2, facts_pb2, work_pb2
from tests.mesh.building import BY_ID, B
from tests.mesh.lone import WALL_MS, Lone, ref, to, token
from tests.mesh.working import World

DOC = ref("document")


def submitted(*blobs: str) -> facts_pb2.JobSubmitted:
    request = work_pb2.JobRequest(ask=work_pb2.AskRequest(question="?", panel=1))
    return facts_pb2.JobSubmitted(job_id=b"j" * 32, request=request, blobs=[ref(name) for name in blobs])


def test_what_a_machine_says_becomes_a_fact_and_no_shell_sees_the_word() -> None:
    node = Lone(peers=0)
    done = node.do(events.SubmitRequested(1, submitted(), 5.0))
    assert not any(isinstance(effect, Author) for effect in done)
    [fact] = [fact for effect in done if isinstance(effect, Persist) for fact in effect.facts]
    assert (fact.kind, fact.author, fact.hybrid_clock >> 16) == ("job_submitted", node.me, WALL_MS)


def test_a_node_never_writes_to_itself() -> None:
    node = Lone(peers=0)
    node.profile(node.me, slots=1)
    node.do(events.EngineChanged(ready=True))
    done: list[object] = []
    for _ in range(30):
        node.now += 0.1
        done += node.do(events.Ticked(WALL_MS))
    assert node.replica.election.leader is not None
    done += node.do(events.SubmitRequested(1, submitted(), 5.0))
    assert not [effect for effect in done if isinstance(effect, Send)]


def test_a_restart_knows_jobs_blobs_and_whom_to_ask_for_copies() -> None:
    before = Lone(peers=0)
    before.do(events.BlobStored(DOC))
    before.do(events.SubmitRequested(1, submitted("document"), 5.0))
    facts: list[Fact] = before.stored
    replica = Replica(BY_ID[0], 8, 200, random.Random(1))
    replica.restore(facts, 0, "", blobs=[DOC])
    assert replica.work.copies.holders([DOC]) == {replica.me}
    assert replica.work.acceptance.holders(b"j" * 32, [DOC]) == {replica.me}
    assert replica.work.copies.owners() == [b"j" * 32]


def test_the_leader_hears_of_own_facts_at_once_in_a_large_mesh_too() -> None:
    heard: set[NodeId] = set()
    for leader in (key.node_id for key in BY_ID[1:]):
        node = Lone(peers=7)
        node.leads(leader)
        pushed = to(node.do(events.SubmitRequested(1, submitted(), 5.0)), "fact_push")
        assert leader in pushed
        assert len(pushed) == len(set(pushed)) <= 6
        heard |= set(pushed)
    assert len(heard) == 7


def test_peers_hear_of_the_state_of_the_engine_with_every_probe() -> None:
    node = Lone(peers=1)
    node.do(events.EngineChanged(ready=True, stalled=True))
    node.do(events.Draining())
    load = node.replica.membership.load
    assert (load.engine_stalled, load.draining) == (True, True)
    node.do(events.EngineChanged(ready=True))
    assert not load.engine_stalled


def led() -> Lone:
    """Its node leads in term 3, and a job waits with a plan that it knows."""
    node = Lone(peers=2)
    for peer in (node.me, *node.peers):
        node.profile(peer, slots=1)
    node.do(events.EngineChanged(ready=True))
    plan = work_pb2.Plan(job_id=b"j" * 32, tasks=[work_pb2.Task()])
    node.says(B, "job_submitted", submitted())
    node.says(B, "job_planned", facts_pb2.JobPlanned(job_id=b"j" * 32, plan=DOC, task_count=1))
    node.replica.work.coordinator.lead(token(3, node.me), node.now)
    node.do(events.PlanRead(DOC, plan))
    return node


def running_on(node: Lone, peer: NodeId, term: int) -> list[object]:
    """`peer` reports that it runs the one task."""
    event = work_pb2.TaskEvent(job_id=b"j" * 32, attempt=2, plan_sha256=DOC.sha256)
    event.agent.node_id, event.agent.agent = peer, "default"
    event.progress.SetInParent()
    report = work_pb2.WorkReport(token=token(term, node.me), running=[event])
    return list(node.receive(peer, work_report=report))


def test_a_new_leader_hears_reports_before_it_assigns() -> None:
    node = led()
    dispatch = node.replica.work.coordinator.dispatch
    node.now += REPORT_WAIT_S / 2
    assert not any(isinstance(effect, Allocate) for effect in node.replica.work.tick(node.now))
    running_on(node, B, term=3)
    assert [flight.node_id for flight in dispatch.of_job(b"j" * 32)] == [B]
    node.now += REPORT_WAIT_S
    assert not any(isinstance(effect, Allocate) for effect in node.replica.work.tick(node.now))
    silent = led()
    silent.now += REPORT_WAIT_S + 0.1
    assert any(isinstance(effect, Allocate) for effect in silent.replica.work.tick(silent.now))


def test_reports_to_another_leadership_are_not_adopted() -> None:
    node = led()
    running_on(node, B, term=2)
    assert not node.replica.work.coordinator.dispatch.in_flight


def test_what_ran_on_a_node_that_left_is_free_again() -> None:
    node = led()
    running_on(node, B, term=3)
    assert node.replica.work.coordinator.dispatch.in_flight
    node.leaves(B)
    assert not node.replica.work.coordinator.dispatch.in_flight


def test_the_end_of_a_job_is_said_once_while_the_disk_is_slow() -> None:
    node = Lone(peers=0)
    node.do(events.SubmitRequested(1, submitted(), 5.0))
    work = node.replica.work
    work.coordinator.lead(token(3, node.me), 0.0)
    assert any(isinstance(effect, MakePlan) for effect in work.tick(1.0))
    problem = common_pb2.Problem(code="bad-document", message="no text")
    done = work.handle(events.PlanFailed(b"j" * 32, problem, final=True), 1.1)
    assert [effect.kind for effect in done if isinstance(effect, Author)] == ["job_failed"]
    for now in (1.2, 2.0, 10.0, SAY_AGAIN_S):
        assert not [effect for effect in work.tick(now) if isinstance(effect, Author | MakePlan)]
    assert any(isinstance(effect, MakePlan) for effect in work.tick(1.2 + SAY_AGAIN_S)), "it was lost with its stream"


def test_a_leader_that_was_given_up_commands_nothing() -> None:
    node = Lone(peers=2)
    node.profile(node.me, slots=1)
    node.do(events.SubmitRequested(1, submitted(), 5.0))
    coordinator = node.replica.work.coordinator
    coordinator.lead(token(3, node.me), node.now)
    node.leads(B)
    assert coordinator.token is None
    plan = work_pb2.Plan(job_id=b"j" * 32, tasks=[work_pb2.Task()])
    assert not [
        effect for effect in node.do(events.PlanMade(b"j" * 32, ref("plan"), plan)) if isinstance(effect, Persist)
    ]


def test_an_engine_gets_its_next_task_while_copies_of_the_last_result_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.mesh.working.FETCH_S", 0.4)
    world = World()
    job_id = world.ready().submit(tasks=12)
    world.until(lambda: world.completed_everywhere(job_id))
    for desk in world.desks:
        at = [began for began, _ in desk.started]
        gaps = [after - before - world.task_s for before, after in itertools.pairwise(at)]
        assert max(gaps) < 0.15, "by then the copies are not there"
