"""A small mesh in memory that does real jobs: real replicas on a virtual clock, made-up engines, planner and solver.

Idea: each `Desk` is a shell around one replica: its disk syncs after a moment, its engine takes virtual seconds a task
and tells progress four times a second, its planner makes a plan of as many tasks as the question asks for (with the
context "chain" each task needs the one before). Messages are serialised, as on a wire, and take a millisecond.

Faults: crash and start again, freeze a machine or its engine, tasks that kill their engine, cut links with or without
the ends hearing of it.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from mesh import effects, events
from mesh.dispatch import INPUTS_MISSING, TaskKey
from mesh.facts import Fact, StreamId, parse
from mesh.identity import NodeId, NodeKey
from mesh.intake import attempt_of
from mesh.journal import Position
from mesh.ledger import COMPLETED, Job
from mesh.replica import Replica
from mesh.standing import ENGINE_GONE, ENGINE_GONE_SHARED
from mesh.wire import common_pb2, facts_pb2, membership_pb2, mesh_pb2, work_pb2
from tests.mesh.building import BY_ID

WALL_MS = 1_790_000_000_000
DELAY_S, SYNC_S, FETCH_S, THINK_S, TICK_S, PROGRESS_S, BOOT_S = 0.001, 0.004, 0.02, 0.01, 0.05, 0.25, 1.0


def named(content: bytes) -> common_pb2.BlobRef:
    return common_pb2.BlobRef(sha256=hashlib.sha256(content).digest(), size_bytes=len(content))


class World:
    """Invariant after every event: each running replica validates."""

    def __init__(self, nodes: int = 3, slots: int = 1, task_s: float = 1.0) -> None:
        self.now = 0.0
        self.slots = slots
        self.task_s = task_s
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.cut: set[frozenset[NodeId]] = set()
        self.desks = [Desk(self, key) for key in BY_ID[:nodes]]
        self.by_id = {desk.me: desk for desk in self.desks}
        for desk in self.desks:
            desk.start()

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + seconds, next(self._order), call))

    def run(self, seconds: float) -> None:
        self.until(lambda: False, seconds, must=False)

    def until(self, reached: Callable[[], bool], seconds: float = 120.0, *, must: bool = True) -> float:
        """Let the world go on until it is so. Returns how long that took; fails where it never is."""
        began = self.now
        end = self.now + seconds
        while not reached():
            if not self._queue or self._queue[0][0] > end:
                assert not must, f"not within {seconds} s"
                self.now = end
                return seconds
            self.now, _, call = heapq.heappop(self._queue)
            call()
        return self.now - began

    def leader(self) -> Desk | None:
        """The one whom everybody that runs follows, if they agree."""
        said = {
            (token.leader_id if (token := desk.replica.election.leader) else "")
            for desk in self.desks
            if desk.running and not desk.frozen
        }
        return self.by_id[NodeId(said.pop())] if len(said) == 1 and "" not in said else None

    def settled(self) -> bool:
        """All see each other, agree on a leader, and know each other's agents."""
        up = [desk for desk in self.desks if desk.running and not desk.frozen]
        return self.leader() is not None and all(
            len(desk.replica.membership.view()) == len(up)
            and all(desk.replica.profiles.of(other.me) is not None for other in up)
            for desk in up
        )

    def ready(self) -> Desk:
        self.until(self.settled)
        leader = self.leader()
        assert leader is not None
        return leader

    def others(self, than: Desk) -> list[Desk]:
        return [desk for desk in self.desks if desk is not than]

    def connected(self, one: Desk, other: Desk) -> bool:
        return one.running and other.running and frozenset((one.me, other.me)) not in self.cut

    def set_cut(self, one: Desk, other: Desk, *, noticed: bool) -> None:
        """Nothing goes between them any more; `noticed`: their links break at once."""
        self.cut.add(frozenset((one.me, other.me)))
        if noticed:
            one.lose_link(other.me)
            other.lose_link(one.me)

    def heal(self) -> None:
        """All hear each other again, on new links where they had been cut."""
        for one, other in itertools.permutations(self.desks, 2):
            if frozenset((one.me, other.me)) in self.cut:
                one.lose_link(other.me)
        self.cut.clear()
        for one, other in itertools.permutations(self.desks, 2):
            one.link_to(other)

    def completed_everywhere(self, job_id: bytes) -> bool:
        return all(desk.job(job_id).state == COMPLETED for desk in self.desks if desk.running and not desk.frozen)


