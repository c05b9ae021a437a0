"""Jobs, as a fold over facts: what was asked, planned, decided, done, and how it ended.

Idea: the fold only collects (sets, and minima under a total order of fact content and hash), so it is commutative,
associative and idempotent: every node that holds the same facts reads the same jobs, whatever the order they came in.

Rules: of plans the deepest revision wins, then the least plan hash. Of results of one task the least fact hash wins. Of
`completed` facts the least fact hash wins; completed > cancelled > failed > open. A terminal fact closes the job.

Does not: schedule anything, or know who is alive.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from mesh.facts import Fact
from mesh.identity import NodeId
from mesh.wire import facts_pb2
from mesh.wire.local_pb2 import JobState

OPEN = JobState.JOB_STATE_OPEN
COMPLETED = JobState.JOB_STATE_COMPLETED
CANCELLED = JobState.JOB_STATE_CANCELLED
FAILED = JobState.JOB_STATE_FAILED


@dataclass(frozen=True, order=True)
class TaskRef:
    """A task of a plan: panel members share an index and differ in the replica."""

    index: int
    replica: int


@dataclass(frozen=True)
class Said:
    """A fact's content with what orders and dates it."""

    hash: bytes
    author: NodeId
    hybrid_clock: int

    @property
    def time_ms(self) -> int:
        return self.hybrid_clock >> 16


@dataclass
class Job:
    """Everything known of one job. `submitted` may be missing while its fact is still on its way."""

    job_id: bytes
    submitted: tuple[Said, facts_pb2.JobSubmitted] | None = None
    plans: dict[bytes, tuple[Said, facts_pb2.JobPlanned]] = field(default_factory=dict)  # by plan hash
    assigned: dict[bytes, tuple[Said, facts_pb2.JobAssigned]] = field(default_factory=dict)  # by fact hash
    finished: dict[bytes, tuple[Said, facts_pb2.TaskFinished]] = field(default_factory=dict)  # by fact hash
    completed: dict[bytes, tuple[Said, facts_pb2.JobCompleted]] = field(default_factory=dict)  # by fact hash
    cancelled: dict[bytes, tuple[Said, facts_pb2.JobCancelled]] = field(default_factory=dict)
    failed: dict[bytes, tuple[Said, facts_pb2.JobFailed]] = field(default_factory=dict)

    @property
    def state(self) -> "JobState.ValueType":
        if self.completed:
            return COMPLETED
        if self.cancelled:
            return CANCELLED
        return FAILED if self.failed else OPEN

    @property
    def plan(self) -> facts_pb2.JobPlanned | None:
        if not self.plans:
            return None
        return min((said[1] for said in self.plans.values()), key=lambda plan: (-plan.revision, plan.plan.sha256))

    @property
    def completion(self) -> facts_pb2.JobCompleted | None:
        return self.completed[min(self.completed)][1] if self.completed else None

    def results(self) -> dict[TaskRef, facts_pb2.TaskFinished]:
        """The accepted success of each finished task of the winning plan."""
        plan = self.plan
        if plan is None:
            return {}
        best: dict[TaskRef, bytes] = {}
        for fact_hash, (_, finished) in self.finished.items():
            if finished.plan_sha256 == plan.plan.sha256 and finished.WhichOneof("outcome") == "result":
                ref = TaskRef(finished.task_index, finished.replica)
                best[ref] = min(fact_hash, best.get(ref, fact_hash))
        return {ref: self.finished[fact_hash][1] for ref, fact_hash in sorted(best.items())}

    def failures(self) -> dict[TaskRef, list[facts_pb2.TaskFinished]]:
        """Failed attempts of the winning plan's tasks, in order of fact hash."""
        plan = self.plan
        failures: dict[TaskRef, list[facts_pb2.TaskFinished]] = {}
        for _, (_, finished) in sorted(self.finished.items()):
            if plan and finished.plan_sha256 == plan.plan.sha256 and finished.WhichOneof("outcome") == "failure":
                failures.setdefault(TaskRef(finished.task_index, finished.replica), []).append(finished)
        return failures

    def rounds(self) -> list[tuple[Said, facts_pb2.JobAssigned]]:
        """Allocation decisions in order of (term, leader, round)."""
        return sorted(
            self.assigned.values(),
            key=lambda said: (said[1].token.term, said[1].token.leader_id, said[1].round, said[0].hash),
        )


@dataclass
class Ledger:
    jobs: dict[bytes, Job] = field(default_factory=dict)

    def apply(self, fact: Fact) -> bool:
        """Fold one fact in. Returns whether it was of this fold."""
        match fact.kind:
            case "job_submitted":
                job = self._job(fact.body.job_submitted.job_id)
                said = (_said(fact), fact.body.job_submitted)
                if job.submitted is None or fact.hash < job.submitted[0].hash:
                    job.submitted = said
            case "job_planned":
                planned = fact.body.job_planned
                plans = self._job(planned.job_id).plans
                known = plans.get(planned.plan.sha256)
                if known is None or (-planned.revision, fact.hash) < (-known[1].revision, known[0].hash):
                    plans[planned.plan.sha256] = (_said(fact), planned)
            case "job_assigned":
                self._job(fact.body.job_assigned.job_id).assigned[fact.hash] = (_said(fact), fact.body.job_assigned)
            case "task_finished":
                self._job(fact.body.task_finished.job_id).finished[fact.hash] = (_said(fact), fact.body.task_finished)
            case "job_completed":
                self._job(fact.body.job_completed.job_id).completed[fact.hash] = (_said(fact), fact.body.job_completed)
            case "job_cancelled":
                self._job(fact.body.job_cancelled.job_id).cancelled[fact.hash] = (_said(fact), fact.body.job_cancelled)
            case "job_failed":
                self._job(fact.body.job_failed.job_id).failed[fact.hash] = (_said(fact), fact.body.job_failed)
            case _:
                return False
        return True

    def open_jobs(self) -> list[Job]:
        """Jobs to work on, oldest first; ties by id."""
        ready = [job for job in self.jobs.values() if job.state == OPEN and job.submitted is not None]
        return sorted(ready, key=lambda job: (job.submitted[0].hybrid_clock if job.submitted else 0, job.job_id))

    def fingerprint(self) -> tuple[object, ...]:
        """A value that is equal exactly when two ledgers read the same."""
        return tuple(
            (
                job.job_id,
                job.state,
                job.submitted[0].hash if job.submitted else b"",
                tuple(sorted((key, said[0].hash) for key, said in job.plans.items())),
                tuple(_sorted_keys(job.assigned, job.finished, job.completed, job.cancelled, job.failed)),
            )
            for job in sorted(self.jobs.values(), key=lambda job: job.job_id)
        )

    def _job(self, job_id: bytes) -> Job:
        return self.jobs.setdefault(job_id, Job(job_id))


def _said(fact: Fact) -> Said:
    return Said(fact.hash, fact.author, fact.hybrid_clock)


def _sorted_keys(*parts: Iterable[bytes]) -> list[tuple[bytes, ...]]:
    return [tuple(sorted(part)) for part in parts]
