"""How facts spread: eager push of new ones, and push-pull anti-entropy for all that the push missed.

Idea: the author pushes a new fact to a few peers once it is durable here. Every second each node sends `FANOUT` live
peers a digest, one hash a bucket of streams (journal.py). Equal: nothing more. Else the receiver answers with its
positions in the buckets that differ, and three legs bring both up to the longest prefixes:

    A ── digest ──▶ B     B ── vector of what differs ──▶ A     A ── facts B lacks, vector ──▶ B     B ── facts ──▶ A

A large gap is closed without waiting for the next round: a full push is followed by the next digest at once. Receipts,
vectors and equal buckets also tell who holds a fact, which is what Submit waits for.

Two histories of one stream look like prefixes that do not fit. Such a stream is *suspected* with that peer: we tell it
a lower position, so it pushes the stream again, and each fact is compared with the stored one of its place, until one
differs (the proof) or all were equal (a lie about a head, which is then ignored).

Source: Demers et al., "Epidemic algorithms for replicated database maintenance" (1987); digests over buckets as in
Dynamo's Merkle trees (2007), of depth one. Measured for this design: 10 nodes, fanout 2, 30 % loss: at most 5 rounds to
all (p99).

Does not: read facts (the shell reads the named ranges from the store), promise order across streams.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mesh.effects import Effect, PushStored, Send
from mesh.facts import Fact, FactRange, StreamId
from mesh.identity import NodeId
from mesh.journal import BUCKETS, HASH_BYTES, NOTHING, Journal, Position, bucket_of, read_position, wire_position
from mesh.wire import facts_pb2, mesh_pb2

__all__ = ["COPIES", "FANOUT", "INTERVAL_S", "PUSH_PEERS", "FactRange", "Gossip", "Rng"]

INTERVAL_S = 1.0
FANOUT = 2
#: Copies wanted of every fact and blob (itself included), as far as there are members.
COPIES = 3
#: Peers that get a new fact at once: two more than needed, so one slow peer delays nothing.
PUSH_PEERS = COPIES + 2
#: Positions in one of our vectors, about 90 bytes each, as long as one bucket alone has not more.
VECTOR_POSITIONS = 4_000
#: Positions read of one vector: against a peer that makes us keep one for millions of invented streams.
POSITIONS_MAX = 20_000
#: Positions remembered of one peer: what it said last. Equal buckets need none.
HELD_MAX = 512
#: Ranges asked of the store for one push; the rest waits for the next round.
PUSH_RANGES_MAX = 2_000
#: A push of so many bytes was probably cut by its limit: ask for the rest at once.
FULL_PUSH_BYTES = 512 * 1024
SUSPECTS_MAX = 64
#: One known proof of a fork is told again, to one peer: against a message that was lost. Nothing else may show it, for
#: streams of the same facts are read differently without the proof.
PROOF_EVERY_S = 30.0
_HASHES = struct.Struct(f">{BUCKETS}Q")
assert _HASHES.size == BUCKETS * HASH_BYTES


class Rng(Protocol):
    """The part of `random.Random` that the machines use; always passed in, always seeded by the shell."""

    def uniform(self, a: float, b: float) -> float: ...
    def random(self) -> float: ...
    def sample(self, population: Sequence[NodeId], k: int) -> list[NodeId]: ...


@dataclass
class Gossip:
    """What each peer is known to hold, and when to ask again."""

    journal: Journal
    rng: Rng
    next_round_at: float = 0.0
    held_by: dict[NodeId, dict[StreamId, int]] = field(default_factory=dict)
    #: Per peer and bucket: our journal's `serial` when the peer last held the same there; -1: never.
    equal_at: dict[NodeId, list[int]] = field(default_factory=dict)
    #: Streams whose histories may differ, with the end of what was compared and found equal.
    suspects: dict[tuple[NodeId, StreamId], Position] = field(default_factory=dict)
    #: Heads that turned out to be lies: (peer, stream, what it said).
    _cleared: dict[tuple[NodeId, StreamId, Position], None] = field(default_factory=dict)
    _said: dict[tuple[NodeId, StreamId], Position] = field(default_factory=dict)  # why a stream is suspected
    _turn: int = 0
    _next_proof_at: float = 0.0
    _proof_turn: int = 0

    def tick(self, now: float, live_peers: Sequence[NodeId]) -> list[Effect]:
        if now < self.next_round_at or not live_peers:
            return []
        self.next_round_at = now + INTERVAL_S
        chosen = self.rng.sample(live_peers, min(FANOUT, len(live_peers)))
        return [*(self.compare_with(peer) for peer in chosen), *self._proof_again(now, chosen[0])]

    def _proof_again(self, now: float, peer: NodeId) -> list[Effect]:
        """The next proof, in turn."""
        if now < self._next_proof_at or not self.journal.forks:
            return []
        self._next_proof_at = now + PROOF_EVERY_S
        self._proof_turn += 1
        streams = sorted(self.journal.forks)
        return self.proofs_to(peer, [streams[self._proof_turn % len(streams)]])

    def peer_linked(self, peer: NodeId) -> list[Effect]:
        """A peer came (back): compare with it at once."""
        return [self.compare_with(peer)]

    def peer_gone(self, peer: NodeId) -> None:
        self.held_by.pop(peer, None)
        self.equal_at.pop(peer, None)
        for suspect in [suspect for suspect in self.suspects if suspect[0] == peer]:
            self._clear(suspect)

    def compare_with(self, peer: NodeId) -> Send:
        """The first leg of an exchange."""
        return Send(peer, mesh_pb2.LinkMessage(vector_digest=facts_pb2.VectorDigest(buckets=self.journal.digest())))

    def digest_received(self, peer: NodeId, digest: facts_pb2.VectorDigest) -> list[Effect]:
        """Note which buckets are equal; answer with our positions in the others."""
        if len(digest.buckets) != BUCKETS * HASH_BYTES:
            return []
        equal_at = self.equal_at.setdefault(peer, [-1] * BUCKETS)
        ours, theirs = self.journal.digest(), digest.buckets
        if ours == theirs:
            equal_at[:] = [self.journal.serial] * BUCKETS
            return []
        differing: list[int] = []
        for bucket, (mine, its) in enumerate(zip(_HASHES.unpack(ours), _HASHES.unpack(theirs), strict=True)):
            if mine == its:
                equal_at[bucket] = self.journal.serial
            else:
                differing.append(bucket)
        return [self._vector_to(peer, self._as_many_as_fit(differing), reply_wanted=True)] if differing else []

    def vector_received(self, peer: NodeId, vector: facts_pb2.VersionVector) -> list[Effect]:
        """Push what the peer lacks; ask back if we lack something."""
        buckets = sorted({bucket for bucket in vector.buckets if bucket < BUCKETS}) or None
        theirs = self.note_positions(peer, vector.positions)
        missing_there: list[FactRange] = []
        for stream_id in self.journal.streams_in(range(BUCKETS) if buckets is None else buckets):
            ours = self.journal.durable[stream_id]
            held = theirs.get(stream_id, NOTHING)
            if held == ours:
                continue
            if held.sequence < ours.sequence:
                missing_there.append(FactRange(stream_id, held.sequence + 1, ours.sequence))
            elif held.sequence == ours.sequence and held.head != ours.head:
                self.suspect(peer, stream_id, held)
        effects: list[Effect] = []
        if missing_there:
            effects.append(PushStored(peer, tuple(missing_there[:PUSH_RANGES_MAX])))
        forks = self.journal.forks
        void = [s for s, position in theirs.items() if s in forks and position.sequence >= forks[s].sequence]
        effects += self.proofs_to(peer, void)
        missing_here = any(
            position.sequence > (here := self.journal.staged.get(stream_id, NOTHING).sequence)
            and stream_id not in forks
            and not self.journal.is_void(stream_id, here + 1)
            for stream_id, position in theirs.items()
        )
        suspected = any(suspect[0] == peer and suspect[1] in theirs for suspect in self.suspects)
        if vector.reply_wanted and (missing_here or suspected):
            effects.append(self._vector_to(peer, buckets, reply_wanted=False))
        return effects

    def note_positions(self, peer: NodeId, positions: Iterable[facts_pb2.StreamPosition]) -> dict[StreamId, Position]:
        """Remember what `peer` holds durably, from its vector or its receipts."""
        held = self.held_by.setdefault(peer, {})
        seen: dict[StreamId, Position] = {}
        for index, wire in enumerate(positions):
            if index >= POSITIONS_MAX:
                break
            stream_id, position = read_position(wire)
            seen[stream_id] = position
            before = held.pop(stream_id, 0)
            held[stream_id] = before if before > position.sequence else position.sequence
            if len(held) > HELD_MAX:
                del held[next(iter(held))]
        return seen

    def holders(self, stream_id: StreamId, sequence: int) -> set[NodeId]:
        """Peers known to hold this fact durably."""
        holders = {peer for peer, held in self.held_by.items() if held.get(stream_id, 0) >= sequence}
        since = self.journal.durable_since(stream_id, sequence)
        if since is not None:
            bucket = bucket_of(stream_id)
            holders |= {peer for peer, equal_at in self.equal_at.items() if equal_at[bucket] >= since}
        return holders

    def stored(self, source: NodeId, facts: Iterable[Fact]) -> list[Effect]:
        """Facts of a push by `source` are durable: go on at once where it was a full push."""
        if sum(len(fact.raw) for fact in facts) < FULL_PUSH_BYTES:
            return []
        return [self.compare_with(source)]

    # Streams that may have two histories

    def suspect(self, peer: NodeId, stream_id: StreamId, said: Position) -> None:
        """What `peer` holds of this stream does not fit what we hold: `said` ends there, or comes before its fact."""
        known = (peer, stream_id) in self.suspects or (peer, stream_id, said) in self._cleared
        if not known and len(self.suspects) < SUSPECTS_MAX:
            self.suspects[peer, stream_id] = NOTHING
            self._said[peer, stream_id] = said

    def found_equal(self, peer: NodeId, last: Fact) -> list[Effect]:
        """Of a suspected stream, all that `peer` pushed up to `last` is what we hold: ask for what comes after."""
        suspect = (peer, last.stream_id)
        if suspect not in self.suspects or last.sequence <= self.suspects[suspect].sequence:
            return []
        self.suspects[suspect] = Position(last.sequence, last.hash)
        if last.sequence >= self.journal.durable.get(last.stream_id, NOTHING).sequence:
            self._cleared[peer, last.stream_id, self._said[suspect]] = None
            if len(self._cleared) > SUSPECTS_MAX:
                del self._cleared[next(iter(self._cleared))]
            self._clear(suspect)
            return []
        return [self._vector_to(peer, [bucket_of(last.stream_id)], reply_wanted=False)]

    def proofs_to(self, peer: NodeId, streams: Iterable[StreamId]) -> list[Effect]:
        """The proven forks of these streams."""
        forks = [self.journal.forks[stream_id] for stream_id in streams]
        return [Send(peer, mesh_pb2.LinkMessage(fork_proof=fork.wire())) for fork in forks]

    def fork_proven(self, stream_id: StreamId) -> None:
        """Of this stream nothing needs to be compared any more."""
        for suspect in [suspect for suspect in self.suspects if suspect[1] == stream_id]:
            self._clear(suspect)

    def _clear(self, suspect: tuple[NodeId, StreamId]) -> None:
        del self.suspects[suspect]
        del self._said[suspect]

    # Messages

    def _as_many_as_fit(self, buckets: list[int]) -> list[int]:
        """At least one bucket; the others' turn comes when these are equal, or when the start has moved on."""
        self._turn += 1
        start = self._turn % len(buckets)
        chosen: list[int] = []
        positions = 0
        for bucket in buckets[start:] + buckets[:start]:
            positions += self.journal.streams_in_bucket(bucket)
            if chosen and positions > VECTOR_POSITIONS:
                break
            chosen.append(bucket)
        return sorted(chosen)

    def _vector_to(self, peer: NodeId, buckets: list[int] | None, *, reply_wanted: bool) -> Send:
        """Positions in `buckets`; None: all."""
        positions = self.journal.vector(range(BUCKETS) if buckets is None else buckets)
        lowered = {suspect[1]: mark for suspect, mark in self.suspects.items() if suspect[0] == peer}
        if lowered:
            told = []
            for wire in positions:
                stream_id, position = read_position(wire)
                mark = lowered.get(stream_id, position)
                if mark.sequence:
                    told.append(wire_position(stream_id, mark))
            positions = told
        vector = facts_pb2.VersionVector(positions=positions, reply_wanted=reply_wanted, buckets=buckets or [])
        return Send(peer, mesh_pb2.LinkMessage(version_vector=vector))
