"""The exchange with both sides in one place, and somebody between them."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.identity import NodeKey
from mesh.wire import join_pb2
from node.joining.exchange import (
    FRAME_BYTES_MAX,
    LENGTH_BYTES,
    ExchangeError,
    InviterSide,
    JoinerSide,
    Kind,
    content_of,
    frame,
    length_of,
    refusal,
)

KEY = NodeKey.from_scalar(7)
TLS = b"the inviter's TLS certificate"
ROOTS = [b"a CA certificate"]
STEPS = (Kind.START, Kind.PROOF, Kind.REQUEST, Kind.WELCOME, Kind.DONE)

Meddle = Callable[[Kind, bytes], bytes]


def leave(kind: Kind, sent: bytes) -> bytes:
    return sent


@dataclass
class Run:
    """What became of one exchange."""

    issued: bool = False  # the inviter made a certificate
    joined: bool = False  # the joiner took it
    confirmed: bool = False  # the inviter heard of that
    said_by_joiner: list[Kind] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    sent: dict[Kind, bytes] = field(default_factory=dict)


def entropy(seed: str) -> Callable[[int], bytes]:
    return lambda size: hashlib.shake_256(seed.encode()).digest(size)


def received(sent: bytes, kind: Kind) -> bytes:
    """As a reader of the stream takes it: by the length that the frame states."""
    length = length_of(sent[:LENGTH_BYTES])
    rest = sent[LENGTH_BYTES:]
    if length > len(rest):
        raise ExchangeError("silent", "the rest never comes")
    return content_of(rest[:length], kind)


def run(
    meddle: Meddle = leave,
    *,
    passwords: tuple[bytes, bytes] = (b"cactus-violin", b"cactus-violin"),
    certificates: tuple[bytes, bytes] = (TLS, TLS),
    seed: str = "",
) -> Run:
    """The whole exchange. Joiner's password and view of the TLS certificate come first in the pairs."""
    now = Run()
    joiner = JoinerSide("7", passwords[0], certificates[0], entropy(f"joiner {seed}"))
    inviter = InviterSide(certificates[1], entropy(f"inviter {seed}"))

    def passed(kind: Kind, sent: bytes) -> bytes:
        now.sent[kind] = sent
        if kind in (Kind.START, Kind.REQUEST, Kind.DONE):
            now.said_by_joiner.append(kind)
        return received(meddle(kind, sent), kind)

    try:
        assert inviter.read_start(passed(Kind.START, joiner.start()))
        roots = joiner.read_proof(passed(Kind.PROOF, inviter.prove(passwords[1], ROOTS)))
        request = inviter.read_request(passed(Kind.REQUEST, joiner.request(KEY, "laptop")))
        now.issued = True
        answer = join_pb2.JoinWelcome(certificate=b"certificate", label="home")
        welcome = joiner.read_welcome(passed(Kind.WELCOME, inviter.welcome(answer)))
        now.joined = True
        inviter.read_done(passed(Kind.DONE, joiner.done()))
        now.confirmed = True
        assert (list(roots), request.public_key, request.name) == (ROOTS, KEY.public_key, "laptop")
        assert welcome == answer
    except ExchangeError as error:
        now.failed.append(error.reason)
    return now


def test_the_right_secret_leads_to_a_certificate() -> None:
    now = run()
    assert now.failed == []
    assert now.issued
    assert now.joined
    assert now.confirmed
    assert all(len(sent) < 512 for sent in now.sent.values())


def test_the_secret_is_in_no_frame_and_each_exchange_differs() -> None:
    one, other = run(seed="1"), run(seed="2")
    assert all(b"cactus" not in sent and b"violin" not in sent for sent in one.sent.values())
    assert all(one.sent[kind] != other.sent[kind] for kind in STEPS)


@settings(deadline=None, max_examples=20)
@given(st.binary(max_size=20))
def test_with_a_wrong_secret_the_joiner_tells_nothing(guess: bytes) -> None:
    if guess == b"cactus-violin":
        return
    now = run(passwords=(b"cactus-violin", guess))
    assert now.failed == ["mac"]
    assert now.said_by_joiner == [Kind.START]
    assert not now.issued


def test_a_joiner_that_does_not_check_the_proof_gets_no_certificate_either() -> None:
    joiner = JoinerSide("7", b"a guess", TLS)
    inviter = InviterSide(TLS)
    inviter.read_start(received(joiner.start(), Kind.START))
    proof = received(inviter.prove(b"cactus-violin", ROOTS), Kind.PROOF)
    with pytest.raises(ExchangeError):
        joiner.read_proof(proof)
    with pytest.raises(ExchangeError, match="secret"):
        inviter.read_request(received(joiner.request(KEY, "thief"), Kind.REQUEST))


def test_somebody_in_the_middle_of_the_tls_connection_fails() -> None:
    now = run(certificates=(b"the certificate of somebody else", TLS))
    assert now.failed == ["mac"]
    assert now.said_by_joiner == [Kind.START]


