"""Gossip: two nodes that hold any two prefixes end with the same; receipts say who holds what."""

from hypothesis import given
from hypothesis import strategies as st

from mesh.effects import Effect, PushStored
from mesh.facts import Fact, StreamId
from mesh.gossip import FANOUT, INTERVAL_S, POSITIONS_MAX, Gossip
from mesh.identity import NodeId
from mesh.journal import Journal, Position, Verdict, wire_position
from mesh.wire import facts_pb2
from tests.mesh.building import KEYS, A, Author, B, C, D, E, rng, sent

STREAMS = [Author(KEYS[index % 3], index).notes(6) for index in range(4)]


class Holder:
    """A node with a journal and the facts that it stored."""

    def __init__(self, prefixes: list[int]) -> None:
        self.stored: dict[StreamId, list[Fact]] = {}
        self.journal = Journal()
        self.gossip = Gossip(self.journal, rng())
        for stream, length in zip(STREAMS, prefixes, strict=True):
            for fact in stream[:length]:
                self.take(fact)

    def take(self, fact: Fact) -> bool:
        if self.journal.offer(fact) is not Verdict.STAGED:
            return False
        self.journal.persisted([fact])
        self.stored.setdefault(fact.stream_id, []).append(fact)
        return True


def carry(effects: list[Effect], source: Holder, target: Holder, source_id: NodeId, push_max: int) -> list[Effect]:
    """Carry what `source` sends to `target`; returns what the target answers."""
    answers: list[Effect] = []
    for effect in effects:
        if isinstance(effect, PushStored):
            facts = [f for r in effect.ranges for f in source.stored[r.stream_id][r.first - 1 : r.last]]
            for fact in facts[:push_max]:
                assert target.take(fact), "a push holds exactly what the other lacks"
    for _, message in sent(effects, "version_vector"):
        answers += target.gossip.vector_received(source_id, message.version_vector)
    return answers


@given(
    st.lists(st.integers(0, 6), min_size=4, max_size=4),
    st.lists(st.integers(0, 6), min_size=4, max_size=4),
    st.integers(1, 30),
)
def test_two_nodes_converge(mine: list[int], theirs: list[int], push_max: int) -> None:
    a, b = Holder(mine), Holder(theirs)
    rounds = 0
    while a.journal.durable != b.journal.durable:
        rounds += 1
        # One push-pull exchange, begun by a: vector, push, vector back, push.
        answers = carry(a.gossip.peer_linked(B), a, b, A, push_max)
        more = carry(answers, b, a, B, push_max)
        assert carry(more, a, b, A, push_max) == [], "an exchange ends after three legs"
    everything = sum(max(pair) - min(pair) for pair in zip(mine, theirs, strict=True))
    assert rounds <= (everything + push_max - 1) // push_max
    assert [len(a.stored.get(s[0].stream_id, [])) for s in STREAMS] == [max(p) for p in zip(mine, theirs, strict=True)]
    # Equal journals have nothing more to say but the vector itself.
    assert carry(a.gossip.peer_linked(B), a, b, A, push_max) == []


def test_a_round_asks_few_peers_once_a_second() -> None:
    gossip = Holder([1, 0, 0, 0]).gossip
    asked = sent(gossip.tick(0.0, [B, C, D, E]), "version_vector")
    assert len({peer for peer, _ in asked}) == FANOUT
    assert all(message.version_vector.reply_wanted for _, message in asked)
    assert gossip.tick(INTERVAL_S - 0.01, [B, C, D, E]) == []
    assert len(gossip.tick(INTERVAL_S, [B])) == 1
    assert gossip.tick(10.0, []) == []


def test_what_is_staged_and_not_synced_is_neither_told_nor_asked_for() -> None:
    holder = Holder([0, 0, 0, 0])
    first = STREAMS[0][0]
    holder.journal.offer(first)
    [(_, message)] = sent(holder.gossip.peer_linked(B), "version_vector")
    assert not message.version_vector.positions
    theirs = facts_pb2.VersionVector(
        positions=[wire_position(first.stream_id, Position(1, first.hash))], reply_wanted=True
    )
    assert holder.gossip.vector_received(B, theirs) == [], "it is on its way to the disk already"


def test_holders_are_those_that_said_so_until_they_go() -> None:
    gossip = Holder([0, 0, 0, 0]).gossip
    stream_id = STREAMS[0][0].stream_id
    gossip.note_positions(B, [wire_position(stream_id, Position(3, b"h"))])
    gossip.note_positions(C, [wire_position(stream_id, Position(2, b"h"))])
    assert gossip.holders(stream_id, 2) == {B, C}
    assert gossip.holders(stream_id, 3) == {B}
    gossip.note_positions(B, [wire_position(stream_id, Position(1, b"h"))])  # an older message came late
    assert gossip.holders(stream_id, 3) == {B}
    gossip.peer_gone(B)
    assert gossip.holders(stream_id, 1) == {C}


def test_a_vector_of_invented_streams_is_read_up_to_the_limit() -> None:
    gossip = Holder([0, 0, 0, 0]).gossip
    invented = [
        facts_pb2.StreamPosition(author_id="f" * 32, incarnation=number, stream=facts_pb2.FACT_STREAM_JOBS, sequence=1)
        for number in range(POSITIONS_MAX + 10)
    ]
    gossip.vector_received(B, facts_pb2.VersionVector(positions=invented))
    assert len(gossip.held_by[B]) == POSITIONS_MAX
