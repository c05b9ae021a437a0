"""Which facts a node holds: contiguous prefixes of every author's streams, and nothing else.

Idea: for each stream the journal knows how far it reaches and the hash of its last fact. A fact is taken only if it is
the next one and names the last one; everything else is a duplicate, a gap (anti-entropy brings what is missing) or a
fork. So one number and one hash a stream say exactly what a node holds, and two nodes compare in one message: streams
hash into `BUCKETS` buckets, and each bucket's XOR over its streams' (id, sequence, head) is kept up to date.

Two positions a stream: *staged* (accepted, on its way to the disk) and *durable* (synced). Only the durable one is ever
told to others ("durable before seen", DESIGN section 3 rule 2).

A retired range stands for facts that were dropped; it is taken only together with the true fact after it, whose
predecessor is the range's head, so nobody invents where a stream goes on. A fork is two signed facts of one place, or
a fact and one of the next place that names another before it (all that can show where the other one is retired): the
stream is void from there on, for every holder of that proof alike. So is what a denied author wrote beyond the places
that its denial names (denials.py).

Does not: touch the disk (effects do), check signatures (the shell does, before it offers facts), interpret facts. The
XOR is no defence against an author that crafts streams to collide; it would keep its own bucket from converging.
"""

import functools
import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from mesh.denials import Denials
from mesh.facts import Fact, Place, Retired, StreamId
from mesh.identity import NodeId
from mesh.wire import facts_pb2

BUCKETS = 64
HASH_BYTES = 8
#: Proofs kept, at most 33 KiB each: against an author that writes two histories of everything it writes.
FORKS_MAX = 64
#: Places whose time of becoming durable is remembered one by one.
RECENT_MAX = 2048


class Verdict(Enum):
    """What became of an offered fact."""

    STAGED = "staged"
    DUPLICATE = "duplicate"
    GAP = "gap"  # facts before it are missing here
    FORK = "fork"  # the author wrote two histories: a copied machine, or a lie; not proven by this fact alone
    VOID = "void"  # at or after the place of a proven fork, or beyond what counts of a denied author


class Position(NamedTuple):
    sequence: int = 0
    head: bytes = b""


NOTHING = Position()


@dataclass(frozen=True)
class Fork:
    """Two facts of one place, `one` with the lesser hash; or `other` is of the next place and names another before."""

    one: Fact
    other: Fact

    @property
    def stream_id(self) -> StreamId:
        return self.one.stream_id

    @property
    def sequence(self) -> int:
        return self.one.sequence

    def wire(self) -> facts_pb2.ForkProof:
        return facts_pb2.ForkProof(one=self.one.signed, other=self.other.signed)


def fork_of(one: Fact, other: Fact) -> Fork | None:
    """The proof that two facts are, if they are one. Their signatures are checked elsewhere."""
    if one.stream_id != other.stream_id or one.hash == other.hash:
        return None
    one, other = sorted((one, other), key=lambda fact: (fact.sequence, fact.hash))
    follows = other.sequence == one.sequence + 1 and other.predecessor != one.hash
    return Fork(one, other) if follows or one.sequence == other.sequence else None


def places_beside(facts: Iterable[Fact]) -> Iterable[Place]:
    """The places whose facts may prove a fork with one of these, each once."""
    return dict.fromkeys(
        Place(fact.stream_id, sequence) for fact in facts for sequence in range(fact.sequence - 1, fact.sequence + 2)
    )


