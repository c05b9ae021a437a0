"""The join exchange, both sides, without sockets: how a short secret becomes a certificate.

    joiner                                inviter
    start: invite, SPAKE2 element  ──▶
                                   ◀──  proof: SPAKE2 element, CA certificates, MAC
    request: node key, name, MAC   ──▶
                                   ◀──  welcome: certificate, addresses, MAC
    done: MAC                      ──▶

Idea: SPAKE2 turns the secret, however short, into a key that both ends share only if both know it, and that shows an
onlooker nothing to try words against. Every frame after the first carries a MAC under that key over all that was said
so far and over the hash of the inviter's TLS certificate. So the joiner has said nothing but a blinded element when the
inviter must prove itself; somebody in the middle shows another TLS certificate and fails; and a changed bit anywhere
fails. Whoever guesses gets one try an exchange: the inviter counts every proof it gave that no good request answered.

Elements are checked here for their one right encoding, since the library takes the neutral element in encodings other
than the usual, and elements with bytes missing or added.

Not guaranteed: constant time (the library computes in Python's integers). What that could tell is of one use, because
a code is spoken for one exchange and a token has 128 random bits. The library's SPAKE2 is that of magic-wormhole, older
than RFC 9382 and not compatible with it.

Source: Abdalla and Pointcheval, "Simple Password-Based Encrypted Key Exchange Protocols", 2005; RFC 5869 (HKDF);
python-spake2.
"""

import hashlib
import hmac
import os
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, TypeVar

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from google.protobuf.message import DecodeError, Message

from mesh.identity import PUBLIC_KEY_BYTES, NodeKey, verify
from mesh.wire import join_pb2

VERSION = 1
#: A welcome with 64 addresses and a proof with two CA certificates are under 8 KiB.
FRAME_BYTES_MAX = 16 * 1024
LENGTH_BYTES = 4
NONCE_BYTES = 32
ELEMENT_BYTES = 33
MAC_BYTES = 32
INVITE_CHARS_MAX = 16
NAME_BYTES_MAX = 256
REQUEST_DOMAIN = b"kith-join-v1\0"

Entropy = Callable[[int], bytes]
M = TypeVar("M", bound=Message)

#: Order of the field under SPAKE2's curve, edwards25519.
_FIELD = 2**255 - 19


class ExchangeError(Exception):
    """The exchange failed. `reason` is one of proto/join.proto's, or "mac": the other side does not know the secret."""

    def __init__(self, reason: str, said: str) -> None:
        super().__init__(said)
        self.reason = reason


class Kind(IntEnum):
    START = 1
    PROOF = 2
    REQUEST = 3
    WELCOME = 4
    DONE = 5
    REFUSED = 6


class _Side:
    """What both sides do: the transcript, the keys, one use of each step."""

    def __init__(self, tls_certificate: bytes) -> None:
        self._transcript = hashlib.sha256(b"kith-join-transcript-v1\0" + hashlib.sha256(tls_certificate).digest())
        self._keys: dict[str, bytes] = {}
        self._next = Kind.START

    def _step(self, kind: Kind) -> None:
        assert self._next is kind, f"{kind.name} is not next, {self._next.name} is"
        self._next = Kind(kind + 1)

    def _agree(self, spake: Any, element: bytes) -> None:
        """Derive the keys. Raises `ExchangeError` for what is no element of the group."""
        if len(element) != ELEMENT_BYTES or not _is_proper(element[1:]):
            raise ExchangeError("malformed", "no SPAKE2 element")
        try:
            secret = spake.finish(element)
        except Exception as error:  # the library has a handful of kinds, and no common parent for them
            raise ExchangeError("malformed", f"no SPAKE2 element: {type(error).__name__}") from error
        for side in ("joiner", "inviter"):
            info = f"kith join v1 {side}".encode()
            self._keys[side] = HKDFExpand(hashes.SHA256(), MAC_BYTES, info).derive(secret)

    def _heard(self, kind: Kind, body: bytes) -> None:
        self._transcript.update(bytes([kind]) + len(body).to_bytes(LENGTH_BYTES, "big") + body)

    def _sealed(self, kind: Kind, message: Message, side: str) -> bytes:
        """The frame, with its MAC."""
        body = message.SerializeToString(deterministic=True)
        self._heard(kind, body)
        return frame(kind, body + hmac.digest(self._keys[side], self._transcript.digest(), "sha256"))

    def _opened(self, kind: Kind, content: bytes, type_: type[M], side: str, spake: Any = None) -> M:
        """The message of a frame whose MAC holds. With `spake`, the message itself holds what makes the keys."""
        if len(content) < MAC_BYTES:
            raise ExchangeError("malformed", "a frame without a MAC")
        body, mac = content[:-MAC_BYTES], content[-MAC_BYTES:]
        message = _parsed(type_, body)
        if spake is not None:
            self._agree(spake, message.element)  # type: ignore[attr-defined]
        self._heard(kind, body)
        if not hmac.compare_digest(hmac.digest(self._keys[side], self._transcript.digest(), "sha256"), mac):
            raise ExchangeError("mac", "the other side does not know the secret of this invite")
        return message


