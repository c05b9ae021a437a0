"""How facts spread: eager push of new ones, and push-pull anti-entropy for all that the push missed.

Idea: the author pushes a new fact to a few peers once it is durable here. Every second each node sends its version
vector to `FANOUT` live peers; the receiver pushes what the sender lacks, and answers with its own vector if it lacks
something itself. Receipts and vectors also tell an author who holds a fact, which is what Submit waits for.

Source: Demers et al., "Epidemic algorithms for replicated database maintenance" (1987). Measured for this design:
10 nodes, fanout 2, 30 % loss: at most 5 rounds to all (p99).

Does not: read facts (the shell reads the named ranges from the store), promise order across streams.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mesh.effects import Effect, Log, PushStored, Send
from mesh.facts import FactRange as FactRange
from mesh.facts import StreamId
from mesh.identity import NodeId
from mesh.journal import Journal, Position, read_position
from mesh.wire import facts_pb2, mesh_pb2

INTERVAL_S = 1.0
FANOUT = 2
#: Copies wanted of every fact and blob (itself included), as far as there are members.
COPIES = 3
#: Peers that get a new fact at once: two more than needed, so one slow peer delays nothing.
PUSH_PEERS = COPIES + 2
#: Streams in one vector: against a peer that makes us keep a position for millions of invented streams.
POSITIONS_MAX = 20_000


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

    def tick(self, now: float, live_peers: Sequence[NodeId]) -> list[Effect]:
        if now < self.next_round_at or not live_peers:
            return []
        self.next_round_at = now + INTERVAL_S
        chosen = self.rng.sample(live_peers, min(FANOUT, len(live_peers)))
        return [self._vector_to(peer, reply_wanted=True) for peer in chosen]

    def peer_linked(self, peer: NodeId) -> list[Effect]:
        """A peer came (back): compare with it at once."""
        return [self._vector_to(peer, reply_wanted=True)]

    def peer_gone(self, peer: NodeId) -> None:
        self.held_by.pop(peer, None)

    def vector_received(self, peer: NodeId, vector: facts_pb2.VersionVector) -> list[Effect]:
        """Push what the peer lacks; ask back if we lack something."""
        theirs = self.note_positions(peer, vector.positions)
        effects = self._forks_seen(theirs)
        missing_there: list[FactRange] = []
        for stream_id, ours in sorted(self.journal.durable.items()):
            held = theirs.get(stream_id, Position()).sequence
            if held < ours.sequence:
                missing_there.append(FactRange(stream_id, held + 1, ours.sequence))
        if missing_there:
            effects.append(PushStored(peer, tuple(missing_there)))
        missing_here = any(
            position.sequence > self.journal.staged.get(stream_id, Position()).sequence
            for stream_id, position in theirs.items()
        )
        if vector.reply_wanted and missing_here:
            effects.append(self._vector_to(peer, reply_wanted=False))
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
            held[stream_id] = max(held.get(stream_id, 0), position.sequence)
        return seen

    def _forks_seen(self, theirs: dict[StreamId, Position]) -> list[Effect]:
        """Histories as long as ours with another end: nothing would ever be pushed, so nobody else would notice."""
        effects: list[Effect] = []
        for stream_id, position in theirs.items():
            ours = self.journal.durable.get(stream_id, Position())
            if position.sequence == ours.sequence > 0 and position.head != ours.head:
                if stream_id not in self.journal.forked:
                    effects.append(Log("error", f"{stream_id.author} wrote two histories: each node keeps its first"))
                self.journal.forked.add(stream_id)
        return effects

    def holders(self, stream_id: StreamId, sequence: int) -> set[NodeId]:
        """Peers known to hold this fact durably."""
        return {peer for peer, held in self.held_by.items() if held.get(stream_id, 0) >= sequence}

    def _vector_to(self, peer: NodeId, *, reply_wanted: bool) -> Send:
        vector = facts_pb2.VersionVector(positions=self.journal.vector(), reply_wanted=reply_wanted)
        return Send(peer, mesh_pb2.LinkMessage(version_vector=vector))