@dataclass
class Journal:
    """Positions of all streams. Invariant: durable.sequence <= staged.sequence for every stream."""

    staged: dict[StreamId, Position] = field(default_factory=dict)
    durable: dict[StreamId, Position] = field(default_factory=dict)
    forks: dict[StreamId, Fork] = field(default_factory=dict)
    denials: Denials = field(default_factory=Denials)
    serial: int = field(default=0, compare=False)  # counts what became durable since the start
    _recent: dict[Place, int] = field(default_factory=dict, compare=False)
    _recent_floor: int = field(default=0, compare=False)
    # Derived from `durable`, brought up to date when asked for.
    _buckets: list[set[StreamId]] = field(default_factory=lambda: [set() for _ in range(BUCKETS)], compare=False)
    _bucket_hashes: list[int] = field(default_factory=lambda: [0] * BUCKETS, compare=False)
    _hashes: dict[StreamId, int] = field(default_factory=dict, compare=False)
    _digest: bytes = field(default=bytes(BUCKETS * HASH_BYTES), compare=False)
    _stale: set[StreamId] = field(default_factory=set, compare=False)

    def lacks(self, fact: Fact) -> bool:
        """Whether `fact` comes after all that was accepted of its stream."""
        return fact.sequence > self.staged.get(fact.stream_id, NOTHING).sequence

    def offer(self, fact: Fact) -> Verdict:
        """Stage `fact` if it is the next of its stream. The caller persists what was staged, in this order."""
        if self.is_void(fact.stream_id, fact.sequence):
            return Verdict.VOID
        last = self.staged.get(fact.stream_id, NOTHING)
        if fact.sequence <= last.sequence:
            if fact.sequence == last.sequence and fact.hash != last.head:
                return Verdict.FORK
            return Verdict.DUPLICATE
        if fact.sequence > last.sequence + 1:
            return Verdict.GAP
        if fact.predecessor != last.head:
            return Verdict.FORK
        self.staged[fact.stream_id] = Position(fact.sequence, fact.hash)
        return Verdict.STAGED

    def offer_retired(self, retired: Retired, after: Fact | None) -> Verdict:
        """Stage a retired range if it is the next of its stream and `after`, the true fact after it, names its head."""
        if self.is_void(retired.stream_id, retired.last + 1):
            return Verdict.VOID
        last = self.staged.get(retired.stream_id, NOTHING)
        if retired.last <= last.sequence:
            return Verdict.DUPLICATE
        if (
            retired.first != last.sequence + 1
            or after is None
            or (after.stream_id, after.sequence, after.predecessor)
            != (retired.stream_id, retired.last + 1, retired.head)
        ):
            return Verdict.GAP
        self.staged[retired.stream_id] = Position(retired.last, retired.head)
        return Verdict.STAGED

    def persisted(self, facts: Iterable[Fact], retired: Iterable[Retired] = ()) -> None:
        """What was staged before is on disk and synced."""
        for item in in_stream_order(facts, retired):
            if self.is_void(item.stream_id, item.last):
                continue  # the fork was proven meanwhile
            position = self.durable.get(item.stream_id, NOTHING)
            assert item.first == position.sequence + 1, "facts become durable in stream order"
            self._set_durable(item.stream_id, end := Position(item.last, item.head))
            if self.staged[item.stream_id].sequence == item.last:
                self.staged[item.stream_id] = end  # a denial may have named another head than this node's
            self.serial += 1
            self._recent[Place(item.stream_id, item.last)] = self.serial
        while len(self._recent) > RECENT_MAX:
            oldest = next(iter(self._recent))
            self._recent_floor = self._recent.pop(oldest)

    def restore(self, facts: Iterable[Fact], retired: Iterable[Retired], forks: Iterable[Fork]) -> Iterator[Fact]:
        """Take what this node's own store holds, at start: each stream in its order, its retired ranges in any.

        Yields the facts that count, in their order: all but those that a fork made void. Positions are there once the
        last was yielded. Raises `ValueError` where the store has a hole, or a fact is not the one it was.
        """
        assert not self.staged, "a start begins with nothing"
        self.forks = {fork.stream_id: fork for fork in forks}
        ends: dict[StreamId, tuple[int, bytes]] = {}
        before = {(gone.stream_id, gone.last + 1): gone for gone in retired}
        for fact in facts:
            stream_id, sequence = fact.stream_id, fact.sequence
            last = ends.get(stream_id, NOTHING)
            if sequence != last[0] + 1 and (gone := before.get((stream_id, sequence))) and gone.first == last[0] + 1:
                last = (gone.last, gone.head)
            if self.forks and self.is_void(stream_id, sequence):
                continue
            if sequence != last[0] + 1 or fact.predecessor != last[1]:
                raise ValueError(f"a hole or a changed fact before fact {sequence} of {fact.author}")
            ends[stream_id] = (sequence, fact.hash)
            yield fact
        for stream_id, fork in self.forks.items():
            # A void stream may end in a retired range: the fork's facts prove its head.
            end = before.get((stream_id, fork.sequence))
            if end is not None and end.first == ends.get(stream_id, NOTHING)[0] + 1:
                ends[stream_id] = (end.last, end.head)
        for stream_id, last in ends.items():
            self.staged[stream_id] = position = Position(*last)
            self._set_durable(stream_id, position)

    def restore_ends(self, retired: Iterable[Retired]) -> None:
        """After all else, and the denials too: a stream that a denial cut may end in a retired range, whose head the
        denial names."""
        for gone in retired:
            end = self.denials.end_of(gone.stream_id)
            before = self.staged.get(gone.stream_id, NOTHING)
            if end is not None and (gone.first, gone.last) == (before.sequence + 1, end.sequence):
                self.staged[gone.stream_id] = Position(gone.last, gone.head)
                self._set_durable(gone.stream_id, self.staged[gone.stream_id])

    def void(self, fork: Fork) -> bool:
        """Take a proven fork: the stream ends before it. False where as much was known, or there are too many."""
        known = self.forks.get(fork.stream_id)
        if (known is None and len(self.forks) >= FORKS_MAX) or (known and known.sequence <= fork.sequence):
            return False
        self.forks[fork.stream_id] = fork
        if not self.lacks(fork.one):
            self.end_at(fork.stream_id, Position(fork.sequence - 1, fork.one.predecessor))
        return True

    def deny(self, authors: Collection[NodeId]) -> dict[StreamId, Position]:
        """The streams of these authors end where their denials say. Returns those that reached further."""
        ended: dict[StreamId, Position] = {}
        for stream_id in [stream_id for stream_id in self.staged if stream_id.author in authors]:
            end = self.denials.end_of(stream_id)
            if end is not None and self.staged[stream_id].sequence > end.sequence:
                ended[stream_id] = Position(*end)
                self.end_at(stream_id, ended[stream_id])
        return ended

    def end_at(self, stream_id: StreamId, end: Position) -> None:
        """The stream ends here, where it reached as far."""
        for positions in (self.staged, self.durable):
            position = positions.get(stream_id, NOTHING)
            if position.sequence < end.sequence:
                continue
            if positions is self.durable:
                self._set_durable(stream_id, end)
            elif end.sequence:
                positions[stream_id] = end
            else:
                positions.pop(stream_id, None)

    def next_of(self, stream_id: StreamId) -> tuple[int, bytes]:
        """Sequence and predecessor of the next fact that this node authors in its own stream."""
        last = self.staged.get(stream_id, NOTHING)
        return last.sequence + 1, last.head

    def durable_since(self, stream_id: StreamId, sequence: int) -> int | None:
        """The least `serial` at which this place was surely durable here; None where it is not."""
        if self.durable.get(stream_id, NOTHING).sequence < sequence:
            return None
        return self._recent.get(Place(stream_id, sequence), self._recent_floor)

    def vector(self, buckets: Iterable[int] = range(BUCKETS)) -> list[facts_pb2.StreamPosition]:
        """What this node holds durably in these buckets, for others."""
        return [wire_position(stream_id, self.durable[stream_id]) for stream_id in self.streams_in(buckets)]

    def streams_in(self, buckets: Iterable[int]) -> list[StreamId]:
        """Streams held durably in these buckets, in order."""
        return sorted(stream_id for bucket in set(buckets) for stream_id in self._buckets[bucket])

    def streams_in_bucket(self, bucket: int) -> int:
        return len(self._buckets[bucket])

    def digest(self) -> bytes:
        """One hash a bucket: equal exactly where two nodes hold the same, but for crafted collisions."""
        if not self._stale:
            return self._digest
        digest = bytearray(self._digest)
        for stream_id in self._stale:
            new = _hash_of(stream_id, self.durable[stream_id]) if stream_id in self.durable else 0
            bucket = bucket_of(stream_id)
            value = self._bucket_hashes[bucket] ^ self._hashes.pop(stream_id, 0) ^ new
            self._bucket_hashes[bucket] = value
            digest[bucket * HASH_BYTES : (bucket + 1) * HASH_BYTES] = value.to_bytes(HASH_BYTES, "big")
            if new:
                self._hashes[stream_id] = new
        self._stale.clear()
        self._digest = bytes(digest)
        return self._digest

    def validate(self) -> None:
        """Assert the invariants."""
        for stream_id, durable in self.durable.items():
            staged = self.staged[stream_id]
            assert durable.sequence < staged.sequence or durable == staged
            assert durable.sequence >= 1
            assert not (self.forks or self.denials.nodes) or not self.is_void(stream_id, staged.sequence)

    def is_void(self, stream_id: StreamId, sequence: int) -> bool:
        """Whether a place is at or after a proven fork, or beyond the limit of a denied author."""
        fork = self.forks.get(stream_id)
        if fork is not None and sequence >= fork.sequence:
            return True
        limit = self.denials.limit(stream_id)
        return limit is not None and sequence > limit

    def _set_durable(self, stream_id: StreamId, position: Position) -> None:
        if position.sequence:
            if stream_id not in self.durable:
                self._buckets[bucket_of(stream_id)].add(stream_id)
            self.durable[stream_id] = position
        else:
            self.durable.pop(stream_id, None)
            self._buckets[bucket_of(stream_id)].discard(stream_id)
        self._stale.add(stream_id)