class JoinerSide(_Side):
    """One attempt to join. The methods in order; each once."""

    def __init__(self, invite: str, password: bytes, tls_certificate: bytes, entropy: Entropy = os.urandom) -> None:
        from spake2 import SPAKE2_A  # 0.25 s of import: by who joins only

        super().__init__(tls_certificate)
        self._spake = SPAKE2_A(password, idA=_side_id("joiner", invite), idB=_side_id("inviter", invite))
        self._spake.entropy_f = entropy
        self._invite = invite
        self._nonce = entropy(NONCE_BYTES)

    def start(self) -> bytes:
        self._step(Kind.START)
        start = join_pb2.JoinStart(version=VERSION, invite=self._invite, element=self._spake.start(), nonce=self._nonce)
        body = start.SerializeToString(deterministic=True)
        self._heard(Kind.START, body)
        return frame(Kind.START, body)

    def read_proof(self, content: bytes) -> Sequence[bytes]:
        """The mesh's CA certificates, not yet looked at. Raises `ExchangeError`: give up, and send nothing more."""
        self._step(Kind.PROOF)
        proof = self._opened(Kind.PROOF, content, join_pb2.JoinProof, "inviter", self._spake)
        return tuple(proof.roots)

    def request(self, key: NodeKey, name: str) -> bytes:
        self._step(Kind.REQUEST)
        signature = key.sign(self._transcript.digest(), REQUEST_DOMAIN)
        request = join_pb2.JoinRequest(public_key=key.public_key, name=name, signature=signature)
        return self._sealed(Kind.REQUEST, request, "joiner")

    def read_welcome(self, content: bytes) -> join_pb2.JoinWelcome:
        self._step(Kind.WELCOME)
        return self._opened(Kind.WELCOME, content, join_pb2.JoinWelcome, "inviter")

    def done(self) -> bytes:
        self._step(Kind.DONE)
        return self._sealed(Kind.DONE, join_pb2.JoinDone(), "joiner")


