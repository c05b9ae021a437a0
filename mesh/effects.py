"""What the machines ask the shell to do. A machine never does; it returns these, in the order they must happen.

The shell's duties:
- `Persist`: write and sync, then hand the same facts back as `events.Persisted`. Later effects may run meanwhile.
- `SaveVote`: write and sync, then and only then run `then` and hand back `events.VoteSaved` (Raft section 5.2: a vote
  is durable before it is told, and before it counts).
- `Send`: best effort; a message that can not be sent is dropped, and the machines live with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from mesh.facts import Fact
    from mesh.gossip import FactRange
    from mesh.identity import NodeId
    from mesh.wire import common_pb2, mesh_pb2


@dataclass(frozen=True)
class Send:
    peer: NodeId
    message: mesh_pb2.LinkMessage


@dataclass(frozen=True)
class Dial:
    """Open a link to an address; `expected` is the node thought to live there, if one is."""

    host: str
    port: int
    expected: NodeId | None


@dataclass(frozen=True)
class Persist:
    """Store facts, in this order. `source` is who sent them; None: authored here."""

    facts: tuple[Fact, ...]
    source: NodeId | None


@dataclass(frozen=True)
class PushStored:
    """Read these ranges from the store and send them to `peer`, oldest first, as much as one push may carry."""

    peer: NodeId
    ranges: tuple[FactRange, ...]


@dataclass(frozen=True)
class SaveVote:
    term: int
    voted_for: str
    then: tuple[Effect, ...]


@dataclass(frozen=True)
class Deliver:
    """A message for the shell's own parts: leader, worker, blobs."""

    peer: NodeId
    message: mesh_pb2.LinkMessage


@dataclass(frozen=True)
class MemberChanged:
    node_id: NodeId
    state: int  # membership_pb2.MemberState


@dataclass(frozen=True)
class LeaderChanged:
    """`token` is None while no leader is known."""

    token: common_pb2.FencingToken | None


@dataclass(frozen=True)
class FactsApplied:
    """These facts are durable and folded: jobs, knowledge and profiles reflect them now."""

    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Log:
    """A line for the operator."""

    level: str
    text: str


Effect: TypeAlias = (
    Send | Dial | Persist | PushStored | SaveVote | Deliver | MemberChanged | LeaderChanged | FactsApplied | Log
)
