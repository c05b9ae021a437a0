"""Denials: whatever order they come in, they cut the same places; parts count together; the CA's signature decides."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import example, given
from hypothesis import strategies as st

from mesh.certificates import Authority, Roots
from mesh.denials import DENIED_MAX, PARTS_MAX, REASON_BYTES_MAX, DenialError, Denials, End, is_genuine
from mesh.facts import StreamId, make
from mesh.identity import NodeId
from mesh.wire import facts_pb2
from tests.mesh.building import KEYS, A, Author, B, C

JOBS, KNOWLEDGE, TRUST = facts_pb2.FACT_STREAM_JOBS, facts_pb2.FACT_STREAM_KNOWLEDGE, facts_pb2.FACT_STREAM_TRUST
LIVES = (1, 2, 3)
AUTHORITY = Authority.create(ec.derive_private_key(4711, ec.SECP256R1()), 0.0, 1)
ROOTS = Roots([AUTHORITY.ca_der])


def deny(
    node_id: NodeId = A, epoch: int = 1, lasts: dict[int, int] | None = None, part: int = 0, parts: int = 0
) -> facts_pb2.Deny:
    """`lasts`: of the jobs stream of each life, the last place that counts."""
    said = facts_pb2.Deny(node_id=node_id, epoch=epoch, reason=f"reason {epoch}", part=part, parts=parts)
    for life, sequence in (lasts or {}).items():
        said.last_positions.add(incarnation=life, stream=JOBS, sequence=sequence, head=bytes([sequence]) * 32)
    return said


def jobs_of(node_id: NodeId, life: int) -> StreamId:
    return StreamId(node_id, life, JOBS)


def fold(said: list[facts_pb2.Deny]) -> Denials:
    denials = Denials()
    for one in said:
        denials.add(one)
    denials.validate()
    return denials


def reading(denials: Denials) -> object:
    ends = {(node, life): denials.end_of(jobs_of(node, life)) for node in (A, B) for life in LIVES}
    return ends, sorted(denials.nodes), denials.epoch, denials.denied()


some = st.builds(
    deny,
    st.sampled_from([A, B]),
    st.integers(1, 3),
    st.dictionaries(st.sampled_from(LIVES), st.integers(0, 5), max_size=3),
    st.integers(0, 2),
    st.integers(0, 3),
)


@given(st.lists(some, max_size=12), st.randoms(use_true_random=False))
def test_any_order_and_repetition_reads_the_same(said: list[facts_pb2.Deny], order: object) -> None:
    shuffled = [*said, *said[: len(said) // 2]]
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert reading(fold(said)) == reading(fold(shuffled))


@given(st.lists(some, max_size=8), st.lists(some, max_size=8))
@example(
    first=[], later=[deny(lasts={1: 0}, part=1, parts=2), deny(lasts={1: 1}, parts=2), deny(part=1, parts=2)]
)  # two parts list one stream, and another version of one leaves it out
def test_more_denials_cut_more_and_never_less(first: list[facts_pb2.Deny], later: list[facts_pb2.Deny]) -> None:
    denials = fold(first)
    for one in later:
        before, epoch = {key: end for key, end in ends_of(denials).items() if end is not None}, denials.epoch
        who = set(denials.nodes)
        denials.add(one)
        after = ends_of(denials)
        assert all(after[key] is not None and after[key] <= end for key, end in before.items())  # type: ignore[operator]
        assert who <= set(denials.nodes)
        assert denials.epoch >= epoch


def ends_of(denials: Denials) -> dict[tuple[NodeId, int], End | None]:
    return {(node, life): denials.end_of(jobs_of(node, life)) for node in (A, B) for life in LIVES}


def test_of_each_stream_the_least_place_counts_and_what_is_not_named_is_void() -> None:
    denials = fold([deny(lasts={1: 5, 2: 3}), deny(epoch=2, lasts={1: 4, 3: 9})])
    assert [denials.limit(jobs_of(A, life)) for life in (1, 2, 3, 4)] == [4, 0, 0, 0]
    assert denials.end_of(jobs_of(A, 1)) == End(4, bytes([4]) * 32)
    assert denials.limit(jobs_of(B, 1)) is None
    assert denials.limit(StreamId(A, 1, KNOWLEDGE)) == 0
    assert (denials.is_denied(A), denials.is_denied(B), denials.reason(A)) == (True, False, "reason 2")


def test_streams_of_denials_have_no_limit_so_two_that_deny_each_other_are_read_alike() -> None:
    both = [deny(A, 1), deny(B, 1)]
    for said in (both, both[::-1]):
        denials = fold(said)
        assert denials.limit(StreamId(A, 1, TRUST)) is None
        assert [denials.limit(jobs_of(node, 1)) for node in (A, B)] == [0, 0]


def test_parts_cut_the_node_off_at_once_and_its_streams_together() -> None:
    denials = fold([deny(lasts={1: 5}, part=0, parts=2)])
    assert denials.is_denied(A)
    assert [denials.limit(jobs_of(A, life)) for life in (1, 2)] == [None, None]
    denials.add(deny(lasts={2: 7}, part=1, parts=2))
    assert [denials.limit(jobs_of(A, life)) for life in (1, 2, 3)] == [5, 7, 0]


@pytest.mark.parametrize("streams", [0, 3, 1_000])
def test_a_draft_lists_all_that_was_accepted_in_facts_that_fit(streams: int) -> None:
    held = {jobs_of(A, life): (life + 1, bytes([life % 251]) * 32) for life in range(streams)}
    held |= {jobs_of(B, 1): (9, b"b" * 32), StreamId(A, 1, TRUST): (2, b"t" * 32)}
    denials = Denials(epoch=6)
    drafted = denials.draft(A, "it was stolen " * 100, held)
    assert len(drafted) == {0: 1, 3: 1, 1_000: 4}[streams]
    for part in drafted:
        make(KEYS[0], 1, 2, b"p" * 32, 2**60, "deny", AUTHORITY.sign_denial(part))
        assert (part.epoch, len(part.reason) <= REASON_BYTES_MAX) == (7, True)
    denials = fold(drafted)
    assert all(
        denials.limit(stream) == held[stream][0] for stream in held if stream.author == A and stream.stream != TRUST
    )
    assert denials.limit(jobs_of(A, streams + 1)) == 0


def test_an_author_of_endless_streams_is_denied_all_the_same_and_loses_the_shortest() -> None:
    held = {jobs_of(A, life): (life + 1, b"h" * 32) for life in range(25_000)}
    drafted = Denials().draft(A, "", held)
    assert len(drafted) == PARTS_MAX
    denials = fold(drafted)
    assert [denials.limit(jobs_of(A, life)) for life in (24_999, 0)] == [25_000, 0]


def test_nobody_is_denied_twice_and_no_more_than_a_mesh_can_hold() -> None:
    denials = fold([deny(A)])
    with pytest.raises(DenialError, match="already"):
        denials.draft(A, "", {})
    denials = fold([deny(NodeId(f"{number:032x}")) for number in range(DENIED_MAX)])
    with pytest.raises(DenialError, match="new mesh"):
        denials.draft(C, "", {})


def test_only_what_the_ca_signed_is_genuine_whoever_carries_it() -> None:
    signed = AUTHORITY.sign_denial(deny())
    for key in KEYS[:2]:
        assert is_genuine(Author(key).say("deny", signed), ROOTS.verify_denial)
    assert is_genuine(Author().note("no denial"), ROOTS.verify_denial)
    unsigned, changed, other = deny(), facts_pb2.Deny(), facts_pb2.Deny()
    changed.CopyFrom(signed)
    changed.epoch += 1
    other.CopyFrom(signed)
    other.part = 1
    for forged in (unsigned, changed, other):
        fact = Author().say("deny", forged)
        assert fact.is_signed_by_author()
        assert not is_genuine(fact, ROOTS.verify_denial)
