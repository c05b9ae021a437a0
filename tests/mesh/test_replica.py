"""The replica: how the machines are wired. What is told is durable, what is heard is folded, pauses forgive."""

import pytest

from mesh import events
from mesh.effects import (
    Deliver,
    Dial,
    Effect,
    FactsApplied,
    LeaderChanged,
    MemberChanged,
    Persist,
    PushStored,
    SaveVote,
)
from mesh.election import Role
from mesh.facts import Fact
from mesh.identity import NodeId, NodeKey
from mesh.journal import Position, wire_position
from mesh.replica import Replica
from mesh.wire import facts_pb2, membership_pb2, mesh_pb2
from tests.mesh.building import BY_ID, A, Author, B, C, hello, rng, sent

WALL_MS = 1_790_000_000_000


class Node:
    """A replica, a clock, and a disk that syncs at once unless it is `held`."""

    def __init__(self, key: NodeKey = BY_ID[0]) -> None:
        self.replica = Replica(key, incarnation=7, life=100, rng=rng())
        self.now = 0.0
        self.held: list[Persist] | None = None
        self.stored: list[Fact] = []

    def role(self) -> Role:
        return self.replica.election.role

    def do(self, event: events.Event) -> list[Effect]:
        effects = self.replica.handle(event, self.now)
        self.replica.validate()
        done: list[Effect] = []
        for effect in effects:
            done.append(effect)
            if isinstance(effect, Persist):
                if self.held is not None:
                    self.held.append(effect)
                else:
                    done += self.sync(effect)
            elif isinstance(effect, SaveVote):
                done += effect.then
                done += self.do(events.VoteSaved(effect.term, effect.voted_for))
        return done

    def sync(self, effect: Persist) -> list[Effect]:
        self.stored += effect.facts
        return self.do(events.Persisted(effect.facts, effect.source))

    def link(self, peer: NodeId) -> list[Effect]:
        return self.do(events.LinkOpened(hello(peer)))

    def receive(self, peer: NodeId, **message: object) -> list[Effect]:
        return self.do(events.Received(peer, mesh_pb2.LinkMessage(**message)))  # type: ignore[arg-type]

    def note(self, title: str = "t") -> list[Effect]:
        return self.do(events.FactAuthored("knowledge_added", facts_pb2.KnowledgeAdded(title=title), WALL_MS))

    def wait(self, seconds: float) -> list[Effect]:
        done: list[Effect] = []
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            done += self.do(events.Ticked())
            for peer, message in sent(done[-20:], "probe"):
                done += self.receive(
                    peer, probe_reply={"probe_id": message.probe.probe_id, "target_id": peer, "reached": True}
                )
        return done


@pytest.fixture
def node() -> Node:
    node = Node()
    node.do(events.Ticked())
    node.link(B)
    node.link(C)
    return node


def positions(node: Node) -> list[int]:
    """What the node tells another that holds nothing."""
    [(_, message)] = sent(node.receive(B, vector_digest={"buckets": b"?" * 512}), "version_vector")
    return [position.sequence for position in message.version_vector.positions]


def test_an_authored_fact_is_pushed_and_told_only_after_its_sync(node: Node) -> None:
    node.held = []
    assert [type(effect) for effect in node.note()] == [Persist]
    assert positions(node) == []
    assert not node.replica.knowledge.current()
    done = node.sync(node.held[0])
    assert next(type(effect) for effect in done) is FactsApplied
    assert {peer for peer, _ in sent(done, "fact_push")} == {B, C}
    assert positions(node) == [1]
    assert len(node.replica.knowledge.current()) == 1


def test_facts_authored_while_others_are_being_synced_follow_them(node: Node) -> None:
    node.held = []
    for number in range(3):
        node.note(f"note {number}")
    facts = [persist.facts[0] for persist in node.held]
    assert [fact.sequence for fact in facts] == [1, 2, 3]
    assert [fact.predecessor for fact in facts[1:]] == [fact.hash for fact in facts[:-1]]
    clocks = [fact.hybrid_clock for fact in facts]
    assert clocks == sorted(set(clocks))
    assert clocks[0] >> 16 == WALL_MS