def in_stream_order(facts: Iterable[Fact], retired: Iterable[Retired]) -> Sequence[Fact | Retired]:
    """Facts in their order, each after the retired ranges that come before it in its stream."""
    before: dict[Place, list[Retired]] = {}
    for gone in sorted(retired, key=lambda gone: (gone.stream_id, gone.first)):
        before.setdefault(Place(gone.stream_id, gone.last + 1), []).append(gone)
    if not before:
        return list(facts)
    items: list[Fact | Retired] = []
    for fact in facts:
        items += before.pop(Place(fact.stream_id, fact.sequence), [])
        items.append(fact)
    return items  # a range without its fact is nothing


@functools.lru_cache(maxsize=4096)
def bucket_of(stream_id: StreamId) -> int:
    """The low bits of the author's id and the incarnation: both are as good as random."""
    return (int(stream_id.author[:8] or "0", 16) ^ stream_id.incarnation ^ stream_id.stream * 7) % BUCKETS


def _hash_of(stream_id: StreamId, position: Position) -> int:
    name = f"{stream_id.author} {stream_id.incarnation} {stream_id.stream} {position.sequence} ".encode()
    return int.from_bytes(hashlib.sha256(name + position.head).digest()[:HASH_BYTES], "big")


def wire_position(stream_id: StreamId, position: Position) -> facts_pb2.StreamPosition:
    return facts_pb2.StreamPosition(
        author_id=stream_id.author,
        incarnation=stream_id.incarnation,
        stream=facts_pb2.FactStream.ValueType(stream_id.stream),
        sequence=position.sequence,
        head=position.head,
    )


def read_position(wire: facts_pb2.StreamPosition) -> tuple[StreamId, Position]:
    return StreamId(NodeId(wire.author_id), wire.incarnation, wire.stream), Position(wire.sequence, wire.head)
