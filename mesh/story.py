"""What happened to a job: every fact that touched it, whoever wrote it, as one list.

Idea: facts carry hybrid clocks, so ordering by (clock, author, sequence) puts every cause before its effect, as long as
the effect's author had seen the cause; among facts that knew nothing of each other the order is that of their authors'
wall clocks. The same facts tell the same story on every node. Once retention dropped a job's details, what is left is
told: its ends, and what they record of its beginning.

Source: Kulkarni et al., "Logical physical clocks" (2014).

Does not: find the facts (the shell reads `places_of` from the store), or name nodes and agents for people. What no fact
records is not told: that an agent declined a task, that the losing copy of a hedged task was cancelled, leases.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from mesh.facts import Fact, FactRange
from mesh.identity import NodeId
from mesh.ledger import TERMINAL_KINDS, Job, job_of
from mesh.retention import as_ranges
from mesh.wire import common_pb2, facts_pb2


@dataclass(frozen=True)
class Event:
    """One fact of a job. `text` is for people; the fact says the rest."""

    time_ms: int  # of the author's hybrid clock, since 1970
    author: NodeId
    kind: str  # as in FactBody; "recorded" for what only an end still tells
    text: str
    fact_hash: bytes


def places_of(job: Job) -> list[FactRange]:
    """Where the facts of a job are stored."""
    return as_ranges(job.details_at | job.ends_at)


def story(job_id: bytes, facts: Iterable[Fact]) -> list[Event]:
    """Every fact that touched the job, each once, causes first."""
    of_job = {fact.hash: fact for fact in facts if job_of(fact) == job_id}
    ordered = sorted(of_job.values(), key=lambda fact: (fact.hybrid_clock, fact.author, fact.sequence, fact.stream_id))
    told = [
        Event(fact.hybrid_clock >> 16, fact.author, fact.kind, _text(fact.body, fact.kind), fact.hash)
        for fact in ordered
    ]
    if not any(event.kind == "job_submitted" for event in told):
        told = _recorded(ordered) + told
    return told


def _recorded(ends: Iterable[Fact]) -> list[Event]:
    for fact in ends:
        if fact.kind in TERMINAL_KINDS:
            record: facts_pb2.JobRecord = getattr(fact.body, fact.kind).record
            if record.accepted_by:
                text = f"accepted; {_many(record.tasks, 'task')} in its plan; its details are not kept any more"
                return [Event(record.hybrid_clock >> 16, NodeId(record.accepted_by), "recorded", text, fact.hash)]
    return []


def _text(body: facts_pb2.FactBody, kind: str) -> str:
    match kind:
        case "job_submitted":
            what = body.job_submitted.request.WhichOneof("kind") or "unknown work"
            return f"accepted: {what}, {_many(len(body.job_submitted.blobs), 'blob')}"
        case "job_planned":
            planned = body.job_planned
            return (
                f"planned: revision {planned.revision}, {_many(planned.task_count, 'task')},"
                f" plan {_short(planned.plan.sha256)}"
            )
        case "job_assigned":
            assigned = body.job_assigned
            where = ", ".join(
                f"{_task(record.task_index, record.replica)} to {_agent(record.agent)}"
                for record in assigned.assignments
            )
            why = f" ({assigned.method_reason})" if assigned.method_reason else ""
            return f"round {assigned.round}{_led(assigned.token)} by {assigned.method}{why}: {where or 'nothing'}"
        case "task_finished":
            finished = body.task_finished
            task = _task(finished.task_index, finished.replica)
            if finished.taken_from:
                done = f"done by {_agent(finished.agent)} for another plan: {_short(finished.result.sha256)}"
                return f"{task} taken over{_led(finished.token)}, {done}"
            if finished.WhichOneof("outcome") == "failure":
                return f"{task} failed on {_agent(finished.agent)}{_led(finished.token)}: {finished.failure.message}"
            return (
                f"{task} finished on {_agent(finished.agent)}{_led(finished.token)}: {_short(finished.result.sha256)}"
            )
        case "job_completed":
            completed = body.job_completed
            return f"completed{_led(completed.token)}: result {_short(completed.result.sha256)}"
        case "job_cancelled":
            return f"cancelled: {body.job_cancelled.reason or 'no reason given'}"
        case "job_failed":
            reasons = "; ".join(reason.message for reason in body.job_failed.reasons)
            return f"failed{_led(body.job_failed.token)}: {reasons or 'no reason given'}"
        case _:
            return f"evidence on {body.evidence.variable} by {_agent(body.evidence.agent)}"


def _many(count: int, word: str) -> str:
    return f"{count} {word}" + ("" if count == 1 else "s")


def _task(index: int, replica: int) -> str:
    return f"task {index}" + (f".{replica}" if replica else "")


def _agent(agent: common_pb2.AgentRef) -> str:
    return f"{agent.node_id[:8]}/{agent.agent}" if agent.node_id else "nobody"


def _led(token: common_pb2.FencingToken) -> str:
    return f" under {token.leader_id[:8]} in term {token.term}" if token.leader_id else ""


def _short(sha256: bytes) -> str:
    return sha256.hex()[:12]