def test_pushed_facts_are_stored_then_folded_then_acknowledged(node: Node) -> None:
    node.held = []
    facts = tuple(Author(BY_ID[1]).notes(2))
    assert sent(node.do(events.FactsVerified(B, facts)), "fact_receipt") == []
    [persist] = node.held
    assert persist == Persist(facts, B)
    [(peer, message)] = sent(node.sync(persist), "fact_receipt")
    assert peer == B
    assert [position.sequence for position in message.fact_receipt.positions] == [2]
    assert len(node.replica.knowledge.current()) == 2
    # A duplicate is acknowledged again, because the first receipt may have been lost, and not stored again.
    again = node.do(events.FactsVerified(C, facts[:1]))
    assert [peer for peer, _ in sent(again, "fact_receipt")] == [C]
    assert len(node.held) == 1


def test_facts_with_a_gap_before_them_wait_for_anti_entropy(node: Node) -> None:
    first, second = Author(BY_ID[1]).notes(2)
    assert node.do(events.FactsVerified(B, (second,))) == []
    vector = facts_pb2.VersionVector(
        positions=[wire_position(second.stream_id, Position(2, second.hash))], reply_wanted=True
    )
    asked = node.receive(B, version_vector=vector)
    assert [peer for peer, _ in sent(asked, "version_vector")] == [B]
    node.do(events.FactsVerified(B, (first, second)))
    assert len(node.replica.knowledge.current()) == 2


def test_a_peer_that_lacks_facts_gets_them_from_the_store(node: Node) -> None:
    node.note()
    node.note()
    done = node.receive(B, version_vector=facts_pb2.VersionVector())
    [push] = [effect for effect in done if isinstance(effect, PushStored)]
    assert push.peer == B
    assert [(wanted.first, wanted.last) for wanted in push.ranges] == [(1, 2)]


def test_copies_are_counted_from_receipts(node: Node) -> None:
    node.note()
    [fact] = node.stored
    assert node.replica.gossip.holders(fact.stream_id, fact.sequence) == set()
    receipt = facts_pb2.FactReceipt(positions=[wire_position(fact.stream_id, Position(1, fact.hash))])
    node.receive(B, fact_receipt=receipt)
    assert node.replica.gossip.holders(fact.stream_id, fact.sequence) == {B}
    node.do(events.LinkClosed(B))
    assert node.replica.gossip.holders(fact.stream_id, fact.sequence) == set()


def test_a_restart_reads_what_was_stored_and_writes_a_stream_of_its_own(node: Node) -> None:
    node.note("before")
    again = Replica(BY_ID[0], incarnation=8, life=200, rng=rng())
    again.restore(node.stored, term=4, voted_for=B)
    again.validate()
    assert (again.election.term, again.election.voted_for) == (4, B)
    assert again.ledger.fingerprint() == node.replica.ledger.fingerprint()
    assert [item.content.title for item in again.knowledge.current()] == ["before"]
    [persist] = again.handle(events.FactAuthored("knowledge_added", facts_pb2.KnowledgeAdded(), 0), 0.0)
    assert isinstance(persist, Persist)
    assert (persist.facts[0].sequence, persist.facts[0].stream_id.incarnation) == (1, 8)
    assert persist.facts[0].hybrid_clock > node.stored[0].hybrid_clock, "though the wall clock went back"


@pytest.mark.parametrize("clock", [2**64 - 1, (WALL_MS + 10 * 86_400_000) << 16])
def test_a_clock_from_far_ahead_stops_nobody_from_writing(node: Node, clock: int) -> None:
    node.do(events.FactsVerified(B, (Author(BY_ID[1]).say("node_profile", facts_pb2.NodeProfile(), clock),)))
    node.note()
    assert node.stored[-1].hybrid_clock >> 16 == WALL_MS


def test_a_candidate_that_slept_does_not_win_with_the_votes_of_yesterday(node: Node) -> None:
    granted = membership_pb2.VoteReply(term=1, pre_vote=True, granted=True)
    node.wait(1.6)
    assert node.role() is Role.PRE_CANDIDATE
    node.receive(B, vote_reply=granted)
    assert node.role() is Role.CANDIDATE
    node.now += 3600.0
    node.receive(B, vote_reply=membership_pb2.VoteReply(term=1, granted=True))  # it lay in the socket all the while
    assert node.role() is Role.FOLLOWER
    assert node.replica.membership.view() == {A, B, C}


