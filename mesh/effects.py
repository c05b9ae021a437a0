"""What the machines ask the shell to do. A machine never does; it returns these, in the order they must happen.

The shell's duties:
- `Persist`: write and sync, then hand the same facts back as `events.Persisted`. Later effects may run meanwhile.
- `SaveVote`: write and sync, then and only then run `then` and hand back `events.VoteSaved` (Raft section 5.2: a vote
  is durable before it is told, and before it counts).
- `Send`: best effort; a message that can not be sent is dropped, and the machines live with it.
- `FetchBlob`, `MakePlan`, `ReadPlan`, `Allocate`, `Assemble`, `StartTask`: work that takes time; each is answered by
  the event that its docstring names, once, whatever happens, unless the node ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from mesh.dispatch import TaskKey
    from mesh.facts import Fact, FactRange, Retired, StreamId
    from mesh.identity import NodeId
    from mesh.journal import Fork, Position
    from mesh.wire import common_pb2, facts_pb2, mesh_pb2, work_pb2


class Send(NamedTuple):
    """The commonest by far, so a tuple: cheap to make."""

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
    """Store facts, in this order. `source` is who sent them; None: authored here. `retired`: in place of what is gone;
    each is followed in its stream by one of `facts`."""

    facts: tuple[Fact, ...]
    source: NodeId | None
    retired: tuple[Retired, ...] = ()


@dataclass(frozen=True)
class PushStored:
    """Read these ranges from the store and send them to `peer`, oldest first, as much as one push may carry.

    A retired range is sent only where the fact after it goes along.
    """

    peer: NodeId
    ranges: tuple[FactRange, ...]


@dataclass(frozen=True)
class CompareStored:
    """Read what is stored in and beside the places of these facts, which `peer` pushed: `journal.places_beside`.
    Answered by `StoredCompared`."""

    peer: NodeId
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class SaveFork:
    """Store the proof, delete the stream's facts from its place on, then read all facts. Answered by `ForkSaved`."""

    fork: Fork


@dataclass(frozen=True)
class SaveProof:
    """Store the proof of a stream that was known to be forked, and of which nothing is held from its place on."""

    fork: Fork


@dataclass(frozen=True)
class CutStreams:
    """Delete what is stored of these streams after the given places (sequence 0: all of it), then read all facts.
    Answered by `StreamsCut`. A retired range that reaches over a place is cut to it; `head` is its hash then."""

    ends: tuple[tuple[StreamId, Position], ...]


@dataclass(frozen=True)
class CutOff:
    """It is denied, or this node itself is: end every link and call with it, both ways. With `farewell` in a moment, so
    that it may still hear why; else now."""

    node_id: NodeId
    farewell: bool = False


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


@dataclass(frozen=True)
class Author:
    """Say something once and for all. The replica itself carries it out: no shell ever sees one."""

    kind: str
    content: Message


# Retention


@dataclass(frozen=True)
class RetireFacts:
    """Forget the content of these facts; their places in the streams stay (mesh/retention.py)."""

    ranges: tuple[FactRange, ...]


@dataclass(frozen=True)
class DropBlobs:
    """Nothing that is kept names these any more."""

    sha256: tuple[bytes, ...]


# Blobs


@dataclass(frozen=True)
class FetchBlob:
    """Get a blob from a peer, check it, store it durably. Answered by `BlobStored` or `BlobNotStored`."""

    peer: NodeId
    ref: common_pb2.BlobRef


# Work of a client


@dataclass(frozen=True)
class AnswerSubmit:
    """`copies`: nodes that hold the job and all its blobs, of `wanted`. `known`: it had been submitted before."""

    ticket: int
    job_id: bytes
    copies: int
    wanted: int
    known: bool


# Work of a worker


@dataclass(frozen=True)
class StartTask:
    """Run it; tell `TaskProgressed` as the engine moves, and in the end `TaskEnded` or `TaskStopped`."""

    key: TaskKey
    assign: work_pb2.Assign


@dataclass(frozen=True)
class StopTask:
    """Its result is of no more use. Answered by `TaskStopped`, unless `TaskEnded` was on its way."""

    key: TaskKey
    reason: str


# Work of a leader


@dataclass(frozen=True)
class MakePlan:
    """Decompose the job. Answered by `PlanMade` or `PlanFailed`."""

    job_id: bytes
    request: work_pb2.JobRequest
    revision: int = 1  # of the plan; above 1 where something that an earlier one led to is lost


@dataclass(frozen=True)
class ReadPlan:
    """Answered by `PlanRead`."""

    ref: common_pb2.BlobRef


@dataclass(frozen=True)
class ReadyTask:
    key: TaskKey
    task: work_pb2.Task
    forbidden: frozenset[tuple[str, str]]  # (node id, agent) that must not get it
    panel: str  # tasks of one non-empty panel go to distinct agents
    hedge: bool  # a second copy of a task that runs late


@dataclass(frozen=True)
class AgentState:
    agent: common_pb2.AgentRef
    profile: facts_pb2.AgentProfile
    slots_free: int
    queued_prompt_tokens: int
    queued_output_tokens: int
    draining: bool
    load_wait_s: float = 0.0  # until its model is loaded, as its node tells it; 0: as its profile says


@dataclass(frozen=True)
class Allocate:
    """Decide who does what. Answered by `Allocated` with the same round number. One round at a time."""

    round_number: int
    tasks: tuple[ReadyTask, ...]
    agents: tuple[AgentState, ...]


@dataclass(frozen=True)
class Assemble:
    """All tasks of the plan have results: make the job's. Answered by `Assembled`."""

    job_id: bytes
    request: work_pb2.JobRequest
    plan_sha256: bytes
    plan: work_pb2.Plan
    results: tuple[facts_pb2.TaskFinished, ...]  # in plan order


Effect: TypeAlias = (
    Send
    | Dial
    | Persist
    | PushStored
    | CompareStored
    | SaveFork
    | SaveProof
    | CutStreams
    | CutOff
    | SaveVote
    | Deliver
    | MemberChanged
    | LeaderChanged
    | FactsApplied
    | Log
    | Author
    | RetireFacts
    | DropBlobs
    | FetchBlob
    | AnswerSubmit
    | StartTask
    | StopTask
    | MakePlan
    | ReadPlan
    | Allocate
    | Assemble
)
