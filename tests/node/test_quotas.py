"""Quotas delay and never skip: what was left out comes with the next push, in its order."""

from mesh.facts import Fact, Retired
from mesh.identity import NodeId
from mesh.journal import Journal, Verdict
from mesh.rate import Rate
from mesh.wire import facts_pb2
from node.quotas import FactQuotas
from tests.mesh.building import BY_ID, Author

ME = NodeId("0" * 32)
FLOOD, OTHER = Author(BY_ID[1]), Author(BY_ID[2])
WIDE = Rate(1e9, 1e9)


def quotas(facts: Rate, size: Rate = WIDE, journal: Journal | None = None) -> FactQuotas:
    return FactQuotas(ME, journal.lacks if journal is not None else lambda _: True, facts, size)


def test_a_flood_is_cut_where_the_quota_ends_and_others_are_not() -> None:
    flood, other = Author(BY_ID[1]).notes(50), Author(BY_ID[2]).notes(5)
    kept, _ = quotas(Rate(1.0, 10.0)).within([*flood[:25], *other, *flood[25:]], [], 0.0)
    assert kept == (*flood[:10], *other)


def test_all_of_it_arrives_in_the_end_at_the_quotas_pace() -> None:
    journal = Journal()
    flood = Author(BY_ID[1]).notes(50)
    limited = quotas(Rate(per_s=10.0, burst=10.0), journal=journal)
    held: list[Fact] = []
    for now in range(5):
        # An exchange pushes what is missing, from the first on.
        kept, _ = limited.within(flood[len(held) :], [], float(now))
        assert all(journal.offer(fact) is Verdict.STAGED for fact in kept), "contiguous"
        held += kept
        assert len(held) == 10 * (now + 1)
    assert held == flood


def test_what_is_held_already_costs_nothing() -> None:
    journal = Journal()
    facts = Author(BY_ID[1]).notes(5)
    limited = quotas(Rate(0.001, 5.0), journal=journal)
    for fact in limited.within(facts, [], 0.0)[0]:
        journal.offer(fact)
    for _ in range(100):
        assert limited.within(facts, [], 0.0)[0] == tuple(facts)


def test_bytes_count_too() -> None:
    author = Author(BY_ID[1])
    large = [author.note(f"{number}", "x" * 10_000) for number in range(5)]
    kept, _ = quotas(WIDE, Rate(1.0, 25_000.0)).within(large, [], 0.0)
    assert len(kept) == 2


def test_a_denial_never_waits() -> None:
    issuer = Author(BY_ID[1])
    limited = quotas(Rate(0.001, 1.0))
    notes = issuer.notes(3)
    deny = issuer.say("deny", facts_pb2.Deny(node_id=FLOOD.key.node_id, epoch=1))
    assert limited.within([*notes, deny], [], 0.0)[0] == (notes[0], deny)


def test_a_retired_range_of_a_stream_that_was_cut_waits_with_it() -> None:
    flood, other = Author(BY_ID[1]).notes(3), Author(BY_ID[2]).notes(3)
    ranges = [Retired(facts[0].stream_id, 1, 1, facts[0].hash) for facts in (flood, other)]
    kept, retired = quotas(Rate(0.001, 2.0)).within([*flood[1:], *other[1:]], ranges, 0.0)
    assert kept == (*flood[1:], *other[1:])
    assert retired == tuple(ranges)
    kept, retired = quotas(Rate(0.001, 1.0)).within([*flood[1:], other[1]], ranges, 0.0)
    assert kept == (flood[1], other[1])
    assert retired == (ranges[1],)


def test_own_facts_have_no_quota() -> None:
    own = Author(BY_ID[1])
    limited = FactQuotas(own.key.node_id, lambda _: True, Rate(0.001, 1.0), WIDE)
    facts = own.notes(10)
    assert limited.within(facts, [], 0.0)[0] == tuple(facts)
