"""The worker's side: which assignments a node takes, from whom, and what becomes of them.

Idea: a worker keeps the highest fencing token it has seen and starts a task only for the holder of it, and only when
that holder is the leader in its own live view; it declines lower tokens with its highest, so that a leader that was
replaced learns it. Work that runs goes on under a new leader, who is told about it at once.

    Assign ─ offered ─▶ StartTask ─▶ TaskEnded ─ push the result ─ copies, or time up ─▶ Author task_finished
                                                                              ─ durable ─▶ tell the leader: ended

Source for fencing: Kleppmann, "How to do distributed locking" (2016).

Does not: run anything (the shell does), retry, or choose.
"""

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field

from mesh.copies import Copies
from mesh.dispatch import COPYING, INPUTS_MISSING, TaskKey
from mesh.effects import Author, Effect, Log, Send, StartTask, StopTask
from mesh.election import token_order
from mesh.facts import Fact
from mesh.identity import NodeId
from mesh.ledger import TERMINAL_KINDS, TaskRef
from mesh.records import cut_text
from mesh.surroundings import Surroundings
from mesh.task_key import task_key
from mesh.wire import common_pb2, facts_pb2, mesh_pb2, work_pb2

#: How long a result waits for its copies before it is announced all the same.
REPLICATE_S = 3.0
#: An announcement that is not durable here after so long was lost with its stream (a proven fork): said again.
ANNOUNCE_AGAIN_S = 30.0
#: Progress of a task is told at most this often.
PROGRESS_EVERY_S = 0.25
#: Assignments remembered, so that one that comes twice is not run twice.
TAKEN_MAX = 1_000
#: Bytes of a failure's message that go into a fact.
MESSAGE_BYTES_MAX = 1_000
#: Failures that say nothing of the task: it is given back instead, to be tried when or where that is mended.
GIVEN_BACK = frozenset({INPUTS_MISSING, "engine-not-ready"})


@dataclass
class Running:
    """A task that was taken. `finished` is set once it has a result, which then waits for its copies."""

    assign: work_pb2.Assign
    progress: work_pb2.TaskProgress = field(default_factory=work_pb2.TaskProgress)
    told_at: float = float("-inf")
    stopping: bool = False
    finished: facts_pb2.TaskFinished | None = None
    announce_by: float = 0.0
    authored: bool = False
    task_key: bytes = b""

    @property
    def uses_engine(self) -> bool:
        return self.finished is None


