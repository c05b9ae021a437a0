"""What the leader does: take open jobs from what was asked to what came out.

Idea: a turn looks at every open job whenever something changed: facts folded in, an answer, a member lost, a timer.
Everything it decides becomes a fact first or at the same time; nothing in here must survive, because the next leader
finds plans and results in the ledger and running work in the workers' reports.

    open job ─ no plan ──▶ MakePlan ─ its copies ─▶ Author job_planned
             ─ ready or late tasks ──▶ placement: Allocate ─▶ Assign on the link, Author job_assigned
             ─ all done ──▶ Assemble ─ its copies ─▶ Author job_completed
             ─ a task failed on enough nodes ──▶ Author job_failed with the reasons
             ─ its plan or a result is lost for good ──▶ MakePlan, a revision later: what is lost is done again

Does not: decide anything that another node's decision could contradict dangerously: two leaders at a time waste work
and nothing else (docs/guarantees.md).
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from google.protobuf.message import Message

from mesh import events
from mesh.copies import Copies
from mesh.dispatch import COPYING, INPUTS_MISSING, REPORT_WAIT_S, Dispatch, InFlight, TaskKey, key_of_event
from mesh.effects import Assemble, Author, Effect, Log, MakePlan, ReadPlan, Send
from mesh.facts import Fact
from mesh.identity import NodeId
from mesh.ledger import TERMINAL_KINDS, Job, TaskRef
from mesh.placement import Placement, Ready
from mesh.records import cut_text
from mesh.standing import FAILURES_MAX, Standing, failed_for_good, standing_of
from mesh.surroundings import Surroundings, is_lost
from mesh.takeover import Takeover
from mesh.telling import Telling
from mesh.wire import common_pb2, facts_pb2, mesh_pb2, work_pb2

#: A turn is taken after so long even when nothing happened, and not more often than this however much happens.
LOOK_AGAIN_S, TURN_EVERY_S = 0.5, 0.02
#: Jobs looked at in one turn, oldest first: bounds a turn, not the queue.
JOBS_MAX = 64
#: Plans that are made, read or results that are assembled at a time.
REQUESTS_MAX = 8
#: What could not be done is asked for again after this.
RETRY_S = 2.0
#: A plan or a result waits for its copies this long at most.
REPLICATE_S = 3.0
#: Bytes of the code, the message and the remedy of one reason in a `failed` fact.
REASON_BYTES_MAX = (100, 1_000, 500)
PLANS_KEPT_MAX = 2 * JOBS_MAX
#: What was said and is not durable here after so long was lost with its stream (a proven fork): said again.
SAY_AGAIN_S = 30.0
#: What a job that stands still reads is lost after so long with nobody in sight who holds it: longer than a start.
LOST_AFTER_S = 600.0


@dataclass(frozen=True)
class _Saying:
    """A fact that waits for the copies of what it names."""

    kind: str
    content: Message
    blob: common_pb2.BlobRef
    by: float


@dataclass
class Coordinator:
    """Invariant: idle without `token`. Of a job at most one request (`_asked`) or fact to say (`_saying`) is open."""

    around: Surroundings
    copies: Copies
    token: common_pb2.FencingToken | None = None
    dispatch: Dispatch = field(default_factory=Dispatch)
    #: Why an open job does not move, in words; for `watch` and `jobs`.
    waiting_for: dict[bytes, str] = field(default_factory=dict)
    placement: Placement = field(init=False)
    takeover: Takeover = field(init=False)
    telling: Telling = field(init=False)
    _plans: OrderedDict[bytes, work_pb2.Plan] = field(default_factory=OrderedDict)
    _asked: set[bytes] = field(default_factory=set)  # jobs and plans that the shell works on: answered, whoever leads
    _retry_at: dict[bytes, float] = field(default_factory=dict)
    _missing: dict[bytes, float] = field(default_factory=dict)  # jobs that lack content, since when
    _saying: dict[bytes, _Saying] = field(default_factory=dict)
    _assembled_from: dict[bytes, list[bytes]] = field(default_factory=dict)  # of what the shell puts together now
    _said: dict[tuple[bytes, str], float] = field(default_factory=dict)  # authored, not folded in yet, and when
    _reports_due: set[NodeId] = field(default_factory=set)
    _reports_by: float = 0.0
    _dirty: bool = False
    _turn_at: float = 0.0
    _standings: dict[bytes, Standing] = field(default_factory=dict)  # of open jobs, until a fact changes them

    def __post_init__(self) -> None:
        self.placement = Placement(self.around, self.dispatch, self.waiting_for)
        self.takeover = Takeover(self.around, self.copies, self.dispatch)
        self.telling = Telling(self.around, self.dispatch, self.waiting_for)

    # Leading

    def lead(self, token: common_pb2.FencingToken, now: float) -> None:
        """This node was elected."""
        self._forget()
        self.token = token
        self._reports_due = set(self.around.membership.live_peers())
        self._reports_by = now + REPORT_WAIT_S
        self._dirty = True

    def concede(self) -> None:
        """This node leads no more."""
        self._forget()
        self.token = None

    def _forget(self) -> None:
        self.dispatch.reset()
        self.placement.reset()
        self.takeover.reset()
        for part in (self.waiting_for, self._saying, self._assembled_from, self._retry_at, self._missing):
            part.clear()
        self._standings.clear()

    # Events

    def task_event(self, peer: NodeId, event: work_pb2.TaskEvent, now: float) -> list[Effect]:
        if self.token is None:
            return []
        if self.dispatch.find(peer, event) is None:
            return self._stray(peer, event, now)
        if event.WhichOneof("event") != "progress" or event.progress.phase == COPYING:  # then its engine is free
            self._dirty = True
        if event.progress.prompt_tokens_done or event.progress.output_tokens:
            self._missing.pop(event.job_id, None)  # it moves: the next loss counts from its own beginning
        declined = self.dispatch.event_received(peer, event, now)
        if declined is None:
            return []
        if event.declined.code == INPUTS_MISSING:
            self._missing.setdefault(event.job_id, now)
            standing = self._standings.get(event.job_id)
            for one in standing.ready if standing else ():
                if one.key == declined.key:
                    self.takeover.unreadable(event.job_id, [ref.sha256 for ref in one.inputs])
        return [Log("info", f"{declined.key.label} was declined by {peer[:8]}: {event.declined.code}")]

    def work_report(self, peer: NodeId, report: work_pb2.WorkReport, now: float) -> list[Effect]:
        if self.token is None or report.token != self.token:
            return []
        self._reports_due.discard(peer)
        self._dirty = True
        effects: list[Effect] = [
            Log("info", f"{flight.key.label} does not run on {peer[:8]} any more: it is assigned again")
            for flight in self.dispatch.not_running(peer, {key_of_event(event) for event in report.running})
        ]
        for event in report.running:
            if self.dispatch.find(peer, event) is None:
                effects += self._stray(peer, event, now)
        return effects

    def member_changed(self, node_id: NodeId) -> list[Effect]:
        if self.token is None:
            return []
        self._dirty = True
        if not is_lost(self.around, node_id):
            return []
        self._reports_due.discard(node_id)
        return [
            Log("info", f"{flight.key.label} was on {node_id[:8]}, which is gone: it is assigned again")
            for flight in self.dispatch.member_lost(node_id)
        ]

    def job_changed(self, job_id: bytes | None) -> None:
        """Facts about this job (None: any job) were folded in."""
        self._dirty = True
        if job_id is None:
            self._standings.clear()
        else:
            self._standings.pop(job_id, None)

    def fact_applied(self, fact: Fact, now: float) -> list[Effect]:
        if fact.kind in TERMINAL_KINDS:
            return self._job_ended(getattr(fact.body, fact.kind).job_id)
        if fact.kind == "job_planned":
            self._said.pop((fact.body.job_planned.job_id, fact.kind), None)
        if fact.kind == "task_finished":
            return self._task_finished(fact.body.task_finished, now)
        return []

    def plan_made(self, event: events.PlanMade, now: float) -> list[Effect]:
        self._answered(event.job_id)
        self._keep_plan(event.ref, event.plan)
        job = self.around.ledger.jobs.get(event.job_id)
        if self.token is None or job is None or job.closed:
            return []
        if job.plan is not None and event.plan.revision <= job.plan.revision:
            return []
        planned = facts_pb2.JobPlanned(
            job_id=event.job_id, plan=event.ref, revision=event.plan.revision, task_count=len(event.plan.tasks)
        )
        return self._say_with_copies(event.job_id, "job_planned", planned, event.ref, now)

    def plan_failed(self, event: events.PlanFailed, now: float) -> list[Effect]:
        self._answered(event.job_id)
        job = self.around.ledger.jobs.get(event.job_id)
        if self.token is None or job is None or job.closed:
            return []
        if event.final:
            return self._fail(job, [event.problem], now)
        self._later(job, event.problem.message, now)
        return []

    def plan_read(self, event: events.PlanRead, now: float) -> None:
        self._answered(event.ref.sha256)
        of_it = [job for job in self.around.ledger.open_jobs() if job.plan and job.plan.plan.sha256 == event.ref.sha256]
        if event.plan is None:
            self._retry_at[event.ref.sha256] = now + RETRY_S
            if self.token is not None:
                for job in of_it:
                    self._missing.setdefault(job.job_id, now)
        else:
            self._keep_plan(event.ref, event.plan)
            for job in of_it:
                self._missing.pop(job.job_id, None)

    def allocated(self, event: events.Allocated, now: float) -> list[Effect]:
        return self.placement.answered(event, self.token, now)

    def assembled(self, event: events.Assembled, now: float) -> list[Effect]:
        self._answered(event.job_id)
        job = self.around.ledger.jobs.get(event.job_id)
        if self.token is None or job is None or job.closed:
            return []
        if event.result is None:
            if event.problem is not None and event.problem.code == INPUTS_MISSING:
                self._missing.setdefault(job.job_id, now)
                self.takeover.unreadable(job.job_id, [event.missing])
            self._later(job, event.problem.message if event.problem else "the results", now)
            return []
        hashes = self._hashes(job, event.plan_sha256)
        if hashes is None or hashes != self._assembled_from.pop(job.job_id, None):
            return []  # another plan won meanwhile, or a result was taken back
        completed = facts_pb2.JobCompleted(
            job_id=event.job_id,
            plan_sha256=event.plan_sha256,
            result_sha256=hashes,
            result=event.result,
            record=self.around.ledger.record_of(job),
            token=self.token,
        )
        return self._say_with_copies(event.job_id, "job_completed", completed, event.result, now)

    def announces(self, sha256: bytes) -> bool:
        return any(saying.blob.sha256 == sha256 for saying in self._saying.values())

    def copies_changed(self, now: float) -> list[Effect]:
        """A peer holds more than before."""
        return self._say_what_has_copies(now)

    def look(self, now: float) -> list[Effect]:
        """Take a turn if something changed, or nothing did for a while."""
        if self.token is None or now < self._turn_at + (TURN_EVERY_S if self._dirty else LOOK_AGAIN_S):
            return []
        self._turn_at = now
        self._dirty = False
        return self._turn(self.token, now)

    def validate(self) -> None:
        self.dispatch.validate()
        assert self.token is not None or not (self.dispatch.in_flight or self._saying)
        assert len(self._asked) <= REQUESTS_MAX
        assert len(self._plans) <= PLANS_KEPT_MAX

    # A turn

    def _turn(self, token: common_pb2.FencingToken, now: float) -> list[Effect]:
        effects = self._expire(now)
        if self._reports_due and now < self._reports_by:
            self._dirty = True
            return effects
        effects += self._say_what_has_copies(now)
        ready: list[Ready] = []
        looked_at = 0
        for job in self.around.ledger.open_jobs():
            if self._waits(job, now):
                continue
            looked_at += 1
            if looked_at > JOBS_MAX:
                break
            advanced, tasks = self._advance(job, token, now)
            effects += advanced
            ready += tasks
        effects += self.placement.ask(ready, token, now)
        return [*effects, *self.telling.tell(token, now)]

    def _expire(self, now: float) -> list[Effect]:
        """Leases that ran out. Where the node is here all the same, the task failed on it."""
        effects: list[Effect] = []
        for flight in self.dispatch.tick(now):
            effects.append(Log("warning", f"{flight.key.label} on {flight.node_id[:8]} made no progress"))
            effects.append(self._cancel(flight, "it made no progress"))
            if flight.accepted and flight.node_id in self.around.membership.view():
                problem = common_pb2.Problem(code="no-progress", message="the task did not move on this node")
                failed = facts_pb2.TaskFinished(
                    job_id=flight.key.job_id,
                    plan_sha256=flight.plan_sha256,
                    task_index=flight.key.ref.index,
                    replica=flight.key.ref.replica,
                    agent=flight.agent,
                    failure=problem,
                    token=self.token,
                )
                effects.append(Author("task_finished", failed))
        return effects

    def _waits(self, job: Job, now: float) -> bool:
        """Whether a job waits for its time to be tried again: it takes nobody's place in a turn."""
        what = (job.job_id, job.plan.plan.sha256) if job.plan else (job.job_id,)
        return any(now < self._retry_at.get(one, now) for one in what)

    def _advance(self, job: Job, token: common_pb2.FencingToken, now: float) -> tuple[list[Effect], Sequence[Ready]]:
        """Take a job as far as it goes without workers. Returns its tasks that could run now."""
        if job.job_id in self._saying or any(self._just_said(job.job_id, kind, now) for kind in TERMINAL_KINDS):
            return [], []
        lost = now > self._missing.get(job.job_id, now) + LOST_AFTER_S
        if job.plan is None or lost:
            return self._make_plan(job, now), []
        plan = self._plans.get(job.plan.plan.sha256)
        if plan is None:
            return self._read_plan(job, job.plan.plan, now), []
        standing = self._standings.get(job.job_id)
        if standing is None:
            standing = self._standings[job.job_id] = standing_of(job, plan, job.plan.plan.sha256)
        for failed in standing.failed:
            if failed_for_good(self.around, failed):
                return self._fail(job, [one.failure for one in failed[:FAILURES_MAX]], now), []
        if standing.done:
            return self._assemble(job, plan, now), []
        effects: list[Effect] = []
        for flight in self.takeover.of_no_use(job, standing.ready):
            self.dispatch.given_up(flight)
            effects.append(self._cancel(flight, "the job has another plan now"))
        taken, ready = self.takeover.take(job, standing.ready, token, now)
        return effects + taken, ready

    # Requests to the shell

    def _make_plan(self, job: Job, now: float) -> list[Effect]:
        assert job.submitted is not None
        if self._just_said(job.job_id, "job_planned", now) or not self._may_ask(job.job_id, now):
            return []
        self.waiting_for[job.job_id] = "a plan"
        if job.plan is None:
            return [MakePlan(job.job_id, job.submitted[1].request)]
        self._missing[job.job_id] = now
        again = MakePlan(job.job_id, job.submitted[1].request, job.plan.revision + 1)
        return [Log("warning", f"job {job.job_id.hex()[:12]} lost content for good: it is planned again"), again]

    def _read_plan(self, job: Job, ref: common_pb2.BlobRef, now: float) -> list[Effect]:
        if not self._may_ask(ref.sha256, now):
            return []
        self.waiting_for[job.job_id] = "a node that holds its plan"
        return [ReadPlan(ref)]

    def _assemble(self, job: Job, plan: work_pb2.Plan, now: float) -> list[Effect]:
        assert job.submitted is not None
        assert job.plan is not None
        if not self._may_ask(job.job_id, now):
            return []
        results = job.results()
        finished = tuple(results[TaskRef(task.index, task.replica)] for task in plan.tasks)
        self._assembled_from[job.job_id] = [one.result.sha256 for one in finished]
        return [Assemble(job.job_id, job.submitted[1].request, job.plan.plan.sha256, plan, finished)]

    def _hashes(self, job: Job, plan_sha256: bytes) -> list[bytes] | None:
        """The results of a plan's tasks, in its order; None: another plan counts, or a denial or fork took one back."""
        plan = self._plans.get(plan_sha256)
        if plan is None or job.plan is None or job.plan.plan.sha256 != plan_sha256:
            return None
        results = job.results()
        refs = [TaskRef(task.index, task.replica) for task in plan.tasks]
        return [results[ref].result.sha256 for ref in refs] if all(ref in results for ref in refs) else None

    def _may_ask(self, what: bytes, now: float) -> bool:
        """Whether the shell may be asked about this job or plan now; if so, it counts as asked."""
        if what in self._asked or len(self._asked) >= REQUESTS_MAX or now < self._retry_at.get(what, now):
            return False
        self._asked.add(what)
        self._retry_at.pop(what, None)
        return True

    def _answered(self, what: bytes) -> None:
        self._asked.discard(what)
        self._dirty = True

    def _later(self, job: Job, why: str, now: float) -> None:
        self.waiting_for[job.job_id] = why
        self._retry_at[job.job_id] = now + RETRY_S

    def _keep_plan(self, ref: common_pb2.BlobRef, plan: work_pb2.Plan) -> None:
        self._plans[ref.sha256] = plan
        self._plans.move_to_end(ref.sha256)
        if len(self._plans) > PLANS_KEPT_MAX:
            self._plans.popitem(last=False)

    # Saying

    def _say_with_copies(
        self, job_id: bytes, kind: str, content: Message, blob: common_pb2.BlobRef, now: float
    ) -> list[Effect]:
        saying = _Saying(kind, content, blob, now + REPLICATE_S)
        self._saying[job_id] = saying
        self.waiting_for[job_id] = "copies of " + ("its plan" if kind == "job_planned" else "the result")
        return [*self.copies.push([blob], saying.by, now), *self._say_what_has_copies(now)]

    def _say_what_has_copies(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for job_id, saying in list(self._saying.items()):
            if now >= saying.by or self.copies.enough([saying.blob]):
                del self._saying[job_id]
                self._dirty = True
                if self._is_true_still(job_id, saying.content):
                    effects += self._say(job_id, saying.kind, saying.content, now)
        return effects

    def _is_true_still(self, job_id: bytes, content: Message) -> bool:
        """Whether the results that a completion names still count."""
        job = self.around.ledger.jobs.get(job_id)
        if job is not None and isinstance(content, facts_pb2.JobCompleted):
            return self._hashes(job, content.plan_sha256) == list(content.result_sha256)
        return job is not None

    def _say(self, job_id: bytes, kind: str, content: Message, now: float) -> list[Effect]:
        self._said[job_id, kind] = now
        self.waiting_for.pop(job_id, None)
        return [Author(kind, content), Log("info", f"job {job_id.hex()[:12]}: {kind.removeprefix('job_')}")]

    def _just_said(self, job_id: bytes, kind: str, now: float) -> bool:
        said_at = self._said.get((job_id, kind))
        return said_at is not None and now < said_at + SAY_AGAIN_S

    def _fail(self, job: Job, reasons: Sequence[common_pb2.Problem], now: float) -> list[Effect]:
        failed = facts_pb2.JobFailed(job_id=job.job_id, record=self.around.ledger.record_of(job), token=self.token)
        for reason in reasons:
            texts = zip((reason.code, reason.message, reason.remedy), REASON_BYTES_MAX, strict=True)
            code, message, remedy = (cut_text(text, limit) for text, limit in texts)
            failed.reasons.add(code=code, message=message, remedy=remedy)
        return self._say(job.job_id, "job_failed", failed, now)

    # What ends

    def _task_finished(self, finished: facts_pb2.TaskFinished, now: float) -> list[Effect]:
        key = TaskKey(finished.job_id, TaskRef(finished.task_index, finished.replica))
        node_id = NodeId(finished.agent.node_id)
        job = self.around.ledger.jobs.get(finished.job_id)
        plan = job.plan if job is not None else None
        of_the_plan = plan is not None and plan.plan.sha256 == finished.plan_sha256
        if finished.WhichOneof("outcome") != "result" or not of_the_plan:
            self.dispatch.ended(key, finished.plan_sha256, node_id)
            return []
        self.takeover.folded(key)
        taken_over = bool(finished.taken_from)
        if not taken_over:
            self._missing.pop(finished.job_id, None)  # it moves
        losers = [flight for flight in self.dispatch.done(key) if taken_over or flight.node_id != node_id]
        for loser in losers:
            if self.dispatch.why_late(loser, now):
                self.dispatch.taken_from(loser, now)
        return [self._cancel(loser, "another copy was faster") for loser in losers]

    def _job_ended(self, job_id: bytes) -> list[Effect]:
        for kind in (*TERMINAL_KINDS, "job_planned"):
            self._said.pop((job_id, kind), None)
        for part in (self.waiting_for, self._saying, self._retry_at, self._missing, self._assembled_from):
            part.pop(job_id, None)
        self.placement.job_ended(job_id)
        self.takeover.job_ended(job_id)
        return [self._cancel(flight, "the job has ended") for flight in self.dispatch.job_ended(job_id)]

    def _stray(self, peer: NodeId, event: work_pb2.TaskEvent, now: float) -> list[Effect]:
        """A worker runs what this leader did not give it, or took back: adopt it if it is of use, else stop it."""
        if event.WhichOneof("event") not in ("accepted", "progress") or event.agent.node_id != peer:
            return []
        key = TaskKey(event.job_id, TaskRef(event.task_index, event.replica))
        job = self.around.ledger.jobs.get(key.job_id)
        if job is None or job.plan is None:
            return []  # its facts may be on their way
        # What runs for another plan may serve this one: a turn decides by its key (takeover.py).
        may_serve = event.plan_sha256 in job.plans and bool(event.task_key)
        of_it = event.plan_sha256 == job.plan.plan.sha256 or may_serve
        of_use = not job.closed and of_it and key.ref not in job.results()
        if of_use and self.dispatch.adopt(peer, event.plan_sha256, event, now):
            return []
        return [self._cancel_on(peer, key, "its result is of no use")]

    def _cancel(self, flight: InFlight, reason: str) -> Effect:
        return self._cancel_on(flight.node_id, flight.key, reason)

    def _cancel_on(self, node_id: NodeId, key: TaskKey, reason: str) -> Effect:
        cancel = work_pb2.CancelTask(
            token=self.token, job_id=key.job_id, task_index=key.ref.index, replica=key.ref.replica, reason=reason
        )
        return Send(node_id, mesh_pb2.LinkMessage(cancel_task=cancel))
