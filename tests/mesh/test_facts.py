"""Facts: what is made can be read and trusted; what was tampered with can not; what is unknown is kept as it came."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.facts import FACT_BYTES_MAX, STREAM_OF_KIND, FactError, make, parse
from mesh.identity import node_id_of
from mesh.wire import facts_pb2
from tests.mesh.building import KEYS, Author

KINDS = [field.name for field in facts_pb2.FactBody.DESCRIPTOR.oneofs_by_name["kind"].fields]


def body_of(**changes: object) -> facts_pb2.FactBody:
    """A valid first fact's body with some fields set otherwise."""
    body = facts_pb2.FactBody(
        author_key=KEYS[0].public_key, incarnation=5, stream=facts_pb2.FACT_STREAM_KNOWLEDGE, sequence=1
    )
    body.knowledge_added.title = "t"
    for name, value in changes.items():
        setattr(body, name, value)
    return body


def signed(body: facts_pb2.FactBody) -> facts_pb2.SignedFact:
    raw = body.SerializeToString()
    return facts_pb2.SignedFact(body=raw, signature=KEYS[0].sign(raw))


def test_every_kind_of_the_contract_has_its_stream() -> None:
    assert set(STREAM_OF_KIND) == set(KINDS)


@given(
    kind=st.sampled_from(KINDS),
    incarnation=st.integers(0, 2**64 - 1),
    sequence=st.integers(1, 2**64 - 1),
    clock=st.integers(0, 2**64 - 1),
    predecessor=st.binary(min_size=32, max_size=32),
)
def test_what_is_made_is_read_back(kind: str, incarnation: int, sequence: int, clock: int, predecessor: bytes) -> None:
    made = make(
        KEYS[1],
        incarnation,
        sequence,
        predecessor if sequence > 1 else b"",
        clock,
        kind,
        type(getattr(facts_pb2.FactBody(), kind))(),
    )
    read = parse(facts_pb2.SignedFact.FromString(made.signed.SerializeToString()))
    assert read == made
    assert read.stream_id == (KEYS[1].node_id, incarnation, STREAM_OF_KIND[kind])
    assert (read.sequence, read.hybrid_clock, read.kind) == (sequence, clock, kind)
    assert read.is_signed_by_author()


def test_a_fact_is_the_same_bytes_however_often_it_is_made() -> None:
    assert [fact.signed for fact in Author().notes(3)] == [fact.signed for fact in Author().notes(3)]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"author_key": b""}, "key"),
        ({"author_key": b"\x02" * 32}, "key"),
        ({"author_key": b"\x02" * 34}, "key"),
        ({"sequence": 0}, "start at 1"),
        ({"predecessor": b"p" * 32}, "predecessor"),
        ({"sequence": 2}, "predecessor"),
        ({"stream": facts_pb2.FACT_STREAM_JOBS}, "stream"),
        ({"stream": facts_pb2.FACT_STREAM_UNSPECIFIED}, "stream"),
        ({"stream": 99}, "stream"),
    ],
)
def test_malformed_facts_are_refused(changes: dict[str, object], why: str) -> None:
    with pytest.raises(FactError, match=why):
        parse(signed(body_of(**changes)))


@pytest.mark.parametrize("raw", [b"\xff", b"\x0a\x05ab", b"\x00" * 10])
def test_bytes_that_are_no_body_are_refused(raw: bytes) -> None:
    with pytest.raises(FactError, match="decode"):
        parse(facts_pb2.SignedFact(body=raw))


def test_an_empty_body_is_refused() -> None:
    with pytest.raises(FactError):
        parse(facts_pb2.SignedFact())


@given(st.binary(max_size=300))
def test_any_bytes_are_a_fact_or_a_fact_error(raw: bytes) -> None:
    try:
        fact = parse(facts_pb2.SignedFact(body=raw, signature=b"s"))
    except FactError:
        return
    assert fact.signed.body == raw
    assert not fact.is_signed_by_author()


def test_a_fact_may_be_as_long_as_the_limit_and_no_byte_longer() -> None:
    around = len(Author().note("x" * 15_000).signed.body) - 15_000  # what is not the title
    longest = Author().note("x" * (FACT_BYTES_MAX - around))
    assert len(longest.signed.body) == FACT_BYTES_MAX
    with pytest.raises(FactError, match=str(FACT_BYTES_MAX)):
        Author().note("x" * (FACT_BYTES_MAX - around + 1))


def test_a_kind_of_a_later_version_is_kept_byte_for_byte() -> None:
    body = body_of()
    body.ClearField("knowledge_added")
    raw = body.SerializeToString() + b"\x9a\x06\x03abc"  # field 99, length-delimited: a kind that we do not know
    later = facts_pb2.SignedFact(body=raw, signature=KEYS[0].sign(raw))
    fact = parse(facts_pb2.SignedFact.FromString(later.SerializeToString()))
    assert fact.kind == ""
    assert fact.signed.body == raw
    assert fact.is_signed_by_author()


def test_any_changed_bit_of_body_or_signature_spoils_the_signature() -> None:
    good = Author().note("a title", "a text")
    raw = good.signed.body
    for position in range(len(raw)):
        forged = raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :]
        try:
            fact = parse(facts_pb2.SignedFact(body=forged, signature=good.signed.signature))
        except FactError:
            continue
        assert not fact.is_signed_by_author(), f"byte {position}"
        assert fact.hash != good.hash
    for position in range(64):
        signature = bytearray(good.signed.signature)
        signature[position] ^= 1
        assert not parse(facts_pb2.SignedFact(body=raw, signature=bytes(signature))).is_signed_by_author()


def test_another_key_can_not_take_over_a_fact() -> None:
    good = Author(KEYS[0]).note("mine")
    body = facts_pb2.FactBody.FromString(good.signed.body)
    body.author_key = KEYS[1].public_key
    raw = body.SerializeToString(deterministic=True)
    assert not parse(facts_pb2.SignedFact(body=raw, signature=good.signed.signature)).is_signed_by_author()
    stolen = parse(facts_pb2.SignedFact(body=raw, signature=KEYS[1].sign(raw)))
    assert stolen.author == node_id_of(KEYS[1].public_key) != good.author
