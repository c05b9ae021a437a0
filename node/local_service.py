"""The local door: what the CLI and programs on this machine ask of the node (proto/local.proto)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc.aio

from mesh.ledger import CANCELLED, COMPLETED, FAILED, OPEN, Job
from mesh.wire import facts_pb2, local_pb2, local_pb2_grpc, work_pb2
from node.errors import ExitCode, KithError
from node.model_service import ModelService
from node.overview import node_infos, status_of
from node.rpc import abort
from node.stories import story_of
from node.submissions import DOCUMENT_BYTES_MAX
from node.trust_service import TrustService

if TYPE_CHECKING:
    from node.daemon import Daemon

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

#: Snapshots of one watched job a second at most.
WATCH_EVERY_S = 0.2
#: How often an answer that may not be shown yet is looked at.
DISCLOSED_EVERY_S = 0.03
#: A result that may not be shown yet is waited for so long: this node may learn later than others who holds it.
DISCLOSED_WITHIN_S = 5.0
#: Jobs that are listed before the loop turns to others: some milliseconds. Threat: a year of jobs takes a second.
JOBS_AT_ONCE = 200
REASON_CHARS_MAX = 500
KNOWLEDGE_TEXT_BYTES_MAX = 12 * 1024
SEARCH_LIMIT_MAX = 100
ALTERNATIVES_MAX = 20
DRAIN_S = 10.0


class LocalService(TrustService, ModelService, local_pb2_grpc.LocalServicer):
    def __init__(self, daemon: "Daemon") -> None:
        self._daemon = daemon
        self._replica = daemon.replica
        self._snapshots = daemon.snapshots

    # The node

    async def Status(self, request: local_pb2.StatusRequest, context: Context) -> local_pb2.StatusReply:
        return status_of(self._daemon)

    async def Nodes(self, request: local_pb2.NodesRequest, context: Context) -> local_pb2.NodesReply:
        return local_pb2.NodesReply(nodes=node_infos(self._daemon))

    async def Shutdown(self, request: local_pb2.ShutdownRequest, context: Context) -> local_pb2.ShutdownReply:
        running = self._daemon.worker.running
        self._daemon.request_stop(request.drain_s or DRAIN_S)
        return local_pb2.ShutdownReply(running_tasks=running)

    # Jobs

    async def Submit(
        self, request_iterator: AsyncIterator[local_pb2.SubmitPart], context: Context
    ) -> local_pb2.SubmitReply:
        header: local_pb2.SubmitHeader | None = None
        document = bytearray()
        async for part in request_iterator:
            if part.WhichOneof("part") == "header":
                header = part.header
            elif len(document) <= DOCUMENT_BYTES_MAX:
                document += part.document
        try:
            if header is None:
                raise KithError("bad-request", "the submission has no header", "Send it first.", ExitCode.BAD_INPUT)
            self._daemon.shell.require_may_author("job_submitted")
            return await self._daemon.submissions.submit(header, bytes(document))
        except KithError as error:
            await abort(context, error)

    async def Jobs(self, request: local_pb2.JobsRequest, context: Context) -> local_pb2.JobsReply:
        known = [job for job in self._replica.ledger.jobs.values() if job.request is not None]
        snapshots = []
        for count, job in enumerate(known, 1):
            snapshots.append(self._snapshots.summary_of(job))
            if count % JOBS_AT_ONCE == 0:
                await asyncio.sleep(0)
        snapshots.sort(key=lambda snapshot: (snapshot.submitted_ms, snapshot.job_id))
        shown = [one for one in snapshots if one.state == OPEN or not request.open_only]
        return local_pb2.JobsReply(jobs=shown)

    async def Watch(self, request: local_pb2.WatchRequest, context: Context) -> AsyncIterator[local_pb2.JobSnapshot]:
        job = await self._job(request.job_id, context)
        last: local_pb2.JobSnapshot | None = None
        while (job := self._replica.ledger.jobs.get(job.job_id, job)).request is not None:
            changed = self._daemon.change()
            snapshot = await self._snapshots.of(job)
            if snapshot != last:
                yield snapshot
                last = snapshot
            if snapshot.state != OPEN:
                return
            if job.closed:  # its end is still being copied, which is no change of the job
                await asyncio.sleep(DISCLOSED_EVERY_S)
                continue
            await asyncio.sleep(WATCH_EVERY_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2.0):
                    await changed.wait()

    async def Result(self, request: local_pb2.ResultRequest, context: Context) -> local_pb2.ResultReply:
        job = await self._job(request.job_id, context)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DISCLOSED_WITHIN_S):
                while job.closed and self._snapshots.state_of(job) == OPEN:  # noqa: ASYNC110 - gossip tells nobody
                    await asyncio.sleep(DISCLOSED_EVERY_S)
        try:
            reply = await self._result(job)
            if request.alternatives:
                reply.alternatives.extend(await self._alternatives(job))
            return reply
        except KithError as error:
            await abort(context, error)

    async def Cancel(self, request: local_pb2.CancelJobRequest, context: Context) -> local_pb2.CancelJobReply:
        job = await self._job(request.job_id, context)
        if job.closed:
            return local_pb2.CancelJobReply(outcome="already-ended")
        cancelled = facts_pb2.JobCancelled(
            job_id=job.job_id,
            reason=request.reason[:REASON_CHARS_MAX] or "asked for by the owner",
            record=self._replica.ledger.record_of(job),
        )
        try:
            await self._daemon.shell.author("job_cancelled", cancelled)
        except KithError as error:
            await abort(context, error)
        return local_pb2.CancelJobReply(outcome="requested")

    async def Explain(self, request: local_pb2.ExplainRequest, context: Context) -> local_pb2.ExplainReply:
        job = await self._job(request.job_id, context)
        reply = local_pb2.ExplainReply(job=await self._snapshots.of(job))
        for said, assigned in job.rounds():
            name = self._snapshots.name_of(assigned.token.leader_id)
            reply.rounds.add(assigned=assigned, leader_name=name, time_ms=said.time_ms)
        return reply

    async def Story(self, request: local_pb2.StoryRequest, context: Context) -> local_pb2.StoryReply:
        job = await self._job(request.job_id, context)
        nodes = [self._replica.me, *self._replica.membership.members]
        told = await story_of(job, self._daemon.store, nodes, self._snapshots.name_of)
        return local_pb2.StoryReply(events=told)

    # Dialogue and knowledge

    async def Chat(self, request: local_pb2.ChatRequest, context: Context) -> AsyncIterator[local_pb2.ChatEvent]:
        try:
            route = self._daemon.router.choose(request.request, request.model, request.node)
            left_s = context.time_remaining()
            routed = local_pb2.ChatRouted(
                agent=route.agent, node_name=route.node_name, model=route.model, cost_s=route.cost_s
            )
            yield local_pb2.ChatEvent(routed=routed)
            async with contextlib.aclosing(
                self._daemon.router.generate(route, request.request, "local", left_s)
            ) as events:
                async for event in events:
                    yield local_pb2.ChatEvent(generate=event)
        except KithError as error:
            await abort(context, error)

    async def AddKnowledge(
        self, request: local_pb2.AddKnowledgeRequest, context: Context
    ) -> local_pb2.AddKnowledgeReply:
        item = request.item
        if item.WhichOneof("content") != "text" or not item.text.strip():
            await abort(context, _bad_item("the item holds no text", "Give it some."))
        if item.ByteSize() > KNOWLEDGE_TEXT_BYTES_MAX:
            most = KNOWLEDGE_TEXT_BYTES_MAX
            await abort(
                context, _bad_item(f"the item is {item.ByteSize()} bytes, more than {most}", "Split it into several.")
            )
        try:
            fact = await self._daemon.shell.author("knowledge_added", item)
        except KithError as error:
            await abort(context, error)
        return local_pb2.AddKnowledgeReply(item_id=fact.hash)

    async def SearchKnowledge(
        self, request: local_pb2.SearchKnowledgeRequest, context: Context
    ) -> local_pb2.SearchKnowledgeReply:
        reply = local_pb2.SearchKnowledgeReply()
        limit = min(request.limit or 10, SEARCH_LIMIT_MAX)
        for score, item in self._replica.knowledge.search(request.query, limit):
            reply.hits.add(
                item_id=item.item_id,
                title=item.content.title,
                text=item.content.text,
                source=item.content.source,
                tags=item.content.tags,
                author_id=item.author,
                author_name=self._snapshots.name_of(item.author),
                score=score,
                added_ms=item.hybrid_clock >> 16,
            )
        return reply

    # Inside

    async def _job(self, job_id: bytes, context: Context) -> Job:
        job = self._replica.ledger.jobs.get(job_id)
        if job is None or job.request is None:
            text = f"no job {job_id.hex()[:12]} is known here"
            await abort(context, KithError("job-unknown", text, "`kith jobs` lists them.", ExitCode.NOT_FOUND))
        return job

    async def _result(self, job: Job) -> local_pb2.ResultReply:
        snapshot = await self._snapshots.of(job)
        short = job.job_id.hex()[:12]
        if snapshot.state == FAILED:
            why = snapshot.reasons[0].message if snapshot.reasons else "no reason was given"
            remedy = snapshot.reasons[0].remedy if snapshot.reasons else ""
            raise KithError("job-failed", f"job {short} failed: {why}", remedy or f"See `kith explain {short}`.")
        if snapshot.state == CANCELLED:
            text = f"job {short} was cancelled: {snapshot.reasons[0].message}"
            raise KithError("job-cancelled", text, "Submit it again.", ExitCode.CANCELLED)
        if snapshot.state != COMPLETED or job.completion is None or job.request is None:
            text = f"job {short} still runs: {snapshot.tasks_done} of {snapshot.tasks_total or '?'} tasks are done"
            if job.closed:
                text = f"job {short} is done, and waits for copies of its result"
            raise KithError("job-not-finished", text, f"Watch it: kith watch {short}", ExitCode.UNAVAILABLE)
        reply = local_pb2.ResultReply(job=snapshot)
        reply.result.CopyFrom(work_pb2.JobResult.FromString(await self._daemon.blobs.get(job.completion.result)))
        if job.request.WhichOneof("kind") == "summarize":
            with contextlib.suppress(KithError):
                reply.document = await self._daemon.blobs.get(job.request.summarize.document)
        return reply

    async def _alternatives(self, job: Job) -> list[local_pb2.AlternativeResult]:
        """The answers of groups that were cut off, as far as their copies can be read."""
        found = []
        for said, completed in self._replica.ledger.alternatives(job)[:ALTERNATIVES_MAX]:
            other = local_pb2.AlternativeResult(
                fact_hash=said.hash,
                completed_by=said.author,
                completed_by_name=self._snapshots.name_of(said.author),
                time_ms=said.time_ms,
            )
            with contextlib.suppress(KithError):
                other.result.CopyFrom(work_pb2.JobResult.FromString(await self._daemon.blobs.get(completed.result)))
            found.append(other)
        return found


def _bad_item(message: str, remedy: str) -> KithError:
    return KithError("bad-request", message, remedy, ExitCode.BAD_INPUT)
