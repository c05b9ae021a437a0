"""A node is cut off: streams, links, votes, tokens, tasks and copies of it end together; a denied node withdraws."""

from __future__ import annotations

import random

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh import events
from mesh.certificates import Authority
from mesh.denials import DenialError
from mesh.effects import AnswerSubmit, CutOff, CutStreams, Dial, Effect, FactsApplied, LeaderChanged, Log, MemberChanged
from mesh.election import Role
from mesh.facts import Fact, Place
from mesh.gossip import PUSH_PEERS
from mesh.identity import NodeId
from mesh.library import FORWARD_PEERS
from mesh.member import ALIVE, DEAD
from mesh.replica import Replica
from mesh.wire import facts_pb2, membership_pb2
from tests.mesh.building import BY_ID, KEYS, Author, B, C, rng
from tests.mesh.lone import WALL_MS, Lone, to, token
from tests.mesh.test_library import Shelf, meet, settle, two_histories

AUTHORITY = Authority.create(ec.derive_private_key(4711, ec.SECP256R1()), 0.0, 1)


def denial(of: list[Fact], last: int, epoch: int = 1) -> facts_pb2.Deny:
    """Of the author of these facts; `last` of them count."""
    stream_id = of[0].stream_id
    deny = facts_pb2.Deny(node_id=stream_id.author, epoch=epoch, reason="it was stolen")
    if last:
        deny.last_positions.add(
            incarnation=stream_id.incarnation,
            stream=facts_pb2.FACT_STREAM_KNOWLEDGE,
            sequence=last,
            head=of[last - 1].hash,
        )
    return AUTHORITY.sign_denial(deny)


# The library


@settings(max_examples=30)
@given(
    st.lists(st.integers(0, 6), min_size=3, max_size=3),
    st.lists(st.integers(0, 6), min_size=1, max_size=2),
    st.integers(0, 99),
)
def test_a_denied_tail_is_gone_everywhere_in_whatever_order_it_is_heard(
    held: list[int], lasts: list[int], seed: int
) -> None:
    """Each node holds another prefix; each denial is first heard by another node."""
    order = random.Random(seed)
    stolen, other = Author(KEYS[7]).notes(6), Author(KEYS[6]).notes(2)
    shelves = [Shelf(key) for key in BY_ID[:3]]
    for shelf, length in zip(shelves, held, strict=True):
        shelf.take(stolen[:length])
        shelf.take(other)
    for shelf, last in zip(shelves, lasts, strict=False):
        shelf.do(shelf.library.author("deny", denial(stolen, last), 0)[1])
    meet(shelves)
    shelves[order.randrange(3)].take(stolen)
    settle(shelves, order)
    least = min(lasts)
    counting = ["note 0", "note 1", *(f"note {number}" for number in range(min(least, 6)))]
    for shelf in shelves:
        shelf.take(stolen)
        titles = sorted(item.content.title for item in shelf.library.knowledge.current())
        assert titles == sorted(counting)
        assert shelf.reading() == shelves[0].reading()
        assert shelf.library.denials.limit(stolen[0].stream_id) == least
        assert all(place.sequence <= least for place in shelf.stored if place.stream_id == stolen[0].stream_id)
        before = shelf.reading()
        shelf.restart()
        shelf.take(stolen)
        assert shelf.reading() == before, "limits hold after a restart"


def test_a_crash_between_the_denial_and_the_cut_leaves_nothing_behind() -> None:
    stolen = Author(KEYS[7]).notes(5)
    shelf = Shelf(BY_ID[0])
    shelf.take(stolen)
    deny = shelf.library.author("deny", denial(stolen, 2), 0)[0]
    shelf.stored[Place(deny.stream_id, deny.sequence)] = deny
    shelf.restart()
    assert shelf.library.journal.durable[stolen[0].stream_id].sequence == 2
    [cut] = shelf.library.tick()
    assert isinstance(cut, CutStreams)
    shelf.do([cut])
    assert len(shelf.reading()[0]) == 2  # type: ignore[index]
    assert shelf.library.tick() == []


