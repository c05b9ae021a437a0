"""Gossip: two nodes that hold any two prefixes end with the same; receipts say who holds what."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.effects import Effect, PushStored
from mesh.facts import Fact, StreamId
from mesh.gossip import FANOUT, HELD_MAX, INTERVAL_S, POSITIONS_MAX, FactRange, Gossip
from mesh.identity import NodeId
from mesh.journal import Journal, Position, Verdict, bucket_of, wire_position
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
    for _, message in sent(effects, "vector_digest"):
        answers += target.gossip.digest_received(source_id, message.vector_digest)
    for _, message in sent(effects, "version_vector"):
        answers += target.gossip.vector_received(source_id, message.version_vector)
    return answers


def exchange(a: Holder, b: Holder, push_max: int) -> None:
    """One push-pull exchange, begun by `a`: digest, vector, push and vector, push."""
    legs: list[Effect] = [a.gossip.compare_with(B)]
    for source, target, source_id in ((a, b, A), (b, a, B), (a, b, A), (b, a, B)):
        legs = carry(legs, source, target, source_id, push_max)
    assert legs == [], "an exchange ends"


prefixes = st.lists(st.integers(0, 6), min_size=4, max_size=4)


@given(prefixes, prefixes, st.integers(1, 30))
def test_two_nodes_converge(mine: list[int], theirs: list[int], push_max: int) -> None:
    a, b = Holder(mine), Holder(theirs)
    rounds = 0
    while a.journal.durable != b.journal.durable:
        rounds += 1
        assert rounds <= 30
        exchange(a, b, push_max)
        exchange(b, a, push_max)
    everything = sum(max(pair) - min(pair) for pair in zip(mine, theirs, strict=True))
    assert rounds <= (everything + push_max - 1) // push_max
    assert [len(a.stored.get(s[0].stream_id, [])) for s in STREAMS] == [max(p) for p in zip(mine, theirs, strict=True)]
    assert a.journal.digest() == b.journal.digest()


def test_equal_nodes_find_out_in_one_small_message() -> None:
    a, b = Holder([3, 1, 0, 6]), Holder([3, 1, 0, 6])
    [(_, message)] = sent([a.gossip.compare_with(B)], "vector_digest")
    assert message.ByteSize() < 600
    assert carry([a.gossip.compare_with(B)], a, b, A, 1) == []


def test_only_buckets_that_differ_are_told() -> None:
    a, b = Holder([3, 1, 2, 6]), Holder([3, 1, 2, 5])
    [(_, message)] = sent(carry([a.gossip.compare_with(B)], a, b, A, 1), "version_vector")
    assert [position.sequence for position in message.version_vector.positions] == [5]
    assert list(message.version_vector.buckets) == [bucket_of(STREAMS[3][0].stream_id)]
    [push] = [
        effect for effect in a.gossip.vector_received(B, message.version_vector) if isinstance(effect, PushStored)
    ]
    assert push.ranges == (FactRange(STREAMS[3][0].stream_id, 6, 6),)


def test_more_than_fits_into_a_vector_is_told_bucket_by_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.gossip.VECTOR_POSITIONS", 1)
    a, b = Holder([3, 1, 2, 6]), Holder([0, 0, 0, 0])
    for _ in range(4 + 60):
        exchange(b, a, 100)
    assert a.journal.durable == b.journal.durable


@given(prefixes, prefixes)
def test_the_digest_is_of_what_is_held_however_it_came(mine: list[int], more: list[int]) -> None:
    grown = Holder(mine)
    grown.journal.digest()  # its sums are kept up to date from here on
    for stream, length, longer in zip(STREAMS, mine, more, strict=True):
        for fact in stream[length : max(length, longer)]:
            grown.take(fact)
    at_once = Holder([max(pair) for pair in zip(mine, more, strict=True)])
    assert grown.journal.digest() == at_once.journal.digest()
    assert (grown.journal.digest() == Holder(mine).journal.digest()) == (grown.journal == Holder(mine).journal)


def test_a_digest_of_another_size_is_not_read() -> None:
    gossip = Holder([1, 0, 0, 0]).gossip
    assert gossip.digest_received(B, facts_pb2.VectorDigest(buckets=b"x" * 511)) == []


def test_a_round_asks_few_peers_once_a_second() -> None:
    gossip = Holder([1, 0, 0, 0]).gossip
    asked = sent(gossip.tick(0.0, [B, C, D, E]), "vector_digest")
    assert len({peer for peer, _ in asked}) == FANOUT
    assert gossip.tick(INTERVAL_S - 0.01, [B, C, D, E]) == []
    assert len(gossip.tick(INTERVAL_S, [B])) == 1
    assert gossip.tick(10.0, []) == []


def test_a_full_push_is_followed_by_the_next_digest_at_once() -> None:
    gossip = Holder([0, 0, 0, 0]).gossip
    author = Author(KEYS[3])
    facts = [author.note("long", "x" * 15_000) for _ in range(40)]
    assert sent(gossip.stored(B, facts), "vector_digest")
    assert gossip.stored(B, facts[:3]) == []


def test_what_is_staged_and_not_synced_is_neither_told_nor_asked_for() -> None:
    holder = Holder([0, 0, 0, 0])
    first = STREAMS[0][0]
    holder.journal.offer(first)
    [(_, message)] = sent(holder.gossip.peer_linked(B), "vector_digest")
    assert message.vector_digest.buckets == b"\0" * 512
    assert not holder.journal.vector()
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


def test_equal_buckets_say_who_holds_what_until_something_new_is_stored() -> None:
    a, b = Holder([3, 0, 0, 0]), Holder([3, 0, 0, 0])
    stream_id = STREAMS[0][0].stream_id
    carry([b.gossip.compare_with(A)], b, a, B, 1)
    assert a.gossip.holders(stream_id, 3) == {B}
    a.take(STREAMS[0][3])
    assert a.gossip.holders(stream_id, 3) == {B}, "what it held it holds"
    assert a.gossip.holders(stream_id, 4) == set()
    carry([b.gossip.compare_with(A)], b, a, B, 1)
    assert a.gossip.holders(stream_id, 4) == set()
    b.take(STREAMS[0][3])
    carry([b.gossip.compare_with(A)], b, a, B, 1)
    assert a.gossip.holders(stream_id, 4) == {B}
    assert a.gossip.holders(stream_id, 5) == set(), "it is not stored here, so equality says nothing of it"
    a.gossip.peer_gone(B)
    assert a.gossip.holders(stream_id, 1) == set()


def test_places_too_old_to_be_remembered_count_as_the_newest_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.journal.RECENT_MAX", 2)
    a, b = Holder([1, 0, 0, 0]), Holder([1, 0, 0, 0])
    stream_id = STREAMS[0][0].stream_id
    carry([b.gossip.compare_with(A)], b, a, B, 1)
    for fact in STREAMS[0][1:4]:
        a.take(fact)
        b.take(fact)
    assert a.gossip.holders(stream_id, 1) == set(), "fewer than there are, never more"
    assert a.gossip.holders(stream_id, 4) == set()
    carry([b.gossip.compare_with(A)], b, a, B, 1)
    assert a.gossip.holders(stream_id, 1) == a.gossip.holders(stream_id, 4) == {B}


def test_a_vector_of_invented_streams_is_read_up_to_the_limit() -> None:
    gossip = Holder([0, 0, 0, 0]).gossip
    invented = [
        facts_pb2.StreamPosition(author_id="f" * 32, incarnation=number, stream=facts_pb2.FACT_STREAM_JOBS, sequence=1)
        for number in range(POSITIONS_MAX + 10)
    ]
    assert len(gossip.note_positions(B, invented)) == POSITIONS_MAX
    assert len(gossip.held_by[B]) == HELD_MAX
