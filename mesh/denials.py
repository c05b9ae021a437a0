"""Who was cut off from the mesh, and how far each of their streams still counts: a fold over deny facts.

Idea: a denial is signed by the mesh's CA, so it counts whoever's stream carries it and whatever a clock says. It names
the node and the last place of each of its streams that the issuer had accepted. All that comes later, and every stream
that is not named, is void for everybody alike: what a thief writes, dates back or writes in an invented life. Of
several denials of one node each stream ends at the least place that any of them gives.

One fact holds about 300 places, and a node that is started often has more streams: a denial may come in *parts*, facts
of one epoch. The node is cut off with the first of them; its streams are cut when all are there, so that no order of
arrival drops what a later part spares.

Streams of deny facts themselves (FACT_STREAM_TRUST) have no limit. Which denials count may not depend on denials, or
two issuers that deny each other would be read differently in different orders. Nobody gains by it: what counts in such
a stream is signed by the CA.

Nothing is ever dropped here: who was denied stays so. That is bounded because only the CA can add entries, and `draft`
makes none for more than `DENIED_MAX` nodes.

Does not: check signatures (whoever reads facts from others does, with the mesh's roots: `is_genuine`), or cut anything
(journal.py and replica.py do).
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from mesh.facts import FACT_BYTES_MAX, Fact, StreamId
from mesh.identity import NodeId
from mesh.wire import facts_pb2

#: Nodes that one mesh denies. With more of them it is time for a new CA, which needs no list at all.
DENIED_MAX = 1_000
#: Parts of one denial: about 19,000 streams. Against an author that began so many that no list of them ends.
PARTS_MAX = 64
#: Bytes of the positions in one part, and of the reason; the rest of a fact is for its author and signatures.
PART_BYTES_MAX = FACT_BYTES_MAX - 1024
REASON_BYTES_MAX = 300
EPOCH_MAX = 2**64 - 1


class End(NamedTuple):
    """The last place of a stream that counts, and the hash of the fact there. Sequence 0: nothing of it counts."""

    sequence: int = 0
    head: bytes = b""


class Denied(NamedTuple):
    """For people."""

    node_id: NodeId
    epoch: int
    reason: str


class DenialError(ValueError):
    """There is nothing to deny, or too much; says why."""


#: What limits one stream of one author: (incarnation, stream).
_Ends = dict[tuple[int, int], End]
_NOTHING = End()


@dataclass
class Denials:
    """A commutative, associative, idempotent fold. Invariant: `epoch` never goes back, and nobody is ever taken out."""

    epoch: int = 0  # the highest that was seen
    _said: dict[NodeId, dict[bytes, facts_pb2.Deny]] = field(default_factory=dict)  # by node, by hash
    _ends: dict[NodeId, _Ends] = field(default_factory=dict, compare=False)  # derived: of whom all parts are there

    def add(self, deny: facts_pb2.Deny) -> bool:
        """Fold one denial in. Its signature was checked. Returns whether it says anything new."""
        node_id, name = NodeId(deny.node_id), name_of(deny)
        said = self._said.setdefault(node_id, {})
        if name in said:
            return False
        said[name] = deny
        self.epoch = max(self.epoch, deny.epoch)
        if whole := [ends for group in _groups(said.values()) if (ends := _whole(group)) is not None]:
            self._ends[node_id] = _least(whole)
        return True

    # What others ask

    @property
    def nodes(self) -> "Mapping[NodeId, object]":
        """Who is denied, by id."""
        return self._said

    def is_denied(self, node_id: NodeId) -> bool:
        return node_id in self._said

    def end_of(self, stream_id: StreamId) -> End | None:
        """Where a stream ends; None: it has no limit."""
        ends = self._ends.get(stream_id.author)
        if ends is None or stream_id.stream == facts_pb2.FACT_STREAM_TRUST:
            return None
        return ends.get((stream_id.incarnation, stream_id.stream), _NOTHING)

    def limit(self, stream_id: StreamId) -> int | None:
        """The highest sequence that counts; None: no limit."""
        end = self.end_of(stream_id)
        return None if end is None else end.sequence

    def denied(self) -> list[Denied]:
        """In order of epoch and id, each node once, as its latest denial says."""
        latest = (max(said.values(), key=lambda deny: (deny.epoch, deny.reason)) for said in self._said.values())
        denied = [Denied(NodeId(one.node_id), one.epoch, one.reason) for one in latest]
        return sorted(denied, key=lambda one: (one.epoch, one.node_id))

    def reason(self, node_id: NodeId) -> str:
        """Why a node is denied; empty where none was given, or it is not."""
        said = self._said.get(node_id, {}).values()
        return max(said, key=lambda deny: (deny.epoch, deny.reason)).reason if said else ""

    def messages(self) -> list[facts_pb2.Deny]:
        """All that was said, in order of hash."""
        by_name = {name: deny for said in self._said.values() for name, deny in said.items()}
        return [by_name[name] for name in sorted(by_name)]

    # Making one

    def draft(self, node_id: NodeId, reason: str, held: Mapping[StreamId, tuple[int, bytes]]) -> list[facts_pb2.Deny]:
        """The parts of a new denial, for the CA to sign one by one. Raises `DenialError`.

        `held`: sequence and head of what the issuer accepted, of all streams of the node. Of an author with more
        streams than parts can hold the shortest are left out, and are void then.
        """
        if self.is_denied(node_id):
            raise DenialError(f"{node_id} is denied already")  # again would only drop what was accepted until then
        if len(self._said) >= DENIED_MAX:
            raise DenialError(f"{DENIED_MAX} nodes are denied already: found a new mesh")
        epoch = min(self.epoch + 1, EPOCH_MAX)
        reason = reason.encode()[:REASON_BYTES_MAX].decode(errors="ignore")
        wires = [
            facts_pb2.StreamPosition(  # its author is `node_id`, so it is not said again
                incarnation=stream_id.incarnation,
                stream=facts_pb2.FactStream.ValueType(stream_id.stream),
                sequence=sequence,
                head=head,
            )
            for stream_id, (sequence, head) in held.items()
            if stream_id.author == node_id and stream_id.stream != facts_pb2.FACT_STREAM_TRUST and sequence
        ]
        wires.sort(key=lambda wire: (-wire.sequence, wire.incarnation, wire.stream))
        parts = [facts_pb2.Deny(node_id=node_id, epoch=epoch, reason=reason)]
        size = 0
        for wire in wires:
            size += wire.ByteSize() + 4
            if size > PART_BYTES_MAX - REASON_BYTES_MAX:
                if len(parts) == PARTS_MAX:
                    break
                parts.append(facts_pb2.Deny(node_id=node_id, epoch=epoch, reason=reason, part=len(parts)))
                size = wire.ByteSize() + 4
            parts[-1].last_positions.append(wire)
        if len(parts) > 1:
            for part in parts:
                part.parts = len(parts)
        return parts

    def validate(self) -> None:
        """Assert the invariants."""
        assert self._ends.keys() <= self._said.keys()
        assert all(deny.epoch <= self.epoch for said in self._said.values() for deny in said.values())


def is_genuine(fact: Fact, verify_denial: Callable[[facts_pb2.Deny], bool]) -> bool:
    """Whether a fact is no denial, or one that the CA signed (`Roots.verify_denial`).

    It stands beside `Fact.is_signed_by_author`: a fact that fails either is refused before any machine sees it. The
    verdict depends on the fact's bytes and the mesh's CA alone, so it is the same on every node, and the stream of an
    author who made a denial up ends before it everywhere.
    """
    return fact.kind != "deny" or verify_denial(fact.body.deny)


def name_of(deny: facts_pb2.Deny) -> bytes:
    """The same for the same denial, whichever fact carries it."""
    return hashlib.sha256(deny.SerializeToString(deterministic=True)).digest()


def _groups(said: Iterable[facts_pb2.Deny]) -> list[list[list[facts_pb2.Deny]]]:
    """Denials by part. Denials of one epoch in as many parts are taken together."""
    groups: dict[tuple[int, int], list[list[facts_pb2.Deny]]] = {}
    for deny in said:
        parts = max(1, min(deny.parts, PARTS_MAX))
        group = groups.setdefault((deny.epoch, parts), [[] for _ in range(parts)])
        if deny.part < parts:
            group[deny.part].append(deny)
    return list(groups.values())


def _whole(group: list[list[facts_pb2.Deny]]) -> _Ends | None:
    """What the parts list together; None while one is missing."""
    if not all(group):
        return None
    whole: _Ends = {}
    for said in group:
        lists = [_listed(deny) for deny in said]
        names = {name for ends in lists for name in ends}
        # What one version of a part leaves out is void, also where another part lists it.
        for name, end in _least([{name: ends.get(name, _NOTHING) for name in names} for ends in lists]).items():
            whole[name] = min(end, whole.get(name, end))
    return whole


def _listed(deny: facts_pb2.Deny) -> _Ends:
    ends: _Ends = {}
    for wire in deny.last_positions:
        name, end = (wire.incarnation, int(wire.stream)), End(wire.sequence, wire.head)
        ends[name] = min(end, ends.get(name, end))
    return ends


def _least(lists: list[_Ends]) -> _Ends:
    """Of each stream the least end; one that a list leaves out has none."""
    least = dict(lists[0])
    for ends in lists[1:]:
        least = {name: min(end, ends[name]) for name, end in least.items() if name in ends}
    return least
