"""What the shell tells a replica. Past tense: it happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from mesh.dispatch import TaskKey
    from mesh.facts import Fact, Retired, StreamId
    from mesh.identity import NodeId
    from mesh.wire import common_pb2, facts_pb2, membership_pb2, mesh_pb2, work_pb2


@dataclass(frozen=True)
class Ticked:
    """Time went on. Sent at least every 100 ms while the node runs. The wall clock only dates facts."""

    wall_clock_ms: int = 0


@dataclass(frozen=True)
class AddressFound:
    host: str
    port: int
    found_by: str  # "seed", "mdns", "cache", "peer"


@dataclass(frozen=True)
class DialFailed:
    """`refused`: the machine answered and nobody listens there; else it did not answer, or not as a node."""

    host: str
    port: int
    refused: bool = False


@dataclass(frozen=True)
class DialSucceeded:
    host: str
    port: int
    node_id: NodeId


@dataclass(frozen=True)
class LinkOpened:
    """The first link to this peer is up. `dialled_from`: the peer dialled, from this host; empty: we dialled."""

    hello: membership_pb2.Hello
    dialled_from: str = ""


@dataclass(frozen=True)
class LinkClosed:
    """The last link to this peer is down."""

    node_id: NodeId


class Received(NamedTuple):
    """A message from a linked peer, other than Hello and FactPush. The commonest by far, so a tuple: cheap to make."""

    peer: NodeId
    message: mesh_pb2.LinkMessage


@dataclass(frozen=True)
class FactsVerified:
    """Facts that `peer` pushed, parsed, and with valid signatures, and what it pushed in place of retired ones."""

    peer: NodeId
    facts: tuple[Fact, ...]
    retired: tuple[Retired, ...] = ()


@dataclass(frozen=True)
class ForkProven:
    """A `ForkProof` came from `peer`: two facts, parsed, and with valid signatures."""

    peer: NodeId
    one: Fact
    other: Fact


@dataclass(frozen=True)
class StoredCompared:
    """Answers `effects.CompareStored`: what is stored in and beside the offered facts' places and is not retired."""

    peer: NodeId
    offered: tuple[Fact, ...]
    stored: tuple[Fact, ...]


@dataclass(frozen=True)
class ForkSaved:
    """Answers `effects.SaveFork`: the proof is synced; `facts` are all that is stored now."""

    stream_id: StreamId
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class StreamsCut:
    """Answers `effects.CutStreams`: it is synced; `facts` are all that is stored now."""

    streams: tuple[StreamId, ...]
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class DiskMeasured:
    """Sent now and then: what the store takes, and may take (0: no limit)."""

    used_bytes: int
    budget_bytes: int


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
    retired: tuple[Retired, ...] = ()


@dataclass(frozen=True)
class VoteSaved:
    """The vote of a `SaveVote` effect is synced. Comes after the effect's `then` was carried out."""

    term: int
    voted_for: str


@dataclass(frozen=True)
class Stopping:
    reason: str


# Blobs


@dataclass(frozen=True)
class BlobStored:
    """A blob is durable here: fetched from `source`, or (None) written by this node."""

    ref: common_pb2.BlobRef
    source: NodeId | None = None


@dataclass(frozen=True)
class BlobNotStored:
    """A `FetchBlob` came to nothing. `refused`: there is no room for it here; else the peer did not give it."""

    ref: common_pb2.BlobRef
    peer: NodeId
    refused: bool = False


# Work of a client


@dataclass(frozen=True)
class SubmitRequested:
    """A client hands in a job. Every blob it names is durable here. Answered by `effects.AnswerSubmit`, once."""

    ticket: int
    submitted: facts_pb2.JobSubmitted
    deadline_s: float


# Work of a worker


@dataclass(frozen=True)
class EngineChanged:
    """`stalled`: it runs and does not move; what is in it may never end."""

    ready: bool
    stalled: bool = False


@dataclass(frozen=True)
class Draining:
    """The node stops soon: no new task is taken."""


@dataclass(frozen=True)
class TaskProgressed:
    """The engine really moved."""

    key: TaskKey
    progress: work_pb2.TaskProgress


@dataclass(frozen=True)
class TaskEnded:
    """A started task has a result, whose blob is durable here, or a failure. `token` is filled in by the machine."""

    key: TaskKey
    finished: facts_pb2.TaskFinished


@dataclass(frozen=True)
class TaskStopped:
    """A started task ended without an outcome: it was stopped."""

    key: TaskKey


# Work of a leader


@dataclass(frozen=True)
class PlanMade:
    """Answers `effects.MakePlan`; the plan's blob is durable here."""

    job_id: bytes
    ref: common_pb2.BlobRef
    plan: work_pb2.Plan


@dataclass(frozen=True)
class PlanFailed:
    """Answers `effects.MakePlan`. `final`: no plan will ever be made; else it is tried again."""

    job_id: bytes
    problem: common_pb2.Problem
    final: bool


@dataclass(frozen=True)
class PlanRead:
    """Answers `effects.ReadPlan`; None where no node in reach holds it, which is asked again later."""

    ref: common_pb2.BlobRef
    plan: work_pb2.Plan | None


@dataclass(frozen=True)
class Allocated:
    """Answers `effects.Allocate`: where each task goes, and why the others wait."""

    round_number: int
    placements: tuple[tuple[TaskKey, facts_pb2.AssignmentRecord], ...]
    waiting: tuple[tuple[TaskKey, str], ...]
    method: str
    method_reason: str = ""
    objective_s: float = 0.0
    bound_s: float = 0.0
    solve_seconds: float = 0.0


@dataclass(frozen=True)
class Assembled:
    """Answers `effects.Assemble`; the blob is durable here. None, with the problem, where it is not possible now."""

    job_id: bytes
    plan_sha256: bytes
    result: common_pb2.BlobRef | None
    problem: common_pb2.Problem | None = None
    missing: bytes = b""  # the task's result, by hash, that nobody in sight gave


Event: TypeAlias = (
    Ticked
    | AddressFound
    | DialFailed
    | DialSucceeded
    | LinkOpened
    | LinkClosed
    | Received
    | FactsVerified
    | ForkProven
    | StoredCompared
    | ForkSaved
    | StreamsCut
    | DiskMeasured
    | FactAuthored
    | Persisted
    | VoteSaved
    | Stopping
    | BlobStored
    | BlobNotStored
    | SubmitRequested
    | EngineChanged
    | Draining
    | TaskProgressed
    | TaskEnded
    | TaskStopped
    | PlanMade
    | PlanFailed
    | PlanRead
    | Allocated
    | Assembled
)
