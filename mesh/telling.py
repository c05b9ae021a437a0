"""What everyone who watches a job hears between facts: what runs of it where, and why nothing does.

Idea: the leader tells all live peers and its own shell, at most twice a second a job and in a bounded number of
messages: where there are many jobs and nodes, each job's turn comes less often.

Does not: say anything that must arrive; the next word replaces it.
"""

from dataclasses import dataclass

from mesh.dispatch import Dispatch
from mesh.effects import Deliver, Effect, Send
from mesh.surroundings import Surroundings
from mesh.wire import common_pb2, mesh_pb2, work_pb2

PROGRESS_EVERY_S = 0.5
#: In each of these intervals; one job is told of in any case.
MESSAGES_MAX = 512


@dataclass
class Telling:
    around: Surroundings
    dispatch: Dispatch
    waiting_for: dict[bytes, str]
    _told_at: float = 0.0
    _told_last: bytes = b""

    def tell(self, token: common_pb2.FencingToken, now: float) -> list[Effect]:
        if now - self._told_at < PROGRESS_EVERY_S:
            return []
        self._told_at = now
        peers = self.around.membership.live_peers()
        job_ids = sorted({key.job_id for key in self.dispatch.in_flight} | set(self.waiting_for))
        later = [job_id for job_id in job_ids if job_id > self._told_last]
        in_turn = [*later, *job_ids[: len(job_ids) - len(later)]]
        effects: list[Effect] = []
        for job_id in in_turn[: max(1, MESSAGES_MAX // (1 + len(peers)))]:
            self._told_last = job_id
            message = mesh_pb2.LinkMessage(job_progress=self.progress_of(job_id, token))
            effects.append(Deliver(self.around.me, message))
            effects += [Send(peer, message) for peer in peers]
        return effects

    def progress_of(self, job_id: bytes, token: common_pb2.FencingToken) -> work_pb2.JobProgress:
        progress = work_pb2.JobProgress(job_id=job_id, token=token, waiting_for=self.waiting_for.get(job_id, ""))
        for flight in self.dispatch.of_job(job_id):
            progress.running.add(
                token=token,
                job_id=job_id,
                task_index=flight.key.ref.index,
                replica=flight.key.ref.replica,
                attempt=flight.attempt,
                agent=flight.agent,
                plan_sha256=flight.plan_sha256,
                progress=flight.progress,
            )
        job = self.around.ledger.jobs.get(job_id)
        if job is not None and job.plan is not None:
            progress.tasks_done = len(job.results())
            progress.tasks_total = job.plan.task_count
        return progress
