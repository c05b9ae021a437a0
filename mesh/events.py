"""What the shell tells a replica. Past tense: it happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from mesh.facts import Fact
    from mesh.identity import NodeId
    from mesh.wire import membership_pb2, mesh_pb2


@dataclass(frozen=True)
class Ticked:
    """Time went on. Sent at least every 100 ms while the node runs."""


@dataclass(frozen=True)
class AddressFound:
    host: str
    port: int
    found_by: str  # "seed", "mdns", "cache", "peer"


@dataclass(frozen=True)
class DialFailed:
    host: str
    port: int


@dataclass(frozen=True)
class DialSucceeded:
    host: str
    port: int
    node_id: NodeId


@dataclass(frozen=True)
class LinkOpened:
    """The first link to this peer is up."""

    hello: membership_pb2.Hello


@dataclass(frozen=True)
class LinkClosed:
    """The last link to this peer is down."""

    node_id: NodeId


@dataclass(frozen=True)
class Received:
    """A message from a linked peer, other than Hello and FactPush."""

    peer: NodeId
    message: mesh_pb2.LinkMessage


@dataclass(frozen=True)
class FactsVerified:
    """Facts that `peer` pushed, parsed, and with valid signatures."""

    peer: NodeId
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class FactAuthored:
    """This node has something to say. `kind` is a field of FactBody's oneof."""

    kind: str
    content: Message
    wall_clock_ms: int


@dataclass(frozen=True)
class Persisted:
    """Facts of a `Persist` effect are synced."""

    facts: tuple[Fact, ...]
    source: NodeId | None


@dataclass(frozen=True)
class VoteSaved:
    """The vote of a `SaveVote` effect is synced. Comes after the effect's `then` was carried out."""

    term: int
    voted_for: str


@dataclass(frozen=True)
class Stopping:
    reason: str


Event: TypeAlias = (
    Ticked
    | AddressFound
    | DialFailed
    | DialSucceeded
    | LinkOpened
    | LinkClosed
    | Received
    | FactsVerified
    | FactAuthored
    | Persisted
    | VoteSaved
    | Stopping
)