def test_a_leader_that_slept_steps_down_before_it_says_anything(node: Node) -> None:
    alone = Node()
    alone.do(events.Ticked())
    alone.wait(1.5)
    assert alone.role() is Role.LEADER
    alone.now += 3600.0
    assert not sent(alone.link(B), "leader_beat")
    assert alone.role() is Role.FOLLOWER


def test_a_lost_link_to_the_leader_is_an_election_at_once(node: Node) -> None:
    other = Node(BY_ID[2])
    other.do(events.Ticked())
    other.link(A)
    other.link(B)
    token = membership_pb2.LeaderBeat(group_size=3)
    token.token.term, token.token.leader_id = 1, A
    other.receive(A, leader_beat=token)
    changed = [effect for effect in other.do(events.LinkClosed(A)) if isinstance(effect, LeaderChanged)]
    assert changed == [LeaderChanged(None)]
    asked = other.wait(0.3)
    assert [peer for peer, _ in sent(asked, "vote_request")][:1] == [B]


def test_hearsay_leads_to_a_dial_and_an_own_goodbye_ends_the_ticks(node: Node) -> None:
    news = membership_pb2.MemberNews()
    record = news.members.add(node_id="f" * 32, life=5, state=membership_pb2.MEMBER_STATE_ALIVE)
    record.addresses.add(host="10.0.0.77", port=4000)
    node.receive(B, member_news=news)
    assert Dial("10.0.0.77", 4000, NodeId("f" * 32)) in node.wait(0.1)
    assert {peer for peer, _ in sent(node.do(events.Stopping("test")), "leave")} == {B, C}
    assert node.wait(3.0) == []


def test_what_the_machines_do_not_know_goes_to_the_shell(node: Node) -> None:
    [effect] = node.receive(B, job_progress={})
    assert isinstance(effect, Deliver)
    [(peer, message)] = sent(node.receive(B, probe={"probe_id": 5}), "probe_reply")
    assert (peer, message.probe_reply.probe_id, message.probe_reply.reached) == (B, 5, True)


def test_a_killed_node_is_dead_and_its_leadership_over_at_once(node: Node) -> None:
    node.do(events.DialSucceeded("10.0.0.9", 4000, B))
    node.do(events.LinkClosed(B))
    assert node.replica.membership.members[B].state == membership_pb2.MEMBER_STATE_SUSPECT
    assert Dial("10.0.0.9", 4000, B) in node.wait(0.3), "where it was"
    done = node.do(events.DialFailed("10.0.0.9", 4000, refused=True))
    assert MemberChanged(B, membership_pb2.MEMBER_STATE_DEAD) in done
    assert node.replica.membership.absent_since(B) == node.now


def test_silence_that_the_election_hears_makes_a_probe_out_of_turn(node: Node) -> None:
    other = Node(BY_ID[2])
    other.do(events.Ticked())
    for peer in (A, B):
        other.link(peer)
    beat = membership_pb2.LeaderBeat(group_size=3)
    beat.token.term, beat.token.leader_id = 1, A
    other.receive(A, leader_beat=beat)
    probes = []
    for _ in range(9):
        other.now += 0.1
        probes += sent(other.do(events.Ticked()), "probe")
    before = [peer for peer, _ in probes].count(A)
    for _ in range(2):
        other.now += 0.1
        probes += sent(other.do(events.Ticked()), "probe")
    assert [peer for peer, _ in probes].count(A) >= max(1, before), "the silent leader was asked"


def test_an_answer_to_a_beat_carries_the_load_and_is_read(node: Node) -> None:
    node.replica.membership.load.queued_prompt_tokens = 77
    beat = membership_pb2.LeaderBeat(group_size=3)
    beat.token.term, beat.token.leader_id = 1, B
    [(_, reply)] = sent(node.receive(B, leader_beat=beat), "leader_beat_reply")
    assert reply.leader_beat_reply.load.queued_prompt_tokens == 77
    node.receive(C, leader_beat_reply=reply.leader_beat_reply)
    assert node.replica.membership.members[C].load.queued_prompt_tokens == 77