class InviterSide(_Side):
    """One answer to a joiner. The methods in order; each once."""

    def __init__(self, tls_certificate: bytes, entropy: Entropy = os.urandom) -> None:
        super().__init__(tls_certificate)
        self._entropy = entropy
        self._start = join_pb2.JoinStart()

    def read_start(self, content: bytes) -> str:
        """Which invite is meant. Raises `ExchangeError`."""
        self._step(Kind.START)
        self._start = start = _parsed(join_pb2.JoinStart, content)
        if start.version != VERSION:
            raise ExchangeError(
                "version", f"it speaks version {start.version} of the join protocol, this node {VERSION}"
            )
        if len(start.nonce) != NONCE_BYTES or not 0 < len(start.invite) <= INVITE_CHARS_MAX:
            raise ExchangeError("malformed", "a start of another form")
        if len(start.element) != ELEMENT_BYTES or not _is_proper(start.element[1:]):
            raise ExchangeError("malformed", "no SPAKE2 element")
        self._heard(Kind.START, content)
        return start.invite

    def prove(self, password: bytes, roots: Sequence[bytes]) -> bytes:
        """The frame that proves the secret: from here on the other side has had its guess. Takes about 25 ms."""
        from spake2 import SPAKE2_B

        self._step(Kind.PROOF)
        invite = self._start.invite
        spake = SPAKE2_B(password, idA=_side_id("joiner", invite), idB=_side_id("inviter", invite))
        spake.entropy_f = self._entropy
        element = spake.start()
        self._agree(spake, self._start.element)
        proof = join_pb2.JoinProof(element=element, nonce=self._entropy(NONCE_BYTES), roots=roots)
        return self._sealed(Kind.PROOF, proof, "inviter")

    def read_request(self, content: bytes) -> join_pb2.JoinRequest:
        """Who wants in, and holds the key it names. Raises `ExchangeError`; reason "mac": a wrong guess."""
        self._step(Kind.REQUEST)
        before = self._transcript.digest()
        request = self._opened(Kind.REQUEST, content, join_pb2.JoinRequest, "joiner")
        if (
            len(request.public_key) != PUBLIC_KEY_BYTES
            or len(request.name.encode()) > NAME_BYTES_MAX
            or not verify(request.public_key, before, request.signature, REQUEST_DOMAIN)
        ):
            raise ExchangeError("malformed", "a request that its own key did not sign")
        return request

    def welcome(self, welcome: join_pb2.JoinWelcome) -> bytes:
        self._step(Kind.WELCOME)
        return self._sealed(Kind.WELCOME, welcome, "inviter")

    def read_done(self, content: bytes) -> None:
        """Raises `ExchangeError`: whether the certificate arrived is not known."""
        self._step(Kind.DONE)
        self._opened(Kind.DONE, content, join_pb2.JoinDone, "joiner")


def frame(kind: Kind, content: bytes) -> bytes:
    """A frame as it is written."""
    assert len(content) < FRAME_BYTES_MAX
    return (1 + len(content)).to_bytes(LENGTH_BYTES, "big") + bytes([kind]) + content


def refusal(reason: str) -> bytes:
    """The frame that says no."""
    return frame(Kind.REFUSED, join_pb2.JoinRefused(reason=reason).SerializeToString())


def length_of(head: bytes) -> int:
    """Bytes that follow the first LENGTH_BYTES of a frame. Raises `ExchangeError`."""
    length = int.from_bytes(head, "big")
    if not 1 <= length <= FRAME_BYTES_MAX:
        raise ExchangeError("malformed", f"a frame of {length} bytes")
    return length


def content_of(rest: bytes, expected: Kind) -> bytes:
    """What follows the kind. Raises `ExchangeError`, with the other side's own reason where it refused."""
    if rest[0] == Kind.REFUSED:
        reason = _parsed(join_pb2.JoinRefused, rest[1:]).reason
        raise ExchangeError(reason if reason in REFUSALS else "refused", "the other side refused")
    if rest[0] != expected:
        raise ExchangeError("malformed", f"a frame of kind {rest[0]} in place of {expected.name}")
    return rest[1:]


#: Reasons that cross the wire. Anything else that a stranger sends is shown as "refused".
REFUSALS = ("invite-unknown", "busy", "denied", "version", "malformed")


def _side_id(side: str, invite: str) -> bytes:
    return f"kith join v1 {side} {invite}".encode()


def _parsed(type_: type[M], body: bytes) -> M:
    try:
        return type_.FromString(body)
    except DecodeError as error:
        raise ExchangeError("malformed", f"no {type_.__name__}") from error


def _is_proper(encoded: bytes) -> bool:
    """Whether the bytes are the one encoding of a point that may be a SPAKE2 element; the library checks the rest."""
    if len(encoded) != ELEMENT_BYTES - 1:
        return False
    y = int.from_bytes(encoded, "little") & (1 << 255) - 1
    # y = 1 is the neutral element, with either sign; y = −1 has order 2.
    return 1 < y < _FIELD - 1