def test_a_denial_is_pushed_to_everybody_and_passed_on() -> None:
    shelf = Shelf(BY_ID[0])
    peers = [NodeId(f"{number:032x}") for number in range(30)]
    facts = Author(KEYS[7]).notes(2)
    fact, _ = shelf.library.author("deny", denial(facts, 1), 0)
    assert PUSH_PEERS < FORWARD_PEERS < len(peers)
    assert to(shelf.library.persisted([fact], None, (), peers[:3], peers), "fact_push") == peers
    other = Shelf(BY_ID[1])
    assert other.library.offered(peers[0], [fact], ())
    passed_on = to(other.library.persisted([fact], peers[0], (), peers, peers), "fact_push")
    assert len(set(passed_on)) == FORWARD_PEERS
    assert peers[0] not in passed_on
    later = Author(BY_ID[2]).say("deny", denial(facts, 1))
    unheard = Author(BY_ID[3])
    unheard.say("deny", denial(facts, 1))
    gap = unheard.say("deny", denial(facts, 0))
    assert to(other.library.offered(peers[1], [later, gap], ()), "vector_digest") == [peers[1]]


def test_a_denial_survives_a_fork_of_the_stream_that_carried_it() -> None:
    """An issuer's copied machine wrote two histories: the CA's word in them is said again by others."""
    stolen = Author(KEYS[7]).notes(4)
    one, other = Author(KEYS[5]), Author(KEYS[5])
    left = one.say("deny", denial(stolen, 2))
    right = other.say("deny", denial(Author(KEYS[4]).notes(1), 0))
    shelves = [Shelf(key) for key in BY_ID[:3]]
    shelves[0].take([*stolen, left])
    shelves[1].take([right])
    meet(shelves)
    settle(shelves, random.Random(1))
    for shelf in shelves:
        assert left.stream_id in shelf.library.journal.forks
        assert shelf.reading() == shelves[0].reading()
        shelf.restart()
        assert set(shelf.library.denials.nodes) == {KEYS[7].node_id, KEYS[4].node_id}
        assert shelf.library.denials.limit(stolen[0].stream_id) == 2


def test_a_fork_proven_beyond_the_limit_changes_nothing() -> None:
    this, that = two_histories(3, 2, 2)
    shelves = [Shelf(key) for key in BY_ID[:2]]
    shelves[0].take(this)
    shelves[1].take(that)
    shelves[0].do(shelves[0].library.author("deny", denial(this, 3), 0)[1])
    meet(shelves)
    settle(shelves, random.Random(1))
    for shelf in shelves:
        assert shelf.reading()[0] == ["same 0", "same 1", "same 2"]  # type: ignore[index]


# The replica


class Denying(Lone):
    """A node whose store also cuts streams."""

    def do(self, event: events.Event) -> list[Effect]:
        done = super().do(event)
        for effect in list(done):
            if isinstance(effect, CutStreams) and event is not self._cutting:
                ends = dict(effect.ends)
                self.stored = [
                    fact
                    for fact in self.stored
                    if fact.stream_id not in ends or fact.sequence <= ends[fact.stream_id].sequence
                ]
                self._cutting = events.StreamsCut(tuple(ends), tuple(self.stored))
                done += self.do(self._cutting)
        return done

    _cutting: events.Event | None = None

    def deny(self, node_id: NodeId) -> list[Effect]:
        done: list[Effect] = []
        for part in self.replica.library.denial_of(node_id, "it was stolen"):
            done += self.do(events.FactAuthored("deny", AUTHORITY.sign_denial(part), WALL_MS))
        return done


def test_a_denied_node_is_no_member_and_its_link_ends() -> None:
    node = Denying(peers=3)
    done = node.deny(B)
    assert CutOff(B, farewell=True) in done
    assert MemberChanged(B, DEAD) in done
    assert set(to(done, "fact_push")) == set(node.peers), "the denied one hears it too"
    membership = node.replica.membership
    assert B not in membership.members
    assert B not in membership.view()
    assert node.link(B, life=99) == [CutOff(B)]
    assert node.do(events.LinkClosed(B)) == []
    record = membership_pb2.MemberRecord(node_id=B, incarnation=5, life=9_000, state=ALIVE)
    record.addresses.add(host="10.0.0.7", port=4000)
    node.receive(C, member_news=membership_pb2.MemberNews(members=[record]))
    assert B not in membership.members
    node.do(events.AddressFound("10.0.0.7", 4000, "seed"))
    node.do(events.DialSucceeded("10.0.0.7", 4000, B))
    for _ in range(20):
        node.now += 0.1
        assert not [effect for effect in node.do(events.Ticked(WALL_MS)) if isinstance(effect, Dial)]


def test_what_a_denied_node_still_sends_is_not_heard() -> None:
    node = Denying(peers=2)
    node.deny(B)
    stored = len(node.stored)
    assert node.says(B, "knowledge_added", facts_pb2.KnowledgeAdded(title="late")) == []
    assert node.leads(B, 7) == []
    assert len(node.stored) == stored
    late = node.authors[B].note("later")
    node.do(events.FactsVerified(C, (late,)))
    assert late not in node.stored, "nor what others pass on of it"