@dataclass
class Intake:
    """Invariant: `highest` never goes down, but where its leader is denied; at most `slots` tasks use the engine."""

    around: Surroundings
    copies: Copies
    slots: int
    highest: common_pb2.FencingToken = field(default_factory=common_pb2.FencingToken)
    leader: common_pb2.FencingToken | None = None
    running: dict[TaskKey, Running] = field(default_factory=dict)
    engine_ready: bool = False
    engine_stalled: bool = False
    draining: bool = False
    _taken: OrderedDict[tuple[object, ...], None] = field(default_factory=OrderedDict)

    # From leaders

    def assigned(self, sender: NodeId, assign: work_pb2.Assign, now: float) -> list[Effect]:
        """Take the task or say why not."""
        key = key_of_assign(assign)
        attempt = (*token_order(assign.token), key, assign.attempt)
        if attempt in self._taken:
            return []  # the same message again
        problem = self.offered(sender, assign)
        event = event_of(Running(assign))
        effects: list[Effect] = []
        if problem is not None:
            event.token.CopyFrom(self.highest)
            event.declined.CopyFrom(problem)
            old = self.running.get(key)
            if problem.code == "other-plan" and old is not None:
                effects += self._stop(key, "the job has another plan now")
        else:
            self._taken[attempt] = None
            if len(self._taken) > TAKEN_MAX:
                self._taken.popitem(last=False)
            event.accepted.SetInParent()
            if key not in self.running:
                own = work_pb2.Assign()
                own.CopyFrom(assign)  # its token changes with the leader
                self.running[key] = Running(own, task_key=task_key(own.task, [ref.sha256 for ref in own.inputs]))
                effects.append(StartTask(key, assign))
            else:
                # The same task, assigned again by a leader that did not know: go on, under its token.
                self.running[key].assign.token.CopyFrom(assign.token)
                self.running[key].assign.attempt = assign.attempt
        return [*effects, _tell(sender, event)]

    def offered(self, sender: NodeId, assign: work_pb2.Assign) -> common_pb2.Problem | None:
        """Why a task is not taken; None where it is."""
        token = assign.token
        if token_order(token) < token_order(self.highest):
            return _refuse("stale-leader", f"a leader of term {self.highest.term} is known here")
        followed = self.leader is not None and token_order(self.leader) == token_order(token)
        if token.leader_id != sender or not followed or sender not in self.around.membership.view():
            return _refuse("not-leader", "the sender is not the leader in this node's view")
        self.highest = common_pb2.FencingToken(term=token.term, leader_id=token.leader_id)
        key = key_of_assign(assign)
        running = self.running.get(key)
        if running is not None and running.assign.plan_sha256 != assign.plan_sha256:
            return _refuse("other-plan", "the task of another plan still runs here")
        if running is not None and not running.stopping:
            return None
        if self.draining:
            return _refuse("node-draining", "this node is stopping")
        if (done := self._done_already(key, assign)) is not None:
            return done
        if not self.engine_ready:
            return _refuse("engine-not-ready", "the engine of this node is not ready")
        if self.engine_stalled:
            return _refuse("engine-stalled", "the engine of this node does not move")
        if running is not None or sum(one.uses_engine for one in self.running.values()) >= self.slots:
            return _refuse("busy", f"all {self.slots} slots are taken")
        return None

    def cancel_received(self, sender: NodeId, cancel: work_pb2.CancelTask) -> list[Effect]:
        """Stop a task, if the one who asks may ask."""
        key = TaskKey(cancel.job_id, TaskRef(cancel.task_index, cancel.replica))
        if cancel.token.leader_id != sender or token_order(cancel.token) < token_order(self.highest):
            return []
        return self._stop(key, cancel.reason)

    def leader_changed(self, token: common_pb2.FencingToken | None) -> list[Effect]:
        """Everything that runs here goes on under the new leader: tell it."""
        self.leader = token
        if token is None:
            return []
        if token_order(token) > token_order(self.highest):
            self.highest = common_pb2.FencingToken(term=token.term, leader_id=token.leader_id)
        report = work_pb2.WorkReport(token=token)
        for running in self.running.values():
            if not running.stopping:
                running.assign.token.CopyFrom(token)
                report.running.append(event_of(running))
        return [Send(NodeId(token.leader_id), mesh_pb2.LinkMessage(work_report=report))]

    def denied(self, node_id: NodeId) -> None:
        """A leader's word is worth nothing any more. What runs goes on under the next one."""
        if self.highest.leader_id == node_id:
            self.highest = common_pb2.FencingToken()
        if self.leader is not None and self.leader.leader_id == node_id:
            self.leader = None

    def withdraw(self) -> list[Effect]:
        """This node itself is denied: it takes no work, and what runs is of no use to anybody."""
        self.draining = True
        effects = [effect for key in list(self.running) for effect in self._stop(key, "this node is denied")]
        for key in [key for key, running in self.running.items() if running.authored]:
            del self.running[key]  # nobody will ever count it
        return effects

    # From the engine

    def engine_changed(self, *, ready: bool, stalled: bool) -> None:
        self.engine_ready = ready
        self.engine_stalled = stalled

    def progressed(self, key: TaskKey, progress: work_pb2.TaskProgress, now: float) -> list[Effect]:
        running = self.running.get(key)
        if running is None:
            return []
        running.progress.CopyFrom(progress)
        if now - running.told_at < PROGRESS_EVERY_S:
            return []
        running.told_at = now
        return [self._tell_leader(running, event_of(running))]

    def ended(self, key: TaskKey, finished: facts_pb2.TaskFinished, now: float) -> list[Effect]:
        """A task has its outcome: a success waits for copies, a failure is said at once."""
        if (running := self._left_the_engine(key)) is None:
            return []
        running.finished = facts_pb2.TaskFinished()
        running.finished.CopyFrom(finished)
        if finished.WhichOneof("outcome") != "result":
            if finished.failure.code in GIVEN_BACK:
                return self._give_back(key, running, finished.failure)
            running.finished.failure.message = cut_text(finished.failure.message, MESSAGE_BYTES_MAX)
            running.finished.failure.remedy = cut_text(finished.failure.remedy, MESSAGE_BYTES_MAX)
            return self._announce(key, running, now)
        running.announce_by = now + REPLICATE_S
        running.progress.phase = COPYING
        effects = self.copies.push([finished.result], running.announce_by, now)
        # The leader hears at once that the engine is free.
        return [*effects, self._tell_leader(running, event_of(running)), *self.look(now)]

    def stopped(self, key: TaskKey) -> list[Effect]:
        """A task ended without an outcome. A leader that did not ask for it hears so."""
        if (running := self._left_the_engine(key)) is None:
            return []
        return self._give_back(key, running, _refuse("stopped", "the task was stopped on its node"))

    def look(self, now: float) -> list[Effect]:
        """Announce results that have their copies, or waited for long enough."""
        effects: list[Effect] = []
        for key, running in list(self.running.items()):
            if running.finished is None:
                continue
            held = not running.authored and self.copies.enough([running.finished.result])
            if held or now >= running.announce_by:
                effects += self._announce(key, running, now)
        return effects

    def fact_applied(self, fact: Fact) -> list[Effect]:
        if fact.kind in TERMINAL_KINDS:
            return self._job_ended(getattr(fact.body, fact.kind).job_id)
        if fact.kind != "task_finished" or fact.author != self.around.me or fact.body.task_finished.taken_from:
            return []
        finished = fact.body.task_finished
        key = TaskKey(finished.job_id, TaskRef(finished.task_index, finished.replica))
        running = self.running.get(key)
        if running is None or not running.authored:
            return []
        del self.running[key]
        event = event_of(running)
        event.ended.fact_hash = fact.hash
        event.ended.success = finished.WhichOneof("outcome") == "result"
        return [self._tell_leader(running, event)]

    def announces(self, sha256: bytes) -> bool:
        return any(one.finished is not None and one.finished.result.sha256 == sha256 for one in self.running.values())

    def load(self, agents: Collection[str] | None = None) -> tuple[int, int]:
        """Upper bounds of the prompt and output tokens still to be worked through here, or by these agents of this
        node only."""
        prompt = output = 0
        for running in self.running.values():
            if running.uses_engine and (agents is None or running.assign.agent.agent in agents):
                task, progress = running.assign.task, running.progress
                prompt += max(0, task.prompt_tokens_estimate - progress.prompt_tokens_done)
                output += max(0, task.output_tokens_max - progress.output_tokens)
        return prompt, output

    def validate(self) -> None:
        assert sum(running.uses_engine for running in self.running.values()) <= self.slots
        assert len(self._taken) <= TAKEN_MAX

    # Inside

    def _done_already(self, key: TaskKey, assign: work_pb2.Assign) -> common_pb2.Problem | None:
        """The leader may lag behind: what has an end is not done again."""
        job = self.around.ledger.jobs.get(key.job_id)
        if job is None:
            return None
        if job.closed:
            return _refuse("job-ended", "the job has ended")
        if job.plan is not None and job.plan.plan.sha256 == assign.plan_sha256 and key.ref in job.results():
            return _refuse("task-done", "the task has a result")
        return None

    def _left_the_engine(self, key: TaskKey) -> Running | None:
        """The task, if it matters how it ended: one that was being stopped is simply over."""
        running = self.running.get(key)
        if running is None or running.finished is not None:
            return None
        if running.stopping:
            del self.running[key]
            return None
        return running

    def _announce(self, key: TaskKey, running: Running, now: float) -> list[Effect]:
        assert running.finished is not None
        running.authored = True
        running.announce_by = now + ANNOUNCE_AGAIN_S
        running.finished.token.CopyFrom(running.assign.token)
        outcome = running.finished.WhichOneof("outcome")
        said = "has a result" if outcome == "result" else f"failed: {running.finished.failure.code}"
        return [Author("task_finished", running.finished), Log("info", f"{key.label} {said}")]

    def _give_back(self, key: TaskKey, running: Running, why: common_pb2.Problem) -> list[Effect]:
        del self.running[key]
        event = event_of(running)
        event.declined.CopyFrom(why)
        return [self._tell_leader(running, event)]

    def _stop(self, key: TaskKey, reason: str) -> list[Effect]:
        running = self.running.get(key)
        if running is None or running.stopping or running.authored:
            return []
        if running.finished is not None:
            del self.running[key]  # its result was not announced yet, and is of no more use
            return []
        running.stopping = True
        return [StopTask(key, reason)]

    def _job_ended(self, job_id: bytes) -> list[Effect]:
        keys = [key for key in self.running if key.job_id == job_id]
        return [effect for key in keys for effect in self._stop(key, "the job has ended")]

    def _tell_leader(self, running: Running, event: work_pb2.TaskEvent) -> Effect:
        return _tell(NodeId(running.assign.token.leader_id), event)


