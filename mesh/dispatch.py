"""The leader's side of commanding work: which task runs where, since when, and whether it still moves.

Idea: a task in flight holds a lease that every sign of progress renews. A task ends for the leader when its `finished`
fact is folded in, when its agent declines, when its node leaves the live view, or when the lease runs out: in the last
three cases it may be assigned again, and a duplicate result is harmless. Nothing here is durable: a new leader starts
empty and first hears, from the workers' reports, what still runs.

Does not: choose agents (solver/), send anything (node/leader.py), or decide what is a result (the ledger).
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from mesh.identity import NodeId
from mesh.ledger import TaskRef
from mesh.wire import common_pb2, work_pb2

#: Without any word of progress for so long a task counts as lost. Longer than the slowest prefill chunk by far.
LEASE_S = 30.0
#: An assignment that was not even accepted by then did not arrive.
ACCEPT_S = 5.0
#: A node that declined is not asked again for so long: it said no for a reason that a moment may mend.
REST_S = 0.5
#: How long a new leader waits for workers to report what they still run.
REPORT_WAIT_S = 0.3


class TaskKey(NamedTuple):
    job_id: bytes
    ref: TaskRef

    @property
    def label(self) -> str:
        """For log lines."""
        return f"task {self.ref.index}.{self.ref.replica} of {self.job_id.hex()[:12]}"


@dataclass
class InFlight:
    key: TaskKey
    agent: common_pb2.AgentRef
    attempt: int
    assigned_at: float
    progressed_at: float
    prompt_tokens: int
    output_tokens: int
    accepted: bool = False
    progress: work_pb2.TaskProgress | None = None

    @property
    def node_id(self) -> NodeId:
        return NodeId(self.agent.node_id)


@dataclass
class Dispatch:
    """Invariant: at most one attempt of a task is in flight by this leader."""

    in_flight: dict[TaskKey, InFlight] = field(default_factory=dict)
    attempts: dict[TaskKey, int] = field(default_factory=dict)
    resting: dict[NodeId, float] = field(default_factory=dict)  # who declined, until when it is left alone

    def reset(self) -> None:
        """A new leadership begins, or an old one ended."""
        self.in_flight.clear()
        self.attempts.clear()
        self.resting.clear()

    def assigned(
        self, key: TaskKey, agent: common_pb2.AgentRef, now: float, prompt_tokens: int, output_tokens: int
    ) -> int:
        """Note an assignment. Returns the attempt's number, from 1."""
        assert key not in self.in_flight
        attempt = self.attempts.get(key, 0) + 1
        self.attempts[key] = attempt
        self.in_flight[key] = InFlight(key, agent, attempt, now, now, prompt_tokens, output_tokens)
        return attempt

    def event_received(self, peer: NodeId, event: work_pb2.TaskEvent, now: float) -> InFlight | None:
        """Renew or end a lease. Returns the attempt where it ended without a result (it was declined)."""
        key = key_of_event(event)
        flight = self.in_flight.get(key)
        if flight is None or flight.node_id != peer or event.agent.node_id != peer:
            return None
        match event.WhichOneof("event"):
            case "accepted":
                flight.accepted = True
                flight.progressed_at = now
            case "progress":
                flight.accepted = True
                flight.progressed_at = now
                flight.progress = event.progress
            case "declined":
                self.resting[peer] = now + REST_S
                return self.in_flight.pop(key)
            case "ended":
                flight.progressed_at = now
        return None

    def reported(self, peer: NodeId, report: work_pb2.WorkReport, now: float) -> None:
        """A worker tells what it already runs: adopt it, unless another attempt is under way here."""
        for event in report.running:
            key = key_of_event(event)
            if key not in self.in_flight and event.agent.node_id == peer:
                self.attempts[key] = max(self.attempts.get(key, 0), event.attempt)
                self.in_flight[key] = InFlight(
                    key, event.agent, event.attempt, now, now, 0, 0, accepted=True, progress=event.progress
                )

    def done(self, key: TaskKey) -> InFlight | None:
        """A result or a failure of this task is in the ledger."""
        return self.in_flight.pop(key, None)

    def member_lost(self, node_id: NodeId) -> list[InFlight]:
        """A node left the live view: what ran there may be assigned again."""
        lost = [flight for flight in self.in_flight.values() if flight.node_id == node_id]
        for flight in lost:
            del self.in_flight[flight.key]
        return lost

    def tick(self, now: float) -> list[InFlight]:
        """Leases that ran out."""
        expired = [
            flight
            for flight in self.in_flight.values()
            if now - flight.progressed_at > (LEASE_S if flight.accepted else ACCEPT_S)
        ]
        for flight in expired:
            del self.in_flight[flight.key]
        return expired

    def rests(self, node_id: NodeId, now: float) -> bool:
        return now < self.resting.get(node_id, now)

    def on_node(self, node_id: NodeId) -> list[InFlight]:
        return [flight for flight in self.in_flight.values() if flight.node_id == node_id]

    def of_job(self, job_id: bytes) -> list[InFlight]:
        return [flight for flight in self.in_flight.values() if flight.key.job_id == job_id]


def key_of_event(event: work_pb2.TaskEvent) -> TaskKey:
    return TaskKey(event.job_id, TaskRef(event.task_index, event.replica))
