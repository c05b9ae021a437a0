"""Accepting jobs: what is said at once, when it is answered, and with what number."""

import pytest

from mesh import events
from mesh.acceptance import PENDING_MAX, PROBE_ROUND_S
from mesh.effects import AnswerSubmit, Effect
from mesh.identity import NodeId
from mesh.journal import Position, wire_position
from mesh.wire import common_pb2, facts_pb2, work_pb2
from tests.mesh.building import B, C
from tests.mesh.lone import Lone, ref, to

DOC = ref("document")
DEADLINE_S = 5.0


def submitted(name: bytes = b"j", *refs: common_pb2.BlobRef) -> facts_pb2.JobSubmitted:
    request = work_pb2.JobRequest(ask=work_pb2.AskRequest(question="?", panel=1))
    return facts_pb2.JobSubmitted(job_id=name * 32, request=request, blobs=refs)


def submit(node: Lone, ticket: int = 1, job: facts_pb2.JobSubmitted | None = None) -> list[Effect]:
    for one in (job or submitted()).blobs:
        node.do(events.BlobStored(one))
    return node.do(events.SubmitRequested(ticket, job or submitted(), DEADLINE_S))


def answers(effects: list[Effect]) -> list[tuple[int, int, int, bool]]:
    return [(one.ticket, one.copies, one.wanted, one.known) for one in effects if isinstance(one, AnswerSubmit)]


def holds_fact(node: Lone, peer: NodeId) -> list[Effect]:
    fact = next(fact for fact in node.stored if fact.kind == "job_submitted")
    position = wire_position(fact.stream_id, Position(fact.sequence, fact.hash))
    return node.receive(peer, fact_receipt=facts_pb2.FactReceipt(positions=[position]))


def holds_blob(node: Lone, peer: NodeId) -> list[Effect]:
    return node.receive(peer, blob_receipt=facts_pb2.BlobReceipt(sha256=[DOC.sha256]))


def later(node: Lone, seconds: float) -> list[Effect]:
    done: list[Effect] = []
    for _ in range(round(seconds * 10)):
        node.now += 0.1
        done += node.do(events.Ticked())
    return done


def test_one_node_alone_is_enough_for_itself() -> None:
    assert answers(submit(Lone(peers=0))) == [(1, 1, 1, False)]


def test_a_copy_counts_with_the_fact_and_every_blob() -> None:
    node = Lone(peers=2)
    done = submit(node, job=submitted(b"j", DOC))
    assert sorted(to(done, "blob_offer")) == [B, C]
    assert sorted(to(done, "fact_push")) == [B, C]
    assert answers(done) == []
    assert answers(holds_fact(node, B) + holds_fact(node, C)) == [], "they do not hold the document"
    assert answers(holds_blob(node, B)) == []
    assert answers(holds_blob(node, C)) == [(1, 3, 3, False)]


def test_a_copy_of_the_document_alone_is_none() -> None:
    node = Lone(peers=2)
    submit(node, job=submitted(b"j", DOC))
    assert answers(holds_blob(node, B) + holds_blob(node, C) + holds_fact(node, B)) == []
    assert answers(holds_fact(node, C)) == [(1, 3, 3, False)]


def test_a_frozen_peer_makes_the_answer_late_and_true_never_missing() -> None:
    node = Lone(peers=2)
    submit(node, job=submitted(b"j", DOC))
    holds_fact(node, B)
    holds_blob(node, B)
    # Both peers are silent from now on, and suspected before the time is up.
    done = later(node, DEADLINE_S + 0.2)
    assert answers(done) == [(1, 2, 3, False)]


def test_the_deadline_holds_also_before_anybody_is_suspected() -> None:
    node = Lone(peers=2)
    done = node.do(events.SubmitRequested(1, submitted(), 0.3))
    assert answers(done + later(node, 0.2)) == []
    assert answers(later(node, 0.2)) == [(1, 1, 3, False)]
    assert len(node.replica.membership.view()) == 3


def test_the_same_job_is_said_once() -> None:
    node = Lone(peers=2)
    submit(node, ticket=1)
    again = submit(node, ticket=2)
    assert [fact.kind for fact in node.stored].count("job_submitted") == 1
    assert answers(again) == []
    holds_fact(node, B)
    assert answers(holds_fact(node, C)) == [(1, 3, 3, False), (2, 3, 3, True)]


def test_a_job_that_came_from_another_node_is_known_and_said_here_too() -> None:
    """What this node acknowledges stays though the other's word is made void by a denial."""
    node = Lone(peers=2)
    job = submitted()
    node.says(B, "job_submitted", job)
    done = submit(node, job=job)
    assert [fact.author for fact in node.stored if fact.kind == "job_submitted"] == [B, node.me]
    assert answers(done + later(node, DEADLINE_S + 0.2)) == [(1, 1, 3, True)]
    submit(node, ticket=2, job=job)
    assert [fact.author for fact in node.stored if fact.kind == "job_submitted"] == [B, node.me]


def test_a_job_that_ended_is_answered_at_once() -> None:
    node = Lone(peers=2)
    job = submitted(b"j", DOC)
    node.says(B, "job_submitted", job)
    node.says(B, "job_cancelled", facts_pb2.JobCancelled(job_id=job.job_id))
    [(_, _, _, known)] = answers(submit(node, job=job))
    assert known


def test_of_closed_jobs_only_the_ends_are_remembered() -> None:
    node = Lone(peers=2)
    jobs = [submitted(bytes([number])) for number in range(5)]
    for job in jobs:
        node.says(B, "job_submitted", job)
        node.says(B, "job_cancelled", facts_pb2.JobCancelled(job_id=job.job_id))
    last = node.stored[-1]
    assert not node.replica.work.acceptance._places
    assert answers(submit(node, job=jobs[-1])) == [(1, 1, 3, True)]
    position = wire_position(last.stream_id, Position(last.sequence, last.hash))
    node.receive(C, fact_receipt=facts_pb2.FactReceipt(positions=[position]))
    assert answers(submit(node, 2, jobs[-1])) == [(2, 2, 3, True)], "who holds the end needs not have held the start"


def test_after_a_pause_the_answer_waits_for_a_probe_round() -> None:
    node = Lone(peers=2)
    node.now = 60.0
    done = submit(node)
    assert answers(done) == []
    holds_fact(node, B)
    assert answers(holds_fact(node, C)) == []
    assert answers(later(node, PROBE_ROUND_S - 0.2)) == []
    [(_, copies, _, _)] = answers(later(node, 0.4))
    assert copies == 3


def test_of_too_many_the_oldest_is_answered_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PENDING_MAX >= 100
    monkeypatch.setattr("mesh.acceptance.PENDING_MAX", 3)
    node = Lone(peers=2)
    for ticket in range(1, 4):
        assert answers(submit(node, ticket, submitted(bytes([ticket])))) == []
    assert answers(submit(node, 4, submitted(b"x"))) == [(1, 1, 3, False)]
    assert len(node.replica.work.acceptance.pending) == 3
