"""A local door with a known world behind it: real messages over a real Unix socket, no daemon.

What the CLI prints can so be checked to the letter, and states that a real mesh reaches only by accident (no majority,
a failed job, a lost connection) are there at will. It shows nothing about the daemon; test_through_daemon.py does.

`python -m tests.node.cli.local_node DIR` runs it by hand, with a watch that takes its time, to look at the views.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from mesh.wire import common_pb2, engine_pb2, facts_pb2, local_pb2, local_pb2_grpc, membership_pb2, work_pb2
from node.errors import PROBLEM_KEY, KithError, grpc_status
from node.paths import NodePaths

DOCUMENT = "# Rivers\n\nThe Rhine rises in the Alps.\nIt ends in the North Sea.\n莱茵河流经六个国家。\n"
SUMMARY, PANEL, SPLIT, FAILED, CANCELLED, OPEN, ALONE = (
    bytes([n]) * 32 for n in (0xA1, 0xA2, 0xB1, 0xC1, 0xD1, 0xE1, 0xF1)
)
NODES = {"a" * 32: "anna", "b" * 32: "ben", "c" * 32: "clara\x1b[31m"}
IDS = list(NODES)


def agent_profile() -> facts_pb2.AgentProfile:
    return facts_pb2.AgentProfile(
        agent="default",
        backend="llama",
        model="SmolLM2-135M-Instruct",
        parameters=134_515_008,
        model_bytes=98_000_000,
        quantization="Q4_1",
        context_tokens=4096,
        slots=2,
        prefill_tokens_per_s=177.0,
        decode_tokens_per_s=51.2,
        abilities=["generate", "chat", "score"],
        licence="apache-2.0",
    )


def task(index: int, state: str, node: int = 0, **more: object) -> local_pb2.TaskSnapshot:
    working = state in ("running", "done")
    return local_pb2.TaskSnapshot(
        index=index,
        label=f"piece {index}",
        state=state,
        agent=common_pb2.AgentRef(node_id=IDS[node], agent="default") if working else None,
        node_name=NODES[IDS[node]] if working else "",
        attempts=int(working),
        usage=common_pb2.Usage(prompt_tokens=900, completion_tokens=60, decode_seconds=1.5)
        if state == "done"
        else None,
        seconds=6.5 if state == "done" else 0.0,
        progress=work_pb2.TaskProgress(output_tokens=12, tokens_per_s=40.5, phase="writing")
        if state == "running"
        else None,
        **more,  # type: ignore[arg-type]
    )


def job(
    job_id: bytes, state: local_pb2.JobState.ValueType, kind: str, title: str, done: int, total: int
) -> local_pb2.JobSnapshot:
    tasks = [task(i, "done" if i < done else "running" if i < done + 3 else "waiting", i % 3) for i in range(total)]
    return local_pb2.JobSnapshot(
        job_id=job_id,
        state=state,
        kind=kind,
        title=title,
        submitted_ms=1_700_000_000_000 + job_id[0],
        submitted_by=IDS[0],
        tasks_total=total,
        tasks_done=done,
        tasks=tasks,
        leader=common_pb2.FencingToken(term=3, leader_id=IDS[0]),
    )


def finished_jobs() -> dict[bytes, local_pb2.JobSnapshot]:
    done = local_pb2.JOB_STATE_COMPLETED
    found = [
        job(SUMMARY, done, "summarize", "Rivers", 5, 5),
        job(PANEL, done, "ask", "Which planet is the largest?", 3, 3),
        job(SPLIT, done, "ask", "Tea or coffee?", 2, 2),
        job(FAILED, local_pb2.JOB_STATE_FAILED, "summarize", "Bad", 0, 2),
        job(CANCELLED, local_pb2.JOB_STATE_CANCELLED, "ask", "Never mind", 0, 1),
        job(OPEN, local_pb2.JOB_STATE_OPEN, "summarize", "Long", 2, 9),
        job(ALONE, done, "ask", "Who?", 1, 1),
    ]
    found[3].reasons.add(code="engine-failed", message="the engine ran out of memory", remedy="use a smaller model")
    found[4].reasons.add(code="job-cancelled", message="the wrong file")
    return {one.job_id: one for one in found}


def ballot(node: int, answer: str, majority: bool, *probabilities: float) -> work_pb2.Ballot:
    return work_pb2.Ballot(
        agent=common_pb2.AgentRef(node_id=IDS[node], agent="default"),
        node_name=NODES[IDS[node]],
        model="SmolLM2-135M-Instruct",
        answer=answer,
        group=answer.lower(),
        probabilities=probabilities,
        in_majority=majority,
    )


def results() -> dict[bytes, work_pb2.JobResult]:
    alps = DOCUMENT.index("The Rhine")
    states = DOCUMENT.index("莱")
    sentences = [
        work_pb2.SummarySentence(
            text="The Rhine rises in the Alps.",
            sources=[work_pb2.Span(begin=alps, end=alps + 28)],
            support=1.0,
            verbatim=True,
        ),
        work_pb2.SummarySentence(
            text="It flows through six countries to the sea.",
            sources=[work_pb2.Span(begin=alps + 29, end=len(DOCUMENT)), work_pb2.Span(begin=states, end=states + 10)],
            support=0.62,
        ),
    ]
    summary = work_pb2.SummaryResult(
        summary=work_pb2.Summary(sentences=sentences), words_in=1234, words_out=14, pieces=4, levels=1
    )
    panel = work_pb2.PanelResult(
        answer="Jupiter",
        majority=True,
        votes_for=2,
        correlated=True,
        options=["Jupiter", "Saturn"],
        ballots=[
            ballot(0, "Jupiter", True, 0.8, 0.2),
            ballot(1, "Jupiter", True, 0.7, 0.3),
            ballot(2, "Saturn", False, 0.4, 0.6),
        ],
    )
    split = work_pb2.PanelResult(
        votes_for=1, correlated=True, ballots=[ballot(0, "Tea", False), ballot(1, "Coffee", False)]
    )
    alone = work_pb2.PanelResult(answer="Ada Lovelace.", majority=True, votes_for=1, ballots=[ballot(0, "Ada", True)])
    return {
        SUMMARY: work_pb2.JobResult(summary=summary),
        PANEL: work_pb2.JobResult(panel=panel),
        SPLIT: work_pb2.JobResult(panel=split),
        ALONE: work_pb2.JobResult(panel=alone),
    }


def with_alternatives() -> local_pb2.ResultReply:
    """A job that was finished twice: by ben with another answer, and by clara with one that nobody holds any more."""
    superseded = finished_jobs()[PANEL]
    superseded.superseded = True
    reply = local_pb2.ResultReply(job=superseded, result=results()[PANEL])
    for node, result in ((1, results()[ALONE]), (2, None)):
        reply.alternatives.add(
            fact_hash=bytes([node]) * 32,
            completed_by=IDS[node],
            completed_by_name=NODES[IDS[node]],
            time_ms=1_700_000_000_000,
            result=result,
        )
    return reply


class LocalNode(local_pb2_grpc.LocalServicer):
    """Serves the world above; `submitted`, `asked`, `cancelled` and `added` hold what clients sent."""

    def __init__(self, pause_s: float = 0.0) -> None:
        self.pause_s = pause_s
        self.jobs = finished_jobs()
        self.submitted: list[tuple[local_pb2.SubmitHeader, bytes, int]] = []
        self.asked: list[local_pb2.ChatRequest] = []
        self.cancelled: list[bytes] = []
        self.added: list[facts_pb2.KnowledgeAdded] = []
        self.next_job = SUMMARY
        self.chat_problem: KithError | None = None
        self.certificate_ends_ms = int((time.time() + 20 * 86_400 + 1800) * 1000)
        self.issuers = 2
        self.backed_up_ms = 0
        self.revoked = ""

    def _fail(self, context: grpc.ServicerContext, error: KithError) -> None:
        context.set_trailing_metadata(((PROBLEM_KEY, error.to_wire().SerializeToString()),))
        context.abort(grpc_status(error), error.message)

    def Status(self, request: local_pb2.StatusRequest, context: grpc.ServicerContext) -> local_pb2.StatusReply:
        return local_pb2.StatusReply(
            revoked=self.revoked,
            node_id=IDS[0],
            name="anna",
            software_version="0.1.0",
            uptime_s=3725.0,
            addresses=[
                common_pb2.NodeAddress(host="127.0.0.1", port=7420),
                common_pb2.NodeAddress(host="::1", port=7420),
            ],
            leader=common_pb2.FencingToken(term=3, leader_id=IDS[0]),
            role="leader",
            term=3,
            members_alive=3,
            load=membership_pb2.NodeLoad(slots_busy=1, slots_total=2),
            engine_state="ready",
            kv_cache="split",
            kv_cache_why="set so",
            agent=agent_profile(),
            jobs_open=1,
            facts=42,
            data_dir="/somewhere",
            pid=4711,
            mdns=True,
            solver_state="ready",
            mesh=local_pb2.MeshInfo(
                mesh_id="5" * 32,
                label="our\x1b room",
                role="issuer",
                certificate_ends_ms=self.certificate_ends_ms,
                issuers=self.issuers,
                backed_up_ms=self.backed_up_ms,
            ),
        )

    def Nodes(self, request: local_pb2.NodesRequest, context: grpc.ServicerContext) -> local_pb2.NodesReply:
        states = [
            membership_pb2.MEMBER_STATE_ALIVE,
            membership_pb2.MEMBER_STATE_ALIVE,
            membership_pb2.MEMBER_STATE_SUSPECT,
        ]
        return local_pb2.NodesReply(
            nodes=[
                local_pb2.NodeInfo(
                    node_id=node_id,
                    name=name,
                    state=states[i],
                    addresses=[common_pb2.NodeAddress(host="127.0.0.1", port=7420 + i)],
                    self=i == 0,
                    leader=i == 0,
                    profile=facts_pb2.NodeProfile(name=name, agents=[agent_profile()]),
                    load=membership_pb2.NodeLoad(slots_busy=i, slots_total=2),
                    found_by="" if i == 0 else "mdns",
                    last_heard_s=float(i),
                )
                for i, (node_id, name) in enumerate(NODES.items())
            ]
        )

    def Submit(
        self, request_iterator: Iterator[local_pb2.SubmitPart], context: grpc.ServicerContext
    ) -> local_pb2.SubmitReply:
        header = next(request_iterator).header
        parts = [part.document for part in request_iterator]
        self.submitted.append((header, b"".join(parts), len(parts)))
        if header.min_replicas > 2:
            self._fail(
                context, KithError("too-few-copies", "job a1a1a1a1a1a1 is held on 2 of 3 nodes", "wait for a node")
            )
        return local_pb2.SubmitReply(job_id=self.next_job, replicas=2, replicas_wanted=3)

    def Jobs(self, request: local_pb2.JobsRequest, context: grpc.ServicerContext) -> local_pb2.JobsReply:
        chosen = [one for one in self.jobs.values() if not request.open_only or one.state == local_pb2.JOB_STATE_OPEN]
        return local_pb2.JobsReply(jobs=chosen)

    def _job(self, job_id: bytes, context: grpc.ServicerContext) -> local_pb2.JobSnapshot:
        if job_id not in self.jobs:
            self._fail(context, KithError("job-unknown", "there is no such job here", "kith jobs lists them"))
        return self.jobs[job_id]

    def Watch(self, request: local_pb2.WatchRequest, context: grpc.ServicerContext) -> Iterator[local_pb2.JobSnapshot]:
        last = self._job(request.job_id, context)
        waiting = job(last.job_id, local_pb2.JOB_STATE_OPEN, last.kind, last.title, 0, 0)
        waiting.waiting_for = "a node that is free"
        yield waiting
        for done in range(last.tasks_done):
            time.sleep(self.pause_s)
            step = job(last.job_id, local_pb2.JOB_STATE_OPEN, last.kind, last.title, done, last.tasks_total)
            if done >= 2:
                step.leader.leader_id = IDS[1]
            yield step
        if last.state == local_pb2.JOB_STATE_OPEN:
            while context.is_active():  # open for as long as somebody watches
                yield last
                time.sleep(0.05)
        yield last

    def Result(self, request: local_pb2.ResultRequest, context: grpc.ServicerContext) -> local_pb2.ResultReply:
        one = self._job(request.job_id, context)
        if one.state == local_pb2.JOB_STATE_OPEN:
            self._fail(context, KithError("job-not-finished", "the job has not ended", "kith watch follows it"))
        if request.alternatives and one.superseded:
            return with_alternatives()
        document = DOCUMENT.encode() if one.kind == "summarize" else b""
        return local_pb2.ResultReply(job=one, result=results().get(request.job_id), document=document)

    def Cancel(self, request: local_pb2.CancelJobRequest, context: grpc.ServicerContext) -> local_pb2.CancelJobReply:
        one = self._job(request.job_id, context)
        self.cancelled.append(request.job_id)
        is_open = one.state == local_pb2.JOB_STATE_OPEN
        return local_pb2.CancelJobReply(outcome="requested" if is_open else "already-ended")

    def Explain(self, request: local_pb2.ExplainRequest, context: grpc.ServicerContext) -> local_pb2.ExplainReply:
        record = facts_pb2.AssignmentRecord(
            task_index=0,
            agent=common_pb2.AgentRef(node_id=IDS[0], agent="default"),
            cost_s=6.2,
            terms=[
                facts_pb2.CostTerm(name="prefill", seconds=5.1),
                facts_pb2.CostTerm(name="decode", seconds=1.1),
            ],
            runner_up=common_pb2.AgentRef(node_id=IDS[1], agent="default"),
            runner_up_cost_s=9.75,
        )
        lonely = facts_pb2.AssignmentRecord(
            task_index=1, agent=common_pb2.AgentRef(node_id=IDS[1], agent="default"), cost_s=9.8
        )
        token = common_pb2.FencingToken(term=3, leader_id=IDS[0])
        rounds = [
            facts_pb2.JobAssigned(
                job_id=request.job_id, token=token, round=1, assignments=[record, lonely], method="cvxpy/HIGHS",
                objective_s=16.0, bound_s=16.0, solve_seconds=0.021,
            ),
            facts_pb2.JobAssigned(
                job_id=request.job_id, token=token, round=2, assignments=[lonely], method="greedy",
                method_reason="the solver is still starting", objective_s=9.8,
            ),
        ]  # fmt: skip
        return local_pb2.ExplainReply(
            job=self._job(request.job_id, context),
            rounds=[local_pb2.ExplainedRound(assigned=one, leader_name="anna", time_ms=1) for one in rounds],
        )

    def Story(self, request: local_pb2.StoryRequest, context: grpc.ServicerContext) -> local_pb2.StoryReply:
        self._job(request.job_id, context)
        told = [
            ("job_submitted", 0, 0, "accepted"),
            ("job_planned", 40, 0, "5 tasks"),
            ("task_finished", 6540, 1, "task 0.0 has a result"),
            ("job_completed", 9000, 0, "completed\x1b[2J"),
        ]
        return local_pb2.StoryReply(
            events=[
                local_pb2.StoryEvent(
                    time_ms=1_700_000_000_000 + after, node_id=IDS[node], node_name=NODES[IDS[node]], kind=kind,
                    text=text, fact_hash=bytes([after % 251]) * 32,
                )
                for kind, after, node, text in told
            ]
        )  # fmt: skip

    def Chat(self, request: local_pb2.ChatRequest, context: grpc.ServicerContext) -> Iterator[local_pb2.ChatEvent]:
        self.asked.append(request)
        if self.chat_problem is not None:
            self._fail(context, self.chat_problem)
        yield local_pb2.ChatEvent(
            routed=local_pb2.ChatRouted(
                agent=common_pb2.AgentRef(node_id=IDS[0], agent="default"),
                node_name="anna",
                model="SmolLM2",
                cost_s=1.0,
            )
        )
        words = f"You said: {request.request.messages[-1].content}".split(" ")
        for index, word in enumerate(words):
            time.sleep(self.pause_s)
            delta = engine_pb2.GenerateEvent.Delta(text=(" " if index else "") + word, tokens=1)
            yield local_pb2.ChatEvent(generate=engine_pb2.GenerateEvent(delta=delta))
        finished = engine_pb2.GenerateEvent.Finished(
            reason="stop", usage=common_pb2.Usage(prompt_tokens=10, completion_tokens=len(words))
        )
        yield local_pb2.ChatEvent(generate=engine_pb2.GenerateEvent(finished=finished))

    def AddKnowledge(
        self, request: local_pb2.AddKnowledgeRequest, context: grpc.ServicerContext
    ) -> local_pb2.AddKnowledgeReply:
        self.added.append(request.item)
        return local_pb2.AddKnowledgeReply(item_id=bytes([len(self.added)]) * 32)

    def SearchKnowledge(
        self, request: local_pb2.SearchKnowledgeRequest, context: grpc.ServicerContext
    ) -> local_pb2.SearchKnowledgeReply:
        return local_pb2.SearchKnowledgeReply(
            hits=[
                local_pb2.KnowledgeHit(
                    item_id=bytes([i + 1]) * 32, title=item.title, text=item.text, source=item.source, tags=item.tags,
                    author_id=IDS[0], author_name="anna", score=1.0 / (i + 1), added_ms=1_700_000_000_000,
                )
                for i, item in enumerate(self.added)
                if request.query.lower() in item.text.lower()
            ][: request.limit or 10]
        )  # fmt: skip

    def Invite(
        self, request: local_pb2.InviteRequest, context: grpc.ServicerContext
    ) -> Iterator[local_pb2.InviteEvent]:
        self._fail(context, KithError("not-an-issuer", "this node does not hold the CA key", "Run it on anna."))
        yield local_pb2.InviteEvent()

    def Promote(self, request: local_pb2.PromoteRequest, context: grpc.ServicerContext) -> local_pb2.PromoteReply:
        self._fail(context, KithError("not-an-issuer", "this node does not hold the CA key", "Run it on anna."))
        return local_pb2.PromoteReply()

    def Revoke(self, request: local_pb2.RevokeRequest, context: grpc.ServicerContext) -> local_pb2.RevokeReply:
        self._fail(context, KithError("not-an-issuer", "this node does not hold the CA key", "Run it on anna."))
        return local_pb2.RevokeReply()

    def ShowModel(self, request: local_pb2.ShowModelRequest, context: grpc.ServicerContext) -> local_pb2.ShowModelReply:
        return local_pb2.ShowModelReply(
            agents=[agent_profile()],
            path="/models/smollm2.gguf",
            engine=engine_pb2.EngineLoaded(
                model="SmolLM2-135M-Instruct", parameters=134_515_008, model_bytes=98_000_000, quantization="Q4_1",
                context_tokens=4096, slots=2, threads=2, abilities=["generate"], load_seconds=0.4, architecture="llama",
                trained_context_tokens=8192, has_chat_template=True, licence="apache-2.0",
            ),
            calibrated=engine_pb2.Calibrated(prefill_tokens_per_s=177.0, decode_tokens_per_s=51.2),
        )  # fmt: skip

    def PullModel(
        self, request: local_pb2.PullModelRequest, context: grpc.ServicerContext
    ) -> Iterator[local_pb2.PullModelEvent]:
        size = 1 << 30
        for done in range(0, size + 1, size // 32):
            at = local_pb2.PullModelProgress(done_bytes=done, size_bytes=size, node_name=request.node)
            yield local_pb2.PullModelEvent(progress=at)
        name = request.name or f"{request.model or request.sha256.hex()}.gguf"
        pulled = local_pb2.PulledModel(path=f"/models/{name}", name=name, sha256=bytes(32), size_bytes=size)
        yield local_pb2.PullModelEvent(pulled=pulled)

    def Shutdown(self, request: local_pb2.ShutdownRequest, context: grpc.ServicerContext) -> local_pb2.ShutdownReply:
        return local_pb2.ShutdownReply(running_tasks=2)


def serve(data_dir: Path, node: LocalNode) -> grpc.Server:
    """Open the door of `data_dir`; the caller stops the server."""
    paths = NodePaths(data_dir)
    paths.run_dir.mkdir(mode=0o700, parents=True)
    server = grpc.server(ThreadPoolExecutor(8, thread_name_prefix="grpc-fake"))
    local_pb2_grpc.add_LocalServicer_to_server(node, server)
    server.add_insecure_port(paths.door)
    server.start()
    return server


if __name__ == "__main__":
    serve(Path(sys.argv[1]), LocalNode(pause_s=0.8)).wait_for_termination()
