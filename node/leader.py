"""What the leader does: plan open jobs, allocate ready tasks, command workers, and end jobs.

Idea: one loop that looks at the whole state whenever something changed: facts folded in, a task event, a member lost, a
timer. Everything it decides becomes a fact first or at the same time; nothing in here must survive, because the next
leader finds plans and results in the ledger and running work in the workers' reports.

    open job ─ no plan ──▶ make it, store it, author `planned`
             ─ ready tasks ──▶ allocate in the solver process, author `assigned`, send `Assign` on the link
             ─ all done ──▶ assemble, store with copies, author `completed`
             ─ a task failed too often ──▶ author `failed` with the reasons

Does not: decide anything that another node's decision could contradict dangerously: two leaders at a time waste work
and nothing else (docs/promises.md).
"""

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Protocol

from google.protobuf.message import Message

from mesh.dispatch import REPORT_WAIT_S, Dispatch, InFlight, TaskKey
from mesh.facts import FACT_BYTES_MAX, Fact
from mesh.gossip import COPIES
from mesh.identity import NodeId
from mesh.ledger import OPEN, Job, TaskRef
from mesh.replica import Replica
from mesh.wire import common_pb2, facts_pb2, mesh_pb2, work_pb2
from node import clock
from node.blobs import Blobs
from node.engine.api import Engine
from node.errors import KithError
from node.logs import log, where
from node.planning import make_plan
from node.plans import Plans
from node.solver_process import SolverProcess
from solver.allocation import Allocation
from solver.assemble import ability_of, assemble, to_bytes
from solver.costs import AgentLoad, TaskNeed

#: The loop looks again after so long even when nothing happened.
LOOK_AGAIN_S = 0.5
#: Jobs looked at in one turn, oldest first: bounds a turn, not the queue.
JOBS_MAX = 64
#: Tasks given to one allocation round.
ROUND_TASKS_MAX = 256
#: A task that failed so often fails its job. Each attempt goes where it has not failed yet, while there is such a node.
FAILURES_MAX = 3
REPLICATE_S = 5.0
#: Assignments in one fact, so that it stays below the size limit with all its cost terms.
RECORDS_PER_FACT = FACT_BYTES_MAX // 512
PROGRESS_EVERY_S = 0.5


class Mesh(Protocol):
    """What the leader needs of the daemon."""

    def live_peers(self) -> list[NodeId]: ...

    def send_or_deliver(self, peer: NodeId, message: mesh_pb2.LinkMessage) -> None: ...

    def author(self, kind: str, content: Message) -> Awaitable[Fact]: ...