@settings(deadline=None, max_examples=120)
@given(data=st.data(), at=st.sampled_from(STEPS))
def test_a_flipped_bit_in_any_frame_fails(data: st.DataObject, at: Kind) -> None:
    def flip(kind: Kind, sent: bytes) -> bytes:
        if kind is not at:
            return sent
        bit = data.draw(st.integers(0, 8 * len(sent) - 1), label="bit")
        changed = bytearray(sent)
        changed[bit // 8] ^= 1 << bit % 8
        return bytes(changed)

    now = run(flip)
    assert now.failed
    assert not now.confirmed
    assert now.issued == (at > Kind.REQUEST)
    assert now.joined == (at > Kind.WELCOME)


@settings(deadline=None, max_examples=30)
@given(at=st.sampled_from(STEPS))
def test_a_frame_of_another_exchange_fails(at: Kind) -> None:
    other = run(seed="other")
    now = run(lambda kind, sent: other.sent[kind] if kind is at else sent)
    assert now.failed
    assert not now.confirmed


def test_what_the_joiner_says_can_not_be_sent_back_to_it() -> None:
    now = run(
        lambda kind, sent: (
            frame(Kind.PROOF, received(run().sent[Kind.START], Kind.START) + bytes(32)) if kind is Kind.PROOF else sent
        )
    )
    assert now.failed
    assert now.said_by_joiner == [Kind.START]


def answer(start: join_pb2.JoinStart) -> None:
    inviter = InviterSide(TLS)
    inviter.read_start(start.SerializeToString())
    inviter.prove(b"cactus-violin", ROOTS)


NEUTRAL = (1).to_bytes(32, "little")


@pytest.mark.parametrize(
    "element",
    [
        b"",
        b"A",
        b"A" + NEUTRAL,
        b"A" + (1 | 1 << 255).to_bytes(32, "little"),  # the neutral element with a sign
        b"A" + (2**255 - 19 + 1).to_bytes(32, "little"),  # the same, not reduced
        b"A" + (2**255 - 20).to_bytes(32, "little"),  # order 2
        b"A" + bytes(32),  # order 4
        b"A" + b"\xff" * 32,
        b"A" + (2).to_bytes(32, "little"),  # not on the curve
        b"B",
    ],
    ids=lambda element: element.hex()[:12] or "empty",
)
def test_what_is_no_element_of_the_group_is_refused(element: bytes) -> None:
    start = join_pb2.JoinStart(version=1, invite="7", element=element, nonce=bytes(32))
    with pytest.raises(ExchangeError) as refused:
        answer(start)
    assert refused.value.reason == "malformed"


def test_bytes_after_an_element_and_the_wrong_side_are_refused() -> None:
    mine = join_pb2.JoinStart.FromString(received(JoinerSide("7", b"x", TLS).start(), Kind.START))
    for element in (mine.element + b"\0", mine.element[:-1], b"B" + mine.element[1:], b"S" + mine.element[1:]):
        start = join_pb2.JoinStart(version=1, invite="7", element=element, nonce=bytes(32))
        with pytest.raises(ExchangeError):
            answer(start)


def test_a_request_for_the_key_of_another_is_refused() -> None:
    """Who knows the secret still gets no certificate for a key that it does not hold."""

    class Thief(NodeKey):
        def sign(self, body: bytes, domain: bytes = b"") -> bytes:
            return NodeKey.from_scalar(8).sign(body, domain)

    joiner, inviter = JoinerSide("7", b"x", TLS), InviterSide(TLS)
    inviter.read_start(received(joiner.start(), Kind.START))
    joiner.read_proof(received(inviter.prove(b"x", ROOTS), Kind.PROOF))
    thief = Thief.from_scalar(7)
    assert thief.public_key == KEY.public_key
    with pytest.raises(ExchangeError) as refused:
        inviter.read_request(received(joiner.request(thief, "thief"), Kind.REQUEST))
    assert refused.value.reason == "malformed"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for kind in Kind:
        with pytest.raises(ExchangeError):
            InviterSide(TLS).read_start(received(data, kind))


@pytest.mark.parametrize("length", [0, FRAME_BYTES_MAX + 1, 2**32 - 1])
def test_a_frame_too_long_is_refused_by_its_first_bytes(length: int) -> None:
    with pytest.raises(ExchangeError):
        length_of(length.to_bytes(4, "big"))


def test_a_refusal_is_heard_and_its_words_are_ours() -> None:
    with pytest.raises(ExchangeError) as refused:
        received(refusal("busy"), Kind.PROOF)
    assert refused.value.reason == "busy"
    with pytest.raises(ExchangeError) as refused:
        received(refusal("\x1b[2J run this"), Kind.PROOF)
    assert refused.value.reason == "refused"


def test_the_version_is_told_apart() -> None:
    start = join_pb2.JoinStart(version=2, invite="7", element=b"A" + b"\x05" * 32, nonce=bytes(32))
    with pytest.raises(ExchangeError) as refused:
        InviterSide(TLS).read_start(start.SerializeToString())
    assert refused.value.reason == "version"
