"""Which facts a node holds: contiguous prefixes of every author's streams, and nothing else.

Idea: for each stream the journal knows how far it reaches and the hash of its last fact. A fact is taken only if it is
the next one and names the last one; everything else is a duplicate, a gap (anti-entropy brings what is missing) or a
fork. So one number and one hash a stream say exactly what a node holds, and two nodes compare in one message.

Two positions a stream: *staged* (accepted, on its way to the disk) and *durable* (synced). Only the durable one is ever
told to others ("durable before seen", DESIGN section 3 rule 2).

Does not: touch the disk (effects do), check signatures (the shell does, before it offers facts), interpret facts.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from mesh.facts import Fact, StreamId
from mesh.identity import NodeId
from mesh.wire import facts_pb2


class Verdict(Enum):
    """What became of an offered fact."""

    STAGED = "staged"
    DUPLICATE = "duplicate"
    GAP = "gap"  # facts before it are missing here
    FORK = "fork"  # the author wrote two histories: a copied data directory, or a lie


@dataclass(frozen=True)
class Position:
    sequence: int = 0
    head: bytes = b""


@dataclass
class Journal:
    """Positions of all streams. Invariant: durable.sequence <= staged.sequence for every stream."""

    staged: dict[StreamId, Position] = field(default_factory=dict)
    durable: dict[StreamId, Position] = field(default_factory=dict)
    forked: set[StreamId] = field(default_factory=set)

    def offer(self, fact: Fact) -> Verdict:
        """Stage `fact` if it is the next of its stream. The caller persists what was staged, in this order."""
        last = self.staged.get(fact.stream_id, Position())
        if fact.sequence <= last.sequence:
            if fact.sequence == last.sequence and fact.hash != last.head:
                self.forked.add(fact.stream_id)
                return Verdict.FORK
            return Verdict.DUPLICATE
        if fact.sequence > last.sequence + 1:
            return Verdict.GAP
        if fact.predecessor != last.head:
            self.forked.add(fact.stream_id)
            return Verdict.FORK
        self.staged[fact.stream_id] = Position(fact.sequence, fact.hash)
        return Verdict.STAGED

    def persisted(self, facts: Iterable[Fact]) -> None:
        """`facts`, staged before, are on disk and synced."""
        for fact in facts:
            position = self.durable.get(fact.stream_id, Position())
            assert fact.sequence == position.sequence + 1, "facts become durable in stream order"
            self.durable[fact.stream_id] = Position(fact.sequence, fact.hash)

    def restore(self, fact: Fact) -> None:
        """Take a fact read from this node's own store at start. Raises `ValueError` where the store has a hole."""
        if self.offer(fact) is not Verdict.STAGED:
            raise ValueError(f"the journal has a hole before fact {fact.sequence} of {fact.author}")
        self.persisted([fact])

    def next_of(self, stream_id: StreamId) -> tuple[int, bytes]:
        """Sequence and predecessor of the next fact that this node authors in its own stream."""
        last = self.staged.get(stream_id, Position())
        return last.sequence + 1, last.head

    def vector(self) -> list[facts_pb2.StreamPosition]:
        """What this node holds durably, for others."""
        return [wire_position(stream_id, position) for stream_id, position in sorted(self.durable.items())]

    def validate(self) -> None:
        """Assert the invariants."""
        for stream_id, durable in self.durable.items():
            staged = self.staged[stream_id]
            assert durable.sequence <= staged.sequence
            assert durable.sequence < staged.sequence or durable.head == staged.head
            assert durable.sequence >= 1


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