@dataclass
class Engine:
    """What runs on a node: each task moves a step every quarter of a second while the engine is not frozen."""

    running: dict[TaskKey, float] = field(default_factory=dict)  # work left, s
    assigns: dict[TaskKey, work_pb2.Assign] = field(default_factory=dict)  # the last one of each
    frozen: bool = False


class Desk:
    """One machine: what survives a crash is `facts`, `vote` and `blobs`."""

    def __init__(self, world: World, key: NodeKey) -> None:
        self.world = world
        self.key = key
        self.me = key.node_id
        self.facts: list[Fact] = []
        self.vote = (0, "")
        self.blobs: dict[bytes, bytes] = {}
        self.disk_full = False
        self.lives = 0
        self.running = False
        self.frozen = False
        self.waiting: list[Callable[[], None]] = []  # came while frozen
        self.links: set[NodeId] = set()
        self.engine = Engine()
        self.fails: Callable[[work_pb2.Task], bool] = lambda task: False
        self.failure_code = "engine-crashed"
        self.hangs: Callable[[work_pb2.Task], bool] = lambda task: False
        self.kills: Callable[[work_pb2.Task], bool] = lambda task: False
        self.chats = False  # somebody talks to its engine all the time
        self.deaths: list[list[TaskKey]] = []  # of its engine: what was in it
        self.no_plan: list[bool] = []  # of the next plans: whether that is final
        self.plans_backwards = False
        self.answers: dict[int, effects.AnswerSubmit] = {}
        self.started: list[tuple[float, work_pb2.Assign]] = []
        self.stopped: list[TaskKey] = []
        self.told: list[work_pb2.JobProgress] = []
        self.logs: list[str] = []
        self.replica = self._made()

    def _made(self) -> Replica:
        incarnation = self.lives + 1
        seed = int(self.me[:8], 16) + self.lives
        return Replica(self.key, incarnation, 100 + incarnation, random.Random(seed), slots=self.world.slots)

    # Life

    def start(self) -> None:
        assert not self.running
        self.lives += 1
        self.running = True
        self.frozen = False
        self.engine = Engine()
        self.replica = self._made()
        held = [common_pb2.BlobRef(sha256=name, size_bytes=len(content)) for name, content in self.blobs.items()]
        self.replica.restore(self.facts, *self.vote, blobs=held)
        for desk in getattr(self.world, "desks", ()):
            desk.link_to(self)
            self.link_to(desk)
        self._tick(self.lives)
        self.do(events.EngineChanged(ready=True))
        profile = facts_pb2.NodeProfile(name=self.me[:4], stores=True)
        abilities = ["generate", "chat"]
        profile.agents.add(agent="default", slots=self.world.slots, prefill_tokens_per_s=1e3, abilities=abilities)
        self.do(events.FactAuthored("node_profile", profile, self.wall_ms()))

    def crash(self) -> None:
        """Gone at once; the ends of its links hear of it."""
        self.running = False
        self.lives += 1
        self.links.clear()
        self.waiting.clear()
        for desk in self.world.others(self):
            desk.lose_link(self.me)

    def freeze(self) -> None:
        self.frozen = True

    def thaw(self) -> None:
        self.frozen = False
        waiting, self.waiting = self.waiting, []
        for call in waiting:
            self._in_this_life(call)()

    def freeze_engine(self, *, known: bool) -> None:
        """It does not move any more; `known`: its watchdog says so."""
        self.engine.frozen = True
        if known:
            self.do(events.EngineChanged(ready=True, stalled=True))

    def kill_engine(self) -> None:
        """With all that is in it; it starts again after a moment."""
        died, self.engine = self.engine, Engine()
        self.deaths.append(list(died.running))
        self.do(events.EngineChanged(ready=False))
        for key in died.running:
            finished = attempt_of(died.assigns[key])
            finished.failure.code = ENGINE_GONE if len(died.running) == 1 and not self.chats else ENGINE_GONE_SHARED
            self.do(events.TaskEnded(key, finished))
        self._later(BOOT_S, lambda: self.do(events.EngineChanged(ready=True)))

    def wall_ms(self) -> int:
        return WALL_MS + int(self.world.now * 1000)

    def link_to(self, other: Desk) -> None:
        if other is not self and self.world.connected(self, other) and other.me not in self.links:
            self.links.add(other.me)
            hello = membership_pb2.Hello(
                node_id=other.me,
                incarnation=other.replica.incarnation,
                life=other.replica.membership.life,
                name=other.me[:4],
                protocol_version=3,
                protocol_version_min=3,
            )
            self._later(DELAY_S, lambda: self.do(events.LinkOpened(hello)))

    def lose_link(self, peer: NodeId) -> None:
        if peer in self.links:
            self.links.discard(peer)
            self._later(DELAY_S, lambda: self.do(events.LinkClosed(peer)))

    # A client

    def submit(
        self, tasks: int = 1, *, chain: bool = False, document: bytes = b"", deadline_s: float = 5.0, words: str = ""
    ) -> bytes:
        """Hand in a job of so many tasks. Returns its id; the answer comes into `answers`, by its number."""
        request = work_pb2.JobRequest(ask=work_pb2.AskRequest(question=f"of {self.me}{words}", panel=tasks))
        request.ask.context = "chain" if chain else ""
        job_id = hashlib.sha256(f"{self.me}{self.world.now}{tasks}{chain}{words}".encode()).digest()
        refs = []
        if document:
            refs = [named(document)]
            self.store(document, None)
        submitted = facts_pb2.JobSubmitted(job_id=job_id, request=request, blobs=refs, client_key=b"k")
        self.resubmit(submitted, deadline_s)
        return job_id

    def resubmit(self, submitted: facts_pb2.JobSubmitted, deadline_s: float = 5.0) -> int:
        ticket = len(self.answers) + 1
        self.do(events.SubmitRequested(ticket, submitted, deadline_s))
        return ticket

    def job(self, job_id: bytes) -> Job:
        return self.replica.ledger.jobs.get(job_id) or Job(job_id)

    def says(self, kind: str, job_id: bytes) -> list[Fact]:
        """Facts of one kind and job that are durable here."""
        return [fact for fact in self.facts if fact.kind == kind and getattr(fact.body, kind).job_id == job_id]

    # The shell

    def do(self, event: events.Event) -> None:
        if not self.running:
            return
        caused = self.replica.handle(event, self.world.now)
        self.replica.validate()
        for effect in caused:
            self._perform(effect)

    def store(self, content: bytes, source: NodeId | None) -> common_pb2.BlobRef:
        ref = named(content)
        self.blobs[ref.sha256] = content
        self.do(events.BlobStored(ref, source))
        return ref

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        self.world.after(seconds, self._in_this_life(call))

    def _in_this_life(self, call: Callable[[], None]) -> Callable[[], None]:
        life = self.lives

        def run() -> None:
            if life != self.lives:
                return
            if self.frozen:
                self.waiting.append(call)
            else:
                call()

        return run

    def _tick(self, life: int) -> None:
        if life != self.lives:
            return
        if not self.frozen:
            self.do(events.Ticked(self.wall_ms()))
        self.world.after(TICK_S, lambda: self._tick(life))

    def _perform(self, effect: effects.Effect) -> None:
        match effect:
            case effects.Send(peer, message):
                self._send(peer, message)
            case effects.Persist(facts, source):

                def synced() -> None:
                    self.facts += facts
                    self.do(events.Persisted(facts, source))

                self._later(SYNC_S, synced)
            case effects.SaveVote(term, voted_for, then):

                def saved() -> None:
                    self.vote = (term, voted_for)
                    for inner in then:
                        self._perform(inner)
                    self.do(events.VoteSaved(term, voted_for))

                self._later(SYNC_S, saved)
            case effects.PushStored(peer, ranges):
                wanted = [
                    fact.signed
                    for asked in ranges
                    for fact in self.facts
                    if fact.stream_id == asked.stream_id and asked.first <= fact.sequence <= asked.last
                ]
                self._send(peer, mesh_pb2.LinkMessage(fact_push=facts_pb2.FactPush(facts=wanted)))
            case effects.Deliver(_, message) if message.WhichOneof("message") == "job_progress":
                self.told.append(message.job_progress)
            case effects.Log(_, text):
                self.logs.append(f"{self.world.now:.2f} {text}")
            case effects.AnswerSubmit(ticket):
                assert ticket not in self.answers
                self.answers[ticket] = effect
            case effects.FetchBlob(peer, ref):
                self._later(FETCH_S, lambda: self._fetched(peer, ref))
            case effects.StartTask(key, assign):
                self._start(key, assign)
            case effects.StopTask(key):
                self.stopped.append(key)
                if not self.engine.frozen and self.engine.running.pop(key, None) is not None:
                    self._later(DELAY_S, lambda: self.do(events.TaskStopped(key)))
            case effects.MakePlan(job_id, request, revision):
                self._later(THINK_S, lambda: self._plan(job_id, request, revision))
            case effects.ReadPlan(ref):
                self._later(THINK_S, lambda: self._read_plan(ref))
            case effects.Allocate():
                self._later(THINK_S, lambda: self.do(solved(effect)))
            case effects.Assemble():
                self._later(THINK_S, lambda: self.assemble(effect))
            case effects.CutStreams(ends):
                self._later(SYNC_S, lambda: self._cut_streams(dict(ends)))
            case effects.CutOff(node_id):
                self.world.set_cut(self, self.world.by_id[node_id], noticed=True)

    def _cut_streams(self, ends: dict[StreamId, Position]) -> None:
        self.facts = [
            fact for fact in self.facts if fact.stream_id not in ends or fact.sequence <= ends[fact.stream_id].sequence
        ]
        self.do(events.StreamsCut(tuple(ends), tuple(self.facts)))

    def _send(self, peer: NodeId, message: mesh_pb2.LinkMessage) -> None:
        assert peer != self.me, "a node writes to itself"
        if peer not in self.links:
            return
        other = self.world.by_id[peer]
        data = message.SerializeToString()

        def arrive() -> None:
            if self.world.connected(self, other):
                other._read(self.me, mesh_pb2.LinkMessage.FromString(data))

        self.world.after(DELAY_S, other._in_this_life(arrive))

    def _read(self, peer: NodeId, message: mesh_pb2.LinkMessage) -> None:
        if message.WhichOneof("message") == "fact_push":
            self.do(events.FactsVerified(peer, tuple(parse(signed) for signed in message.fact_push.facts)))
        else:
            self.do(events.Received(peer, message))

    def _fetched(self, peer: NodeId, ref: common_pb2.BlobRef) -> None:
        other = self.world.by_id[peer]
        content = other.blobs.get(ref.sha256) if self.world.connected(self, other) and not other.frozen else None
        if content is None or self.disk_full:
            self.do(events.BlobNotStored(ref, peer, refused=content is not None))
        else:
            self.store(content, peer)

    # Engine, planner

    def _start(self, key: TaskKey, assign: work_pb2.Assign) -> None:
        assert key not in self.engine.running
        assert len(self.engine.running) < self.world.slots
        self.started.append((self.world.now, assign))
        self.engine.running[key] = self.world.task_s
        self.engine.assigns[key] = assign
        self.engine.frozen = self.engine.frozen or self.hangs(assign.task)
        self._later(PROGRESS_S, lambda: self._step(key, assign))

    def _step(self, key: TaskKey, assign: work_pb2.Assign) -> None:
        if key not in self.engine.running:
            return
        if self.engine.frozen:
            self._later(PROGRESS_S, lambda: self._step(key, assign))
            return
        self.engine.running[key] -= PROGRESS_S
        if self.kills(assign.task) and self.engine.running[key] <= self.world.task_s / 2:
            self.kill_engine()
            return
        if self.engine.running[key] > 1e-9:
            if not (
                self.fails(assign.task) and self.failure_code == INPUTS_MISSING
            ):  # it looks for them before it works
                self.do(events.TaskProgressed(key, work_pb2.TaskProgress(output_tokens=1)))
            self._later(PROGRESS_S, lambda: self._step(key, assign))
            return
        del self.engine.running[key]
        finished = attempt_of(assign)
        if self.fails(assign.task):
            finished.failure.code = self.failure_code
        else:
            inputs = b"".join(ref.sha256 for ref in assign.inputs)
            finished.result.CopyFrom(self.store(b"result" + assign.task.SerializeToString() + inputs, None))
        self.do(events.TaskEnded(key, finished))

    def _plan(self, job_id: bytes, request: work_pb2.JobRequest, revision: int) -> None:
        if self.no_plan:
            problem = common_pb2.Problem(code="bad-document", message="no plan can be made")
            self.do(events.PlanFailed(job_id, problem, final=self.no_plan.pop(0)))
            return
        plan = work_pb2.Plan(job_id=job_id, revision=revision)
        for number in range(request.ask.panel):
            chained = request.ask.context == "chain" and number
            seed = request.ask.panel - 1 - number if self.plans_backwards else number
            task = plan.tasks.add(index=number, seed=seed, depends_on=[number - 1] if chained else [])
            task.answer.question = request.ask.question
        ref = self.store(plan.SerializeToString(deterministic=True), None)
        self.do(events.PlanMade(job_id, ref, plan))

    def _read_plan(self, ref: common_pb2.BlobRef) -> None:
        for desk in [self, *self.world.others(self)]:
            if ref.sha256 in desk.blobs and (desk is self or self.world.connected(self, desk)):
                self.do(events.PlanRead(ref, work_pb2.Plan.FromString(desk.blobs[ref.sha256])))
                return
        self.do(events.PlanRead(ref, None))

    def assemble(self, asked: effects.Assemble) -> None:
        reach = [self, *(desk for desk in self.world.others(self) if self.world.connected(self, desk))]
        for finished in asked.results:
            if all(finished.result.sha256 not in desk.blobs for desk in reach):
                problem = common_pb2.Problem(code=INPUTS_MISSING, message="a result")
                missing = finished.result.sha256
                self.do(events.Assembled(asked.job_id, asked.plan_sha256, None, problem, missing))
                return
        content = b"job" + b"".join(finished.result.sha256 for finished in asked.results)
        self.do(events.Assembled(asked.job_id, asked.plan_sha256, self.store(content, None)))


def solved(asked: effects.Allocate) -> events.Allocated:
    """The first agent with room that may have it; the less loaded first."""
    room = {(one.agent.node_id, one.agent.agent): one.slots_free for one in asked.agents if not one.draining}
    placed: list[tuple[TaskKey, facts_pb2.AssignmentRecord]] = []
    waiting: list[tuple[TaskKey, str]] = []
    for task in asked.tasks:
        able = [agent for agent, slots in sorted(room.items()) if slots > 0 and agent not in task.forbidden]
        if not able:
            waiting.append((task.key, "the agents that can do it have no free slot"))
            continue
        agent = max(able, key=lambda one: room[one])
        room[agent] -= 1
        ref = common_pb2.AgentRef(node_id=agent[0], agent=agent[1])
        record = facts_pb2.AssignmentRecord(task_index=task.key.ref.index, replica=task.key.ref.replica, agent=ref)
        placed.append((task.key, record))
    return events.Allocated(asked.round_number, tuple(placed), tuple(waiting), "first fit")