def test_facts_beyond_the_limit_leave_the_folds_at_once() -> None:
    node = Denying(peers=2)
    node.says(B, "knowledge_added", facts_pb2.KnowledgeAdded(title="first"))
    [draft] = node.replica.library.denial_of(B, "it was stolen")
    node.says(B, "knowledge_added", facts_pb2.KnowledgeAdded(title="second"))
    done = node.do(events.FactAuthored("deny", AUTHORITY.sign_denial(draft), WALL_MS))
    assert [effect for effect in done if isinstance(effect, FactsApplied)][-1] == FactsApplied(())
    assert [item.content.title for item in node.replica.knowledge.current()] == ["first"]


def test_a_denied_leader_is_left_at_once_and_its_token_forgotten() -> None:
    node = Denying(peers=2)
    node.leads(B, term=900)
    assert node.replica.work.intake.highest == token(900, B)
    done = node.deny(B)
    assert LeaderChanged(None) in done
    assert node.replica.election.leader is None
    for highest in (node.replica.election.highest, node.replica.work.intake.highest):
        assert highest.leader_id != B
    beat_reply = membership_pb2.LeaderBeatReply(token=token(3, C), highest=token(5_000, B))
    node.receive(C, leader_beat_reply=beat_reply)
    assert node.replica.election.highest.leader_id != B, "nor is it learnt again from others"
    asked: list[Effect] = []
    for _ in range(5):
        node.now += 0.1
        asked += node.do(events.Ticked(WALL_MS))
    assert set(to(asked, "vote_request")) == {C}, "it stands at once, and the denied one has no vote"


def test_a_candidate_that_asked_one_that_is_denied_asks_anew() -> None:
    node = Denying(peers=2)
    while node.replica.election.role is not Role.PRE_CANDIDATE:
        node.now += 0.1
        node.do(events.Ticked(WALL_MS))
    assert to(node.deny(B), "vote_request") == [C]
    assert B not in node.replica.election.electorate
    request = membership_pb2.VoteRequest(term=50, view_size=2)
    assert to(node.receive(B, vote_request=request), "vote_reply") == []


def test_nobody_denies_itself_or_another_twice() -> None:
    node = Denying(peers=2)
    for _ in range(2):
        with pytest.raises(DenialError):
            node.replica.library.denial_of(node.me, "")
    node.deny(B)
    with pytest.raises(DenialError):
        node.replica.library.denial_of(B, "")


def test_a_node_that_is_itself_denied_withdraws_and_stays_so() -> None:
    node = Denying(peers=2)
    pending = facts_pb2.JobSubmitted(job_id=b"j" * 32)
    node.do(events.SubmitRequested(1, pending, 5.0))
    deny = AUTHORITY.sign_denial(facts_pb2.Deny(node_id=node.me, epoch=1, reason="it was stolen"))
    done = node.says(B, "deny", deny)
    assert {effect.node_id for effect in done if isinstance(effect, CutOff)} == set(node.peers)
    assert [effect for effect in done if isinstance(effect, AnswerSubmit)] == [AnswerSubmit(1, b"j" * 32, 0, 3, False)]
    replica = node.replica
    assert (replica.denied, replica.membership.view()) == (True, frozenset([node.me]))
    assert not [fact for fact in node.stored if fact.author == node.me], "nothing of it counts, here neither"
    for _ in range(50):
        node.now += 0.1
        assert node.do(events.Ticked(WALL_MS)) == []
    assert node.link(C, life=5) == [CutOff(C)]
    assert [type(effect) for effect in node.do(events.FactAuthored("deny", deny, WALL_MS))] == [Log]
    [answer] = node.do(events.SubmitRequested(2, pending, 5.0))
    assert isinstance(answer, AnswerSubmit)
    assert (answer.ticket, answer.copies) == (2, 0)
    again = Replica(node.replica.key, 8, 200, rng())
    again.restore(node.stored, 3, "")
    assert again.denied
    assert again.handle(events.Ticked(WALL_MS), 1.0) == []


def test_a_restart_knows_who_is_denied() -> None:
    node = Denying(peers=2)
    node.deny(B)
    again = Replica(node.replica.key, 8, 200, rng())
    again.restore(node.stored, 3, B)
    hello = membership_pb2.Hello(node_id=B, incarnation=9, life=9, protocol_version=3, protocol_version_min=3)
    assert again.handle(events.LinkOpened(hello), 1.0) == [CutOff(B)]
