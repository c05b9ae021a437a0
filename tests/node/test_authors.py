"""Tests of node/authors.py and of what node/shell.py lets in by it: real keys, real certificates."""

import logging
from collections.abc import Iterator, Sequence

import pytest

from mesh.certificates import Role, Roots
from mesh.facts import Fact, Retired, make
from mesh.identity import NodeId, NodeKey
from mesh.wire import common_pb2, facts_pb2
from node import authors as authors_module
from node.authors import CERTIFICATES_MAX, Authors
from node.shell import author_of, verified
from scripts.throwaway import ThrowawayMesh

PEER = NodeId("f" * 32)
MESH = ThrowawayMesh()
ROOTS = Roots([MESH.authority.ca_der])
KEYS = [NodeKey.from_scalar(scalar) for scalar in range(1, 5)]


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    logger = logging.getLogger("kith")
    propagates, logger.propagate = logger.propagate, True
    caplog.set_level(logging.INFO)
    yield caplog
    logger.propagate = propagates


def certificate(key: NodeKey, role: Role = Role.NODE, days: float = 30.0, starts_s: float = 0.0) -> bytes:
    return MESH.certificate(key.public_key, role, days=days, starts_s=starts_s)


def knowledge(key: NodeKey, count: int = 1) -> list[Fact]:
    facts: list[Fact] = []
    for number in range(1, count + 1):
        item = facts_pb2.KnowledgeAdded(text=f"{number}")
        facts.append(make(key, 9, number, facts[-1].hash if facts else b"", number, "knowledge_added", item))
    return facts


def finished(key: NodeKey) -> Fact:
    return make(key, 9, 1, b"", 1, "task_finished", facts_pb2.TaskFinished(failure=common_pb2.Problem(code="x")))


def push(facts: Sequence[Fact], *certificates: bytes) -> facts_pb2.FactPush:
    return facts_pb2.FactPush(facts=[fact.signed for fact in facts], certificates=certificates)


def test_a_denial_that_the_ca_did_not_sign_is_refused_by_everybody() -> None:
    denied = facts_pb2.Deny(node_id=KEYS[1].node_id, epoch=1)
    false = make(KEYS[0], 9, 1, b"", 1, "deny", denied)
    true = make(KEYS[0], 9, 1, b"", 1, "deny", MESH.authority.sign_denial(denied))
    assert false.is_signed_by_author()
    noted = knowledge(KEYS[0])
    for carrier in (certificate(KEYS[0]), certificate(KEYS[0], Role.ISSUER)):
        assert list(verified(PEER, push([*noted, false], carrier), Authors(ROOTS))[0]) == noted
        assert list(verified(PEER, push([*noted, true], carrier), Authors(ROOTS))[0]) == [*noted, true]


def test_facts_come_in_with_their_authors_certificate_or_after_it_and_not_without(
    logged: pytest.LogCaptureFixture,
) -> None:
    authors = Authors(ROOTS)
    facts = knowledge(KEYS[0], 3)
    for _ in range(2):
        assert verified(PEER, push(facts), authors) == ((), (), [])
    assert len([text for text in logged.messages if "has no certificate here" in text]) == 1
    taken, _, new = verified(PEER, push(facts, certificate(KEYS[0])), authors)
    assert list(taken) == facts
    assert [identity.node_id for identity in new] == [KEYS[0].node_id]
    authors.take(new)
    assert list(verified(PEER, push(facts), authors)[0]) == facts
    assert authors.read([certificate(KEYS[0], days=1.0, starts_s=-100.0)]) == [], "an older one is no news"


def test_one_stranger_in_a_push_does_not_stop_the_others() -> None:
    authors = Authors(ROOTS, [certificate(KEYS[0]), certificate(KEYS[2])])
    first, stranger, third = (knowledge(key, 2) for key in KEYS[:3])
    gone = Retired(stranger[0].stream_id, 1, 1, stranger[0].hash).wire()
    mixed = facts_pb2.FactPush(facts=[*(f.signed for f in first), gone, stranger[1].signed, *(f.signed for f in third)])
    taken, retired, _ = verified(PEER, mixed, authors)
    assert (list(taken), retired) == ([*first, *third], ())
    assert [author_of(signed) for signed in mixed.facts[2:4]] == [KEYS[1].node_id] * 2


@pytest.mark.parametrize("kind", ["of another mesh", "of another node", "nonsense"])
def test_a_false_certificate_lets_nothing_in(kind: str) -> None:
    facts = knowledge(KEYS[0])
    false = {
        "of another mesh": ThrowawayMesh().certificate(KEYS[0].public_key),
        "of another node": certificate(KEYS[1]),
        "nonsense": b"\x30\x03\x02\x01\x05",
    }[kind]
    assert verified(PEER, push(facts, false), Authors(ROOTS))[0] == ()


def test_a_certificate_that_has_ended_still_proves_its_author() -> None:
    facts = knowledge(KEYS[0])
    ended = certificate(KEYS[0], days=1.0, starts_s=-172_800.0)
    assert list(verified(PEER, push(facts, ended), Authors(ROOTS))[0]) == facts


def test_what_a_role_may_not_author_is_dropped_and_a_role_once_held_counts_for_good() -> None:
    worker, client = KEYS[0], KEYS[1]
    authors = Authors(ROOTS, [certificate(worker, Role.WORKER), certificate(client, Role.CLIENT)])
    taught, worked = knowledge(worker), finished(worker)
    assert verified(PEER, push([*taught, worked, finished(client)]), authors)[0] == (worked,)
    authors.take(authors.read([certificate(worker, Role.NODE)]))
    assert list(verified(PEER, push(taught), authors)[0]) == taught
    authors.take(authors.read([certificate(worker, Role.WORKER, starts_s=60.0)]))
    assert list(verified(PEER, push(taught), authors)[0]) == taught
    assert len(authors.certificates_of([worker.node_id, NodeId("0" * 32)])) == 2


def test_a_node_in_no_mesh_believes_nobody() -> None:
    assert verified(PEER, push(knowledge(KEYS[0]), certificate(KEYS[0])), Authors(None))[0] == ()


def test_a_push_full_of_certificates_and_an_issuer_that_runs_wild_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authors_module, "AUTHORS_MAX", 3)
    authors = Authors(ROOTS)
    flood = facts_pb2.FactPush(certificates=[certificate(KEYS[0])] + [b"x"] * CERTIFICATES_MAX + [certificate(KEYS[1])])
    new = verified(PEER, flood, authors)[2]
    assert [identity.node_id for identity in new] == [KEYS[0].node_id]
    authors.take(authors.read(certificate(key) for key in KEYS))
    assert [authors.knows(key.node_id) for key in KEYS] == [True, True, True, False]
