"""Facts: how one is made, read and named.

A fact is what a node says once and for all: immutable, signed, in one of its author's streams, each naming the one
before it. Its name is the SHA-256 of its body as it came, so a node passes on what it can not read yet, unchanged.

Does not: decide whether a fact is accepted (journal.py) or what it means (ledger.py, knowledge.py, profiles.py).
"""

import functools
import re
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple

from google.protobuf.message import DecodeError, Message

from mesh.identity import PUBLIC_KEY_BYTES, NodeId, NodeKey, node_id_of, verify
from mesh.wire import facts_pb2

#: Against an author that fills other nodes' disks with one fact; content belongs in blobs.
FACT_BYTES_MAX = 16 * 1024

_AUTHOR = re.compile("[0-9a-f]{32}")
_JOBS = facts_pb2.FACT_STREAM_JOBS
_KNOWLEDGE = facts_pb2.FACT_STREAM_KNOWLEDGE
_PROFILE = facts_pb2.FACT_STREAM_PROFILE
_TRUST = facts_pb2.FACT_STREAM_TRUST

#: The one stream in which each kind of fact is valid.
STREAM_OF_KIND: dict[str, "facts_pb2.FactStream.ValueType"] = {
    "node_profile": _PROFILE,
    "skill_observation": _PROFILE,
    "job_submitted": _JOBS,
    "job_planned": _JOBS,
    "job_assigned": _JOBS,
    "task_finished": _JOBS,
    "job_completed": _JOBS,
    "job_cancelled": _JOBS,
    "job_failed": _JOBS,
    "knowledge_added": _KNOWLEDGE,
    "knowledge_superseded": _KNOWLEDGE,
    "knowledge_retracted": _KNOWLEDGE,
    "evidence": _KNOWLEDGE,
    "deny": _TRUST,
}


class StreamId(NamedTuple):
    """One stream of one life of one author."""

    author: NodeId
    incarnation: int
    stream: int


class Place(NamedTuple):
    """Where a fact stands."""

    stream_id: StreamId
    sequence: int


@dataclass(frozen=True)
class FactRange:
    """Facts `first` … `last` of a stream, both included."""

    stream_id: StreamId
    first: int
    last: int


class Retired(NamedTuple):
    """Facts `first` … `last` of a stream whose content is gone; `head` is the hash of the last. Nobody signs it: the
    fact after it proves it (journal.py)."""

    stream_id: StreamId
    first: int
    last: int
    head: bytes

    def wire(self) -> facts_pb2.SignedFact:
        return facts_pb2.SignedFact(
            retired=facts_pb2.RetiredRange(
                author_id=self.stream_id.author,
                incarnation=self.stream_id.incarnation,
                stream=facts_pb2.FactStream.ValueType(self.stream_id.stream),
                first=self.first,
                last=self.last,
                head=self.head,
            )
        )


class FactError(ValueError):
    """The bytes are no fact. Says why; the fact is refused by every node alike."""


class Fact(NamedTuple):
    """A well-formed fact. `kind` is empty where this version does not know it: such a fact is kept and passed on.

    A tuple, because a start makes one of each stored fact: six times as fast as a frozen dataclass.
    """

    hash: bytes
    stream_id: StreamId
    sequence: int
    predecessor: bytes
    hybrid_clock: int
    kind: str
    body: facts_pb2.FactBody
    raw: bytes  # the body as it came; its SHA-256 is `hash`
    signature: bytes

    @property
    def signed(self) -> facts_pb2.SignedFact:
        """For others, as it came."""
        return facts_pb2.SignedFact(body=self.raw, signature=self.signature)

    @property
    def author(self) -> NodeId:
        return self.stream_id.author

    # The words that a retired range has too.

    @property
    def first(self) -> int:
        return self.sequence

    @property
    def last(self) -> int:
        return self.sequence

    @property
    def head(self) -> bytes:
        return self.hash

    def is_signed_by_author(self) -> bool:
        """Costs about 80 µs: the shell calls it off the event loop."""
        return verify(self.body.author_key, self.raw, self.signature)


def parse(signed: facts_pb2.SignedFact) -> Fact:
    """Read a fact. Checks its form, not its signature. Raises `FactError`."""
    return read(signed.body, signed.signature)


def read(raw: bytes, signature: bytes) -> Fact:
    """Read a fact from its serialised body and its signature, as `parse` does."""
    if len(raw) > FACT_BYTES_MAX:
        raise FactError(f"{len(raw)} bytes, more than {FACT_BYTES_MAX}")
    try:
        body = facts_pb2.FactBody.FromString(raw)
    except DecodeError as error:
        raise FactError("the body does not decode") from error
    stream = body.stream
    stream_id = _stream_id(body.author_key, body.incarnation, stream)
    sequence, predecessor = body.sequence, body.predecessor
    if sequence < 1:
        raise FactError("sequence numbers start at 1")
    if (sequence == 1) != (not predecessor):
        raise FactError("the first fact of a stream, and no other, has no predecessor")
    kind = body.WhichOneof("kind") or ""
    if STREAM_OF_KIND.get(kind, stream) != stream:
        raise FactError(f"{kind} does not belong into stream {stream}")
    return Fact(sha256(raw).digest(), stream_id, sequence, predecessor, body.hybrid_clock, kind, body, raw, signature)


@functools.lru_cache(maxsize=4096)
def _stream_id(author_key: bytes, incarnation: int, stream: int) -> StreamId:
    """One object a stream: a node reads many facts of few streams. Raises `FactError`."""
    if len(author_key) != PUBLIC_KEY_BYTES:
        raise FactError("the author's key has the wrong length")
    return StreamId(node_id_of(author_key), incarnation, stream)


def parse_retired(wire: facts_pb2.RetiredRange) -> Retired:
    """Read a retired range. Raises `FactError`."""
    if not _AUTHOR.fullmatch(wire.author_id):
        raise FactError("a retired range of no author")
    if not 1 <= wire.first <= wire.last:
        raise FactError("a retired range begins at 1 or later and does not end before it begins")
    if len(wire.head) != sha256().digest_size:
        raise FactError("the head of a retired range is no hash")
    return Retired(StreamId(NodeId(wire.author_id), wire.incarnation, wire.stream), wire.first, wire.last, wire.head)


def make(
    key: NodeKey, incarnation: int, sequence: int, predecessor: bytes, hybrid_clock: int, kind: str, content: Message
) -> Fact:
    """Author a fact of `kind` (a field name of FactBody's oneof). Raises `FactError` where it grows too large."""
    body = facts_pb2.FactBody(
        author_key=key.public_key,
        incarnation=incarnation,
        stream=STREAM_OF_KIND[kind],
        sequence=sequence,
        predecessor=predecessor,
        hybrid_clock=hybrid_clock,
    )
    getattr(body, kind).CopyFrom(content)
    raw = body.SerializeToString(deterministic=True)
    return read(raw, key.sign(raw))
