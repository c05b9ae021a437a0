"""The journal: whatever order facts are offered in, it ends with the same contiguous prefixes; forks are seen."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.facts import Fact
from mesh.journal import Journal, Position, Verdict, read_position, wire_position
from tests.mesh.building import KEYS, Author


def written() -> list[list[Fact]]:
    """Streams of several authors and lives."""
    return [Author(KEYS[0], 1).notes(7), Author(KEYS[0], 2).notes(3), Author(KEYS[1], 1).notes(5)]


STREAMS = written()
ALL = [fact for stream in STREAMS for fact in stream]


def offer_all(journal: Journal, facts: list[Fact]) -> None:
    """Offer facts again and again, as gossip does, until nothing more is taken; make each durable."""
    taken = True
    while taken:
        taken = False
        for fact in facts:
            if journal.offer(fact) is Verdict.STAGED:
                journal.persisted([fact])
                taken = True
            journal.validate()


@given(st.lists(st.sampled_from(range(len(ALL))), max_size=60), st.randoms(use_true_random=False))
def test_any_order_with_duplicates_and_gaps_ends_in_the_longest_prefixes(
    indices: list[int], shuffler: random.Random
) -> None:
    offered = [ALL[index] for index in indices]
    expected = {}
    for stream in STREAMS:
        length = 0
        while length < len(stream) and stream[length] in offered:
            length += 1
        if length:
            expected[stream[0].stream_id] = Position(length, stream[length - 1].hash)
    for _ in range(2):
        journal = Journal()
        offer_all(journal, offered)
        assert journal.durable == journal.staged == expected
        shuffler.shuffle(offered)


def test_each_verdict() -> None:
    first, second, third = STREAMS[0][:3]
    journal = Journal()
    assert journal.offer(second) is Verdict.GAP
    assert journal.offer(first) is Verdict.STAGED
    assert journal.offer(first) is Verdict.DUPLICATE
    assert journal.offer(third) is Verdict.GAP
    assert journal.offer(second) is Verdict.STAGED
    assert journal.offer(first) is Verdict.DUPLICATE


def test_only_what_is_synced_is_told() -> None:
    journal = Journal()
    first, second, _ = STREAMS[0][:3]
    journal.offer(first)
    journal.offer(second)
    assert journal.vector() == []
    journal.persisted([first])
    assert [read_position(wire)[1] for wire in journal.vector()] == [Position(1, first.hash)]
    assert journal.next_of(first.stream_id) == (3, second.hash), "what is authored next follows what is staged"
    journal.validate()


def test_facts_become_durable_in_order_only() -> None:
    journal = Journal()
    for fact in STREAMS[0][:2]:
        journal.offer(fact)
    with pytest.raises(AssertionError):
        journal.persisted([STREAMS[0][1]])


def other_history() -> list[Fact]:
    author = Author(KEYS[0], 1)
    return [author.note(f"a copy says {number}") for number in range(4)]


def test_a_fork_at_the_head_is_seen_and_refused() -> None:
    journal = Journal()
    journal.offer(STREAMS[0][0])
    assert journal.offer(other_history()[0]) is Verdict.FORK
    assert journal.staged[STREAMS[0][0].stream_id].head == STREAMS[0][0].hash


def test_a_fork_further_on_is_seen_and_refused() -> None:
    journal = Journal()
    for fact in STREAMS[0][:3]:
        journal.offer(fact)
    assert journal.offer(other_history()[3]) is Verdict.FORK
    assert journal.next_of(STREAMS[0][0].stream_id) == (4, STREAMS[0][2].hash)


def test_restoring_a_store_gives_what_was_durable() -> None:
    journal = Journal()
    assert list(journal.restore(ALL, (), ())) == ALL
    journal.validate()
    before = Journal()
    offer_all(before, ALL)
    assert journal == before


def test_restoring_a_store_with_a_hole_is_refused() -> None:
    journal = Journal()
    with pytest.raises(ValueError, match="hole"):
        list(journal.restore([STREAMS[0][0], STREAMS[0][2]], (), ()))


@given(st.integers(1, 2**64 - 1), st.integers(0, 2**64 - 1), st.binary(min_size=32, max_size=32))
def test_positions_cross_the_wire(sequence: int, incarnation: int, head: bytes) -> None:
    stream_id = STREAMS[0][0].stream_id._replace(incarnation=incarnation)
    position = Position(sequence, head)
    assert read_position(wire_position(stream_id, position)) == (stream_id, position)