class Leader:
    def __init__(
        self, mesh: Mesh, replica: Replica, engine: Engine, blobs: Blobs, plans: Plans, solver: SolverProcess
    ) -> None:
        self._mesh = mesh
        self._replica = replica
        self._engine = engine
        self._blobs = blobs
        self._plans = plans
        self._solver = solver
        self.dispatch = Dispatch()
        self.token: common_pb2.FencingToken | None = None
        #: Why an open job does not move, in words; for `watch` and `jobs`.
        self.waiting_for: dict[bytes, str] = {}
        self._reports_due: set[NodeId] = set()
        self._report_deadline = 0.0
        self._rounds: dict[bytes, int] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._told_at = 0.0

    def lead(self, token: common_pb2.FencingToken) -> None:
        """This node was elected."""
        self.token = token
        self.dispatch.reset()
        self.waiting_for.clear()
        self._rounds.clear()
        self._reports_due = set(self._mesh.live_peers())
        self._report_deadline = clock.now() + REPORT_WAIT_S
        self._wake.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="leader")

    def concede(self) -> "asyncio.Task[None] | None":
        """This node leads no more, from this moment on. Returns the loop, cancelled, for who wants to see it end.

        Not a coroutine: it may lead again before one would run.
        """
        self.token = None
        self.dispatch.reset()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        return task

    def wake(self) -> None:
        self._wake.set()

    # Events

    def task_event(self, peer: NodeId, event: work_pb2.TaskEvent) -> None:
        if self.token is None:
            return
        if declined := self.dispatch.event_received(peer, event, clock.now()):
            log("info", f"{declined.key.label} was declined by {peer[:8]}: {event.declined.code}")
        if event.WhichOneof("event") != "progress":
            self._wake.set()

    def work_report(self, peer: NodeId, report: work_pb2.WorkReport) -> None:
        if self.token is None or report.token != self.token:
            return
        self.dispatch.reported(peer, report, clock.now())
        self._reports_due.discard(peer)
        self._wake.set()

    def member_gone(self, node_id: NodeId) -> None:
        self._reports_due.discard(node_id)
        for flight in self.dispatch.member_lost(node_id):
            log("info", f"{flight.key.label} was on {node_id[:8]}, which is gone: it is assigned again")
        self._wake.set()

    def fact_applied(self, fact: Fact) -> None:
        if fact.kind == "task_finished":
            finished = fact.body.task_finished
            self.dispatch.done(TaskKey(finished.job_id, TaskRef(finished.task_index, finished.replica)))
        self._wake.set()

    # The loop

    async def _run(self) -> None:
        while self.token is not None:
            # Not wait_for: in Python 3.11 it loses a cancellation that comes together with what it waits for.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AGAIN_S):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self._turn()
            except KithError as error:
                log("warning", f"leading: {error.message}")
            except Exception as error:
                # The next turn starts from the facts again; a fault in one job must not stop all others.
                log("error", f"leading: {where(error)}")

    async def _turn(self) -> None:
        now = clock.now()
        for flight in self.dispatch.tick(now):
            log("warning", f"{flight.key.label} on {flight.agent.node_id[:8]} made no progress: it is assigned again")
        self._tell_progress(now)
        if self._reports_due and now < self._report_deadline:
            asyncio.get_running_loop().call_later(self._report_deadline - now, self._wake.set)
            return
        ready: list[tuple[Job, facts_pb2.JobPlanned, work_pb2.Task]] = []
        for job in self._replica.ledger.open_jobs()[:JOBS_MAX]:
            try:
                ready += await self._advance(job)
            except KithError as error:
                self.waiting_for[job.job_id] = error.message
            if self.token is None:
                return
        if ready:
            await self._allocate(ready[:ROUND_TASKS_MAX])

    async def _advance(self, job: Job) -> list[tuple[Job, facts_pb2.JobPlanned, work_pb2.Task]]:
        """Take a job as far as it goes without workers. Returns its tasks that could run now."""
        if job.plan is None and not await self._make_plan(job):
            return []
        planned = job.plan
        assert planned is not None
        plan = await self._plans.get(planned.plan)
        results = job.results()
        failures = job.failures()
        done = {(ref.index, ref.replica) for ref in results}
        done_indexes = {task.index for task in plan.tasks} - {
            task.index for task in plan.tasks if (task.index, task.replica) not in done
        }
        ready = []
        for task in plan.tasks:
            ref = TaskRef(task.index, task.replica)
            if ref in results:
                continue
            if len(failed := failures.get(ref, [])) >= FAILURES_MAX:
                reasons = [one.failure for one in failed[:FAILURES_MAX]]
                await self._mesh.author("job_failed", facts_pb2.JobFailed(job_id=job.job_id, reasons=reasons))
                log("warning", f"job {job.job_id.hex()[:12]} failed: {reasons[0].code}")
                return []
            if TaskKey(job.job_id, ref) not in self.dispatch.in_flight and done_indexes.issuperset(task.depends_on):
                ready.append((job, planned, task))
        if len(done) == len(plan.tasks):
            await self._complete(job, planned, plan)
        return ready

    async def _make_plan(self, job: Job) -> bool:
        assert job.submitted is not None
        request = job.submitted[1].request
        document: str | None = None
        if request.WhichOneof("kind") == "summarize":
            document = (await self._blobs.get(request.summarize.document)).decode()
        if self._engine.state != "ready":
            self.waiting_for[job.job_id] = f"the leader's engine is {self._engine.state}"
            return False
        try:
            plan = await make_plan(job.job_id, request, document, self._engine)
        except KithError as error:
            if error.code.startswith("engine"):
                raise
            await self._mesh.author("job_failed", facts_pb2.JobFailed(job_id=job.job_id, reasons=[error.to_wire()]))
            return False
        ref = await self._blobs.put(to_bytes(plan))
        await self._blobs.replicate([ref], COPIES, REPLICATE_S)
        if job.plan is None and self.token is not None:
            planned = facts_pb2.JobPlanned(
                job_id=job.job_id, plan=ref, revision=plan.revision, task_count=len(plan.tasks)
            )
            await self._mesh.author("job_planned", planned)
            log("info", f"job {job.job_id.hex()[:12]} has a plan of {len(plan.tasks)} tasks")
        return job.plan is not None

    async def _complete(self, job: Job, planned: facts_pb2.JobPlanned, plan: work_pb2.Plan) -> None:
        assert job.submitted is not None
        request = job.submitted[1].request
        finished = job.results()
        results = {}
        agents = {}
        for ref, fact in finished.items():
            results[(ref.index, ref.replica)] = work_pb2.TaskResult.FromString(await self._blobs.get(fact.result))
            agents[(ref.index, ref.replica)] = (fact.agent, self.name_of(NodeId(fact.agent.node_id)), fact.model)
        document = None
        if request.WhichOneof("kind") == "summarize":
            document = (await self._blobs.get(request.summarize.document)).decode()
        result = await self._blobs.put(to_bytes(assemble(request, plan, results, agents, document)))
        await self._blobs.replicate([result], COPIES, REPLICATE_S)
        if self.token is None or job.state != OPEN:
            return
        completed = facts_pb2.JobCompleted(
            job_id=job.job_id,
            plan_sha256=planned.plan.sha256,
            result_sha256=[finished[TaskRef(task.index, task.replica)].result.sha256 for task in plan.tasks],
            result=result,
        )
        await self._mesh.author("job_completed", completed)
        self.waiting_for.pop(job.job_id, None)
        log("info", f"job {job.job_id.hex()[:12]} is completed")

    # Allocation

    def _live_agents(self) -> list[common_pb2.AgentRef]:
        agents = []
        for node_id in sorted(self._replica.membership.view()):
            profile = self._replica.profiles.of(node_id)
            for agent in profile.agents if profile else ():
                agents.append(common_pb2.AgentRef(node_id=node_id, agent=agent.agent))
        return agents

    def _agent_loads(self) -> list[AgentLoad]:
        loads = []
        for ref in self._live_agents():
            node_id = NodeId(ref.node_id)
            profile = self._replica.profiles.of(node_id)
            assert profile is not None
            agent = next(agent for agent in profile.agents if agent.agent == ref.agent)
            flights = [flight for flight in self.dispatch.on_node(node_id) if flight.agent.agent == ref.agent]
            member = self._replica.membership.members.get(node_id)
            loads.append(
                AgentLoad(
                    agent_id=agent_id(ref),
                    prefill_tokens_per_s=agent.prefill_tokens_per_s,
                    decode_tokens_per_s=agent.decode_tokens_per_s,
                    queued_prompt_tokens=sum(_prompt_left(flight) for flight in flights),
                    queued_output_tokens=sum(_output_left(flight) for flight in flights),
                    context_tokens=agent.context_tokens,
                    slots_free=0 if self.dispatch.rests(node_id, clock.now()) else max(0, agent.slots - len(flights)),
                    abilities=frozenset(agent.abilities),
                    model=agent.model,
                    draining=bool(member and member.load.draining),
                )
            )
        return loads

    def _need(self, job: Job, task: work_pb2.Task) -> TaskNeed:
        ref = TaskRef(task.index, task.replica)
        forbidden = {agent_id(failure.agent) for failure in job.failures().get(ref, [])}
        if forbidden >= {agent_id(agent) for agent in self._live_agents()}:
            forbidden = set()  # it failed everywhere: try again where it failed
        if task.panel:
            # Members of a panel sit on distinct agents, those that answered or are answering included.
            forbidden |= {agent_id(done.agent) for other, done in job.results().items() if other.index == task.index}
            forbidden |= {
                agent_id(flight.agent)
                for flight in self.dispatch.of_job(job.job_id)
                if flight.key.ref.index == task.index
            }
        return TaskNeed(
            task_id=f"{job.job_id.hex()}/{task.index}/{task.replica}",
            prompt_tokens=task.prompt_tokens_estimate,
            output_tokens=task.output_tokens_max,
            ability=ability_of(task),
            forbidden_agents=frozenset(forbidden),
            panel=f"{job.job_id.hex()}/{task.panel}" if task.panel else "",
        )

    async def _allocate(self, ready: list[tuple[Job, facts_pb2.JobPlanned, work_pb2.Task]]) -> None:
        loads = self._agent_loads()
        needs = {(need := self._need(job, task)).task_id: (need, job, planned, task) for job, planned, task in ready}
        free = sum(load.slots_free for load in loads)
        for _, job, _, _ in needs.values():
            if not self.dispatch.of_job(job.job_id):
                self.waiting_for[job.job_id] = "a free agent" if loads else "an agent: no engine is ready yet"
        if not free:
            return
        allocation = await self._solver.allocate(loads, [need for need, _, _, _ in needs.values()])
        for task_id, reason in [*allocation.waiting.items(), *allocation.infeasible.items()]:
            _, job, _, _ = needs[task_id]
            if not self.dispatch.of_job(job.job_id):
                self.waiting_for[job.job_id] = reason
        if self.token is None:
            return
        by_job: dict[bytes, list[facts_pb2.AssignmentRecord]] = {}
        live = self._replica.membership.view()
        for assigned in allocation.assignments:
            need, job, planned, task = needs[assigned.task_id]
            agent = agent_ref(assigned.agent_id)
            key = TaskKey(job.job_id, TaskRef(task.index, task.replica))
            # The world moved while the solver thought.
            if job.state != OPEN or key.ref in job.results() or key in self.dispatch.in_flight:
                continue
            if agent.node_id not in live:
                continue
            self._command(job, planned, task, agent, need)
            self.waiting_for.pop(job.job_id, None)
            record = facts_pb2.AssignmentRecord(
                task_index=task.index, replica=task.replica, agent=agent, cost_s=assigned.cost_s
            )
            record.terms.extend(facts_pb2.CostTerm(name=name, seconds=s) for name, s in assigned.terms.items())
            if assigned.runner_up_agent:
                record.runner_up.CopyFrom(agent_ref(assigned.runner_up_agent))
                record.runner_up_cost_s = assigned.runner_up_cost_s
            by_job.setdefault(job.job_id, []).append(record)
        for job_id, records in by_job.items():
            await self._record_round(job_id, records, allocation)

    def _command(
        self,
        job: Job,
        planned: facts_pb2.JobPlanned,
        task: work_pb2.Task,
        agent: common_pb2.AgentRef,
        need: TaskNeed,
    ) -> None:
        assert self.token is not None
        key = TaskKey(job.job_id, TaskRef(task.index, task.replica))
        log("debug", f"{key.label} goes to {agent.node_id[:8]}")
        attempt = self.dispatch.assigned(key, agent, clock.now(), need.prompt_tokens, need.output_tokens)
        results = job.results()
        assign = work_pb2.Assign(
            token=self.token,
            job_id=job.job_id,
            plan_sha256=planned.plan.sha256,
            task=task,
            inputs=[results[TaskRef(index, 0)].result for index in task.depends_on],
            attempt=attempt,
            agent=agent,
        )
        self._mesh.send_or_deliver(NodeId(agent.node_id), mesh_pb2.LinkMessage(assign=assign))

    async def _record_round(
        self, job_id: bytes, records: list[facts_pb2.AssignmentRecord], allocation: Allocation
    ) -> None:
        self._rounds[job_id] = self._rounds.get(job_id, 0) + 1
        for start in range(0, len(records), RECORDS_PER_FACT):
            assigned = facts_pb2.JobAssigned(
                job_id=job_id,
                token=self.token,
                round=self._rounds[job_id],
                assignments=records[start : start + RECORDS_PER_FACT],
                method=allocation.method,
                method_reason=allocation.method_reason,
                objective_s=allocation.objective_s,
                bound_s=allocation.bound_s,
                solve_seconds=allocation.solve_seconds,
            )
            await self._mesh.author("job_assigned", assigned)

    # Telling

    def _tell_progress(self, now: float) -> None:
        """Everyone who watches a job hears what runs, at most twice a second."""
        if now - self._told_at < PROGRESS_EVERY_S or self.token is None:
            return
        self._told_at = now
        for job_id in {flight.key.job_id for flight in self.dispatch.in_flight.values()}:
            message = mesh_pb2.LinkMessage(job_progress=self.progress_of(job_id))
            for peer in [self._replica.me, *self._mesh.live_peers()]:
                self._mesh.send_or_deliver(peer, message)

    def progress_of(self, job_id: bytes) -> work_pb2.JobProgress:
        progress = work_pb2.JobProgress(job_id=job_id, token=self.token)
        for flight in self.dispatch.of_job(job_id):
            progress.running.add(
                token=self.token,
                job_id=job_id,
                task_index=flight.key.ref.index,
                replica=flight.key.ref.replica,
                attempt=flight.attempt,
                agent=flight.agent,
                progress=flight.progress,
            )
        return progress

    def name_of(self, node_id: NodeId) -> str:
        profile = self._replica.profiles.of(node_id)
        return profile.name if profile else node_id[:8]


def agent_id(ref: common_pb2.AgentRef) -> str:
    return f"{ref.node_id}/{ref.agent}"


def agent_ref(text: str) -> common_pb2.AgentRef:
    node_id, _, agent = text.partition("/")
    return common_pb2.AgentRef(node_id=node_id, agent=agent)


def _prompt_left(flight: InFlight) -> int:
    return max(0, flight.prompt_tokens - (flight.progress.prompt_tokens_done if flight.progress else 0))


def _output_left(flight: InFlight) -> int:
    return max(0, flight.output_tokens - (flight.progress.output_tokens if flight.progress else 0))