def key_of_assign(assign: work_pb2.Assign) -> TaskKey:
    return TaskKey(assign.job_id, TaskRef(assign.task.index, assign.task.replica))


def event_of(running: Running) -> work_pb2.TaskEvent:
    """A task event about `running` that says how far it is."""
    assign = running.assign
    return work_pb2.TaskEvent(
        token=assign.token,
        job_id=assign.job_id,
        task_index=assign.task.index,
        replica=assign.task.replica,
        attempt=assign.attempt,
        agent=assign.agent,
        plan_sha256=assign.plan_sha256,
        task_key=running.task_key,
        progress=running.progress,
    )


def _tell(leader: NodeId, event: work_pb2.TaskEvent) -> Effect:
    return Send(leader, mesh_pb2.LinkMessage(task_event=event))


def _refuse(code: str, message: str) -> common_pb2.Problem:
    return common_pb2.Problem(code=code, message=message, remedy="The leader assigns the task elsewhere.")


def attempt_of(assign: work_pb2.Assign) -> facts_pb2.TaskFinished:
    """What an attempt was, to be told with how it ends; the outcome is left out."""
    return facts_pb2.TaskFinished(
        job_id=assign.job_id,
        plan_sha256=assign.plan_sha256,
        task_index=assign.task.index,
        replica=assign.task.replica,
        task_key=task_key(assign.task, [ref.sha256 for ref in assign.inputs]),
        agent=assign.agent,
    )
