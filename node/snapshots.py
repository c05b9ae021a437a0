"""Jobs as people see them: the ledger's fold, the plan, and what the leader last said of running tasks."""

from collections.abc import Callable

from mesh.disclosure import Disclosure
from mesh.identity import NodeId
from mesh.ledger import CANCELLED, COMPLETED, FAILED, OPEN, Job, TaskRef
from mesh.replica import Replica
from mesh.wire import facts_pb2, local_pb2, work_pb2
from node.errors import KithError
from node.plans import Plans
from solver.assemble import task_label

TITLE_CHARS_MAX = 60
#: Jobs whose running tasks are remembered: progress is small and short-lived, but jobs are many.
PROGRESS_JOBS_MAX = 256
#: Of what is remembered of one; of a thousand tasks that run it is half. Threat: a member that fills the memory.
PROGRESS_BYTES_MAX = 256 << 10


class Snapshots:
    def __init__(self, replica: Replica, plans: Plans) -> None:
        self._replica = replica
        self._plans = plans
        self._progress: dict[bytes, work_pb2.JobProgress] = {}
        self._disclosure = Disclosure(replica)

    def restored(self, spreads: Callable[[NodeId], bool]) -> None:
        """What ended by the word of authors whose facts nobody else takes will never be held widely, and was shown.

        Such a journal was written before the node entered its mesh, together with nodes that never did.
        """
        for job in self._replica.ledger.jobs.values():
            if job.state == COMPLETED and not all(spreads(end.stream_id.author) for end in job.ends_at):
                self._disclosure.shown.add(job.job_id)

    def state_of(self, job: Job) -> "local_pb2.JobState.ValueType":
        """As clients see it."""
        return self._disclosure.state_of(job)

    def waiting_for(self, job: Job) -> str:
        """Why an open job does not move, in words; empty where it does, or where this node does not know."""
        if self.state_of(job) != OPEN:
            return ""
        if job.state == COMPLETED:
            return "copies of the result"
        if self._replica.election.leader is None:
            return "a leader"
        return self._replica.work.coordinator.waiting_for.get(job.job_id, "")

    def progress_received(self, progress: work_pb2.JobProgress) -> None:
        if progress.ByteSize() > PROGRESS_BYTES_MAX:
            return
        self._progress.pop(progress.job_id, None)
        self._progress[progress.job_id] = progress
        if len(self._progress) > PROGRESS_JOBS_MAX:
            del self._progress[next(iter(self._progress))]

    def name_of(self, node_id: str) -> str:
        profile = self._replica.profiles.of(NodeId(node_id))
        if profile:
            return profile.name
        member = self._replica.membership.members.get(NodeId(node_id))
        return member.name if member and member.name else node_id[:8]

    def summary_of(self, job: Job) -> local_pb2.JobSnapshot:
        """Without tasks."""
        snapshot = local_pb2.JobSnapshot(
            job_id=job.job_id,
            state=self.state_of(job),
            leader=self._replica.election.leader,
            superseded=bool(self._replica.ledger.alternatives(job)),
            waiting_for=self.waiting_for(job),
        )
        if job.request is not None:
            snapshot.kind = job.request.WhichOneof("kind") or ""
            snapshot.title = title_of(job.request)
        record = job.end[1].record if job.end is not None else facts_pb2.JobRecord()
        snapshot.submitted_ms, snapshot.submitted_by = record.hybrid_clock >> 16, record.accepted_by
        if job.submitted is not None:
            snapshot.submitted_ms, snapshot.submitted_by = job.submitted[0].time_ms, job.submitted[0].author
        if job.plan is not None:
            snapshot.tasks_total = job.plan.task_count
            snapshot.tasks_done = len(job.results())
        elif job.closed:
            snapshot.tasks_total = record.tasks
            snapshot.tasks_done = record.tasks if job.state == COMPLETED else 0
        if job.state == FAILED:
            for _, failed in job.failed.values():
                snapshot.reasons.extend(failed.reasons)
                break
        elif job.state == CANCELLED:
            cancelled = job.cancelled[min(job.cancelled)][1]
            snapshot.reasons.add(code="job-cancelled", message=cancelled.reason)
        return snapshot

    async def of(self, job: Job) -> local_pb2.JobSnapshot:
        """With every task, where the plan can be read."""
        snapshot = self.summary_of(job)
        if job.plan is None:
            return snapshot
        try:
            plan = await self._plans.get(job.plan.plan)
        except KithError as error:
            snapshot.waiting_for = error.message
            return snapshot
        results = job.results()
        failures = job.failures()
        assigned: dict[TaskRef, list[str]] = {}
        for _, round_ in job.rounds():
            for record in round_.assignments:
                assigned.setdefault(TaskRef(record.task_index, record.replica), []).append(record.agent.node_id)
        progress = self._progress.get(job.job_id)
        running = {TaskRef(event.task_index, event.replica): event for event in (progress.running if progress else ())}
        done = {ref.index for ref in results}
        for task in plan.tasks:
            ref = TaskRef(task.index, task.replica)
            shown = snapshot.tasks.add(
                index=task.index, replica=task.replica, label=task_label(task), attempts=len(assigned.get(ref, ()))
            )
            if ref in results:
                finished = results[ref]
                shown.state = "done"
                shown.agent.CopyFrom(finished.agent)
                shown.usage.CopyFrom(finished.usage)
                shown.model = finished.model
                usage = finished.usage
                shown.seconds = usage.queue_seconds + usage.prefill_seconds + usage.decode_seconds
            elif ref in running:
                shown.state = "running"
                shown.agent.CopyFrom(running[ref].agent)
                shown.progress.CopyFrom(running[ref].progress)
            elif ref in failures and not assigned.get(ref):
                shown.state = "failed"
            elif done.issuperset(task.depends_on):
                shown.state = "ready"
            else:
                shown.state = "waiting"
            if shown.HasField("agent"):
                shown.node_name = self.name_of(shown.agent.node_id)
        return snapshot


def title_of(request: work_pb2.JobRequest) -> str:
    """A job's name for people: the document's title, or the start of the question."""
    if request.WhichOneof("kind") == "summarize":
        title = request.summarize.title or request.summarize.source_name or "a document"
    else:
        title = request.ask.question
    title = " ".join(title.split())
    return title if len(title) <= TITLE_CHARS_MAX else title[: TITLE_CHARS_MAX - 1] + "…"
