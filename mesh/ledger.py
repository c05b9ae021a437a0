"""Jobs, as a fold over facts: what was asked, planned, decided, done, and how it ended.

Idea: the fold only collects (sets, and minima under a total order of fact content and hash), so it is commutative,
associative and idempotent: every node that holds the same facts reads the same jobs, whatever the order they came in.

A terminal fact closes its job: what the job reads as is then made of terminal facts only (`fingerprint`, `record_of`,
`alternatives`, `blobs_wanted`). What else is known of it are *details*: shown while they are kept, decided on never.

Rules: of plans the deepest revision wins, then the least plan hash. Of results of one task the least fact hash wins. Of
`completed` facts the least fact hash wins; completed > cancelled > failed > open. A terminal fact closes the job.

Does not: schedule anything, or know who is alive.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mesh.facts import Fact, Place
from mesh.identity import NodeId
from mesh.records import cut_request
from mesh.wire import common_pb2, facts_pb2, work_pb2
from mesh.wire.local_pb2 import JobState

OPEN = JobState.JOB_STATE_OPEN
COMPLETED = JobState.JOB_STATE_COMPLETED
CANCELLED = JobState.JOB_STATE_CANCELLED
FAILED = JobState.JOB_STATE_FAILED
TERMINAL_KINDS = frozenset({"job_completed", "job_cancelled", "job_failed"})
_FOLDED = TERMINAL_KINDS | {"job_submitted", "job_planned", "job_assigned", "task_finished"}
#: Every kind of fact that names a job.
_OF_JOBS = _FOLDED | {"evidence"}


@dataclass(frozen=True, order=True)
class TaskRef:
    """A task of a plan: panel members share an index and differ in the replica."""

    index: int
    replica: int


class Said(NamedTuple):
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
    details_at: set[Place] = field(default_factory=set)  # every fact of the job but its ends, the losing ones included
    ends_at: set[Place] = field(default_factory=set)  # every terminal fact

    @property
    def closed(self) -> bool:
        return bool(self.completed or self.cancelled or self.failed)

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

    @property
    def request(self) -> work_pb2.JobRequest | None:
        """What was asked. Of a closed job: as its end records it, long texts cut, where that end says it."""
        end = self.end
        if end is not None and end[1].record.HasField("request"):
            return end[1].record.request
        return self.submitted[1].request if self.submitted else None

    @property
    def end(self) -> tuple[Said, facts_pb2.JobCompleted | facts_pb2.JobCancelled | facts_pb2.JobFailed] | None:
        """The terminal fact that counts."""
        for ends in (self.completed, self.cancelled, self.failed):
            if ends:
                return ends[min(ends)]
        return None

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

    def results_of_other_plans(self) -> dict[bytes, list[tuple[Said, facts_pb2.TaskFinished]]]:
        """Successes of plans that do not count, by the key of their task; each in order of fact hash."""
        plan = self.plan
        others: dict[bytes, list[tuple[Said, facts_pb2.TaskFinished]]] = {}
        for _, (said, finished) in sorted(self.finished.items()):
            of_it = plan is not None and finished.plan_sha256 == plan.plan.sha256
            if not of_it and finished.task_key and finished.WhichOneof("outcome") == "result":
                others.setdefault(finished.task_key, []).append((said, finished))
        return others

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
    # Derived: the jobs that are not closed, the closed ones with details, and which jobs name a blob.
    _open: dict[bytes, Job] = field(default_factory=dict, compare=False)
    _detailed: dict[bytes, Job] = field(default_factory=dict, compare=False)
    _named_by: dict[bytes, set[bytes]] = field(default_factory=dict, compare=False)

    def apply(self, fact: Fact) -> bool:
        """Fold one fact in. Returns whether it was of this fold."""
        fact_hash, stream_id, sequence, _, hybrid_clock, kind, body, _, _ = fact
        if kind not in _FOLDED:
            return False
        content: Any = getattr(body, kind)  # read once: each reading makes an object, and a start folds many facts
        job_id = content.job_id
        job = self.jobs.get(job_id) or self._begin(job_id)
        said = Said(fact_hash, stream_id.author, hybrid_clock), content
        match kind:
            case "job_assigned":
                job.assigned[fact_hash] = said
            case "task_finished":
                job.finished[fact_hash] = said
                if content.HasField("result"):
                    self._name(job_id, content.result)
            case "job_submitted":
                if job.submitted is None or fact_hash < job.submitted[0].hash:
                    job.submitted = said
                for ref in content.blobs:
                    self._name(job_id, ref)
            case "job_planned":
                known = job.plans.get(content.plan.sha256)
                if known is None or (-content.revision, fact_hash) < (-known[1].revision, known[0].hash):
                    job.plans[content.plan.sha256] = said
                self._name(job_id, content.plan)
            case "job_completed":
                job.completed[fact_hash] = said
                for ref in _answer_and_document(content):
                    self._name(job_id, ref)
            case "job_cancelled":
                job.cancelled[fact_hash] = said
            case "job_failed":
                job.failed[fact_hash] = said
        if kind in TERMINAL_KINDS:
            job.ends_at.add(Place(stream_id, sequence))
            self._open.pop(job_id, None)
        else:
            job.details_at.add(Place(stream_id, sequence))
        if job_id not in self._open and job.details_at:
            self._detailed[job_id] = job
        return True

    def closed_with_details(self) -> list[Job]:
        """Closed jobs of which more is kept than their ends."""
        return list(self._detailed.values())

    def names(self, sha256: bytes) -> bool:
        """Whether any job names this blob."""
        return sha256 in self._named_by

    def open_jobs(self) -> list[Job]:
        """Jobs to work on, oldest first; ties by id."""
        ready = [job for job in self._open.values() if job.submitted is not None]
        return sorted(ready, key=lambda job: (job.submitted[0].hybrid_clock if job.submitted else 0, job.job_id))

    def record_of(self, job: Job) -> facts_pb2.JobRecord:
        """What a terminal fact says of its job; that of a closed job is the one its end carries."""
        end = job.end
        if end is not None:
            return end[1].record
        record = facts_pb2.JobRecord()
        if job.submitted is not None:
            said, submitted = job.submitted
            record.request.CopyFrom(cut_request(submitted.request))
            record.accepted_by = said.author
            record.hybrid_clock = said.hybrid_clock
        if job.plan is not None:
            record.tasks = job.plan.task_count
        return record

    def alternatives(self, job: Job) -> list[tuple[Said, facts_pb2.JobCompleted]]:
        """Other accepted answers: those of the losing side of a partition. In order of fact hash, each result once."""
        seen = {job.completion.result.sha256} if job.completion else set()
        others: list[tuple[Said, facts_pb2.JobCompleted]] = []
        for _, (said, completed) in sorted(job.completed.items()):
            if completed.result.sha256 not in seen:
                seen.add(completed.result.sha256)
                others.append((said, completed))
        return others

    def blobs_wanted(self, job: Job) -> list[common_pb2.BlobRef]:
        """What copies are kept of. Open: all that its work reads. Completed: each answer and the document. In order of
        hash, each once."""
        refs: list[common_pb2.BlobRef] = []
        if not job.closed:
            if job.submitted is not None:
                refs += job.submitted[1].blobs
            if job.plan is not None:
                refs.append(job.plan.plan)
            refs += _accepted_results(job)
        elif job.completed:
            refs += [ref for _, completed in job.completed.values() for ref in _answer_and_document(completed)]
        return _distinct(refs)

    def blobs_named(self, job: Job) -> list[common_pb2.BlobRef]:
        """`blobs_wanted`, and what the details that are still kept name: none of it may be dropped."""
        refs = self.blobs_wanted(job)
        if job.submitted is not None:
            refs += job.submitted[1].blobs
        refs += [planned.plan for _, planned in job.plans.values()]
        refs += [finished.result for _, finished in job.finished.values() if finished.WhichOneof("outcome") == "result"]
        return _distinct(refs)

    def forget_details(self, job_id: bytes, keep: Iterable[Place] = ()) -> set[bytes]:
        """Retention dropped everything of a closed job but its ends (`keep`: the places that it will drop later). What
        the job reads as does not change. Returns the blobs that no job names any more."""
        job = self.jobs[job_id]
        assert job.closed, "an open job is never touched"
        before = self.blobs_named(job)
        for part in (job.plans, job.assigned, job.finished):
            part.clear()
        job.submitted = None
        job.details_at = set(keep)
        if not job.details_at:
            self._detailed.pop(job_id, None)
        wanted = {ref.sha256 for ref in self.blobs_wanted(job)}
        return self._unname(job_id, (ref.sha256 for ref in before if ref.sha256 not in wanted))

    def forget(self, job_id: bytes) -> set[bytes]:
        """Retention dropped a closed job, its ends included. Returns the blobs that no job names any more."""
        job = self.jobs[job_id]
        assert job.closed, "an open job is never touched"
        del self.jobs[job_id]
        self._detailed.pop(job_id, None)
        return self._unname(job_id, [ref.sha256 for ref in self.blobs_named(job)])

    def clear(self) -> None:
        for part in (self.jobs, self._open, self._detailed, self._named_by):
            part.clear()

    def fingerprint(self) -> tuple[object, ...]:
        """A value that is equal exactly when two ledgers read the same. Of closed jobs only their ends count."""
        return tuple(_reading(job) for job in sorted(self.jobs.values(), key=lambda job: job.job_id))

    def _name(self, job_id: bytes, ref: common_pb2.BlobRef) -> None:
        name = ref.sha256
        by = self._named_by.get(name)
        if by is None:
            self._named_by[name] = {job_id}
        else:
            by.add(job_id)

    def _unname(self, job_id: bytes, names: Iterable[bytes]) -> set[bytes]:
        unnamed: set[bytes] = set()
        for name in names:
            by = self._named_by.get(name, set())
            by.discard(job_id)
            if not by:
                self._named_by.pop(name, None)
                unnamed.add(name)
        return unnamed

    def _begin(self, job_id: bytes) -> Job:
        job = self.jobs[job_id] = self._open[job_id] = Job(job_id)
        return job


def job_of(fact: Fact) -> bytes | None:
    """The job that a fact is about."""
    if fact.kind not in _OF_JOBS:
        return None
    job_id: bytes = getattr(fact.body, fact.kind).job_id
    return job_id or None


def _answer_and_document(completed: facts_pb2.JobCompleted) -> list[common_pb2.BlobRef]:
    request = completed.record.request
    return [completed.result, *([request.summarize.document] if request.HasField("summarize") else [])]


def _reading(job: Job) -> tuple[object, ...]:
    ends = _sorted_keys(job.completed, job.cancelled, job.failed)
    if job.closed:
        return job.job_id, job.state, ends
    return (
        job.job_id,
        job.state,
        job.submitted[0].hash if job.submitted else b"",
        tuple(sorted((key, said[0].hash) for key, said in job.plans.items())),
        _sorted_keys(job.assigned, job.finished),
    )


def _accepted_results(job: Job) -> list[common_pb2.BlobRef]:
    """Of each task of each plan the accepted one: a later plan may go on with the results of an earlier."""
    best: dict[tuple[bytes, int, int], bytes] = {}
    for fact_hash, (_, finished) in job.finished.items():
        if finished.WhichOneof("outcome") == "result":
            task = (finished.plan_sha256, finished.task_index, finished.replica)
            best[task] = min(fact_hash, best.get(task, fact_hash))
    return [job.finished[fact_hash][1].result for fact_hash in best.values()]


def _distinct(refs: Iterable[common_pb2.BlobRef]) -> list[common_pb2.BlobRef]:
    named = {ref.sha256: ref for ref in refs if ref.sha256}
    return [named[sha256] for sha256 in sorted(named)]


def _sorted_keys(*parts: Iterable[bytes]) -> tuple[tuple[bytes, ...], ...]:
    return tuple(tuple(sorted(part)) for part in parts)
