"""The rest of a host's shell: what takes time beside the disk and the links. Transfers, plans, the solver, assembling.

Each is answered by its event once, whatever happens, unless the process ends. How a plan is made here: the request's
question spells the shape of the task graph, layer by layer ("3,1" is three tasks and one that reads them all).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mesh import effects, events
from mesh.dispatch import TaskKey
from mesh.identity import NodeId
from mesh.wire import common_pb2, facts_pb2, work_pb2
from tests.sim.disk import Write
from tests.sim.engine import Engine

if TYPE_CHECKING:
    from tests.sim.host import Host

#: A fetch from a peer that does not answer ends after so long.
FETCH_TIMEOUT_S = 30.0

Answered = Callable[[effects.AnswerSubmit], None]


class Labour:
    """Of one life of its host."""

    def __init__(self, host: Host, rng: random.Random) -> None:
        self.host = host
        self.life = host.life
        self.rng = rng
        self.engine = Engine(host, rng)
        self.plans: dict[bytes, work_pb2.Plan] = {}  # that its coordinator was given, by hash
        self._tickets: dict[int, Answered] = {}
        self._tickets_given = 0

    def perform(self, effect: effects.Effect) -> None:
        match effect:
            case effects.FetchBlob(peer, ref):
                self._fetch(peer, ref)
            case effects.AnswerSubmit(ticket):
                self.host.checks.jobs.submit_answered(self.host, effect)
                self._tickets.pop(ticket)(effect)
            case effects.StartTask(key, assign):
                self.host.checks.jobs.task_started(self.host, key, assign)
                self.engine.start(key, assign)
            case effects.StopTask(key):
                self.engine.stop(key)
            case effects.MakePlan(job_id, request, revision):
                self._after(self.rng.uniform(0.05, 1.5), lambda: self._make_plan(job_id, request, revision))
            case effects.ReadPlan(ref):
                self._after(self.rng.uniform(0.001, 0.3), lambda: self._read_plan(ref))
            case effects.Allocate():
                self._after(self.rng.uniform(0.005, 0.4), lambda: self._allocate(effect))
            case effects.Assemble():
                self._after(self.rng.uniform(0.005, 0.3), lambda: self._assemble(effect))
            case _:
                pass

    def submit(
        self, submitted: facts_pb2.JobSubmitted, documents: Sequence[bytes], deadline_s: float, answered: Answered
    ) -> None:
        """As node/submissions.py: keep what the job reads, then ask for it to be accepted."""
        self._tickets_given += 1
        ticket = self._tickets_given
        self._tickets[ticket] = answered

        def ask() -> None:
            self.host.checks.jobs.submit_asked(self.host, ticket, deadline_s)
            self.host.handle(events.SubmitRequested(ticket, submitted, deadline_s))

        if documents:
            self.keep(documents[0], lambda _: ask(), lambda: None)
        else:
            ask()

    # Blobs

    def keep(self, content: bytes, stored: Callable[[common_pb2.BlobRef], None], refused: Callable[[], None]) -> None:
        """Store what this node made."""
        ref = ref_of(content)
        if self.host.disk.full:
            self._after(0.0, refused)
            return

        def done() -> None:
            self.host.handle(events.BlobStored(ref))
            self.host.run(lambda: stored(ref), self.life)

        self.host.disk.write(Write(blobs=[(ref.sha256, content)], done=lambda: self.host.run(done, self.life)))

    def reach(self, sha256: bytes) -> bytes | None:
        """The content, from this disk or from a peer that answers now."""
        if sha256 in self.host.disk.content.blobs:
            return self.host.disk.content.blobs[sha256]
        for peer in self.host.network.hosts:
            if self._answers(peer) and sha256 in peer.disk.content.blobs:
                return peer.disk.content.blobs[sha256]
        return None

    def _answers(self, peer: Host) -> bool:
        network = self.host.network
        blocked = network.is_blocked(self.host, peer) or network.is_blocked(peer, self.host)
        return peer.id in self.host.links and peer.replica is not None and not peer.paused and not blocked

    def _fetch(self, peer_id: NodeId, ref: common_pb2.BlobRef) -> None:
        peer = next(host for host in self.host.network.hosts if host.id == peer_id)

        def arrive() -> None:
            content = peer.disk.content.blobs.get(ref.sha256) if self._answers(peer) else None
            if self.host.disk.full:
                self.host.handle(events.BlobNotStored(ref, peer_id, refused=True))
            elif content is None:
                late_s = 0.0 if self._answers(peer) else self.rng.uniform(0.1, FETCH_TIMEOUT_S)
                self._after(late_s, lambda: self.host.handle(events.BlobNotStored(ref, peer_id)))
            else:
                held = content
                self.host.disk.write(
                    Write(
                        blobs=[(ref.sha256, held)],
                        done=lambda: self.host.deliver(events.BlobStored(ref, peer_id), self.life),
                    )
                )

        self._after(self.rng.uniform(0.001, 0.1), arrive)

    # A leader's work

    def _make_plan(self, job_id: bytes, request: work_pb2.JobRequest, revision: int) -> None:
        words = request.ask.question
        if "nonsense" in words:
            problem = common_pb2.Problem(code="no-plan", message="nothing can be made of it")
            self.host.handle(events.PlanFailed(job_id, problem, final=True))
            return
        if self.host.has_agent and not self.engine.ready:
            problem = common_pb2.Problem(code="engine-not-ready", message="the leader's engine is not ready")
            self.host.handle(events.PlanFailed(job_id, problem, final=False))
            return
        plan = plan_of(job_id, request, self.host.index)
        plan.revision = revision
        content = plan.SerializeToString(deterministic=True)

        def stored(ref: common_pb2.BlobRef) -> None:
            self.plans[ref.sha256] = plan
            self.host.handle(events.PlanMade(job_id, ref, plan))

        def refused() -> None:
            problem = common_pb2.Problem(code="disk-full", message="no room for the plan")
            self.host.handle(events.PlanFailed(job_id, problem, final=False))

        self.keep(content, stored, refused)

    def _read_plan(self, ref: common_pb2.BlobRef) -> None:
        content = self.reach(ref.sha256)
        plan = work_pb2.Plan.FromString(content) if content is not None else None
        if plan is not None:
            self.plans[ref.sha256] = plan
        self.host.handle(events.PlanRead(ref, plan))

    def _allocate(self, asked: effects.Allocate) -> None:
        """Each task to the freest agent that may have it."""
        free = {
            (state.agent.node_id, state.agent.agent): (state.slots_free, state)
            for state in asked.agents
            if state.slots_free > 0 and not state.draining
        }
        seated: set[tuple[str, tuple[str, str]]] = set()
        placements: list[tuple[TaskKey, facts_pb2.AssignmentRecord]] = []
        waiting: list[tuple[TaskKey, str]] = []
        for ready in asked.tasks:
            fit = [
                (slots, name)
                for name, (slots, _) in free.items()
                if slots > 0 and name not in ready.forbidden and not (ready.panel and (ready.panel, name) in seated)
            ]
            if not fit:
                waiting.append((ready.key, "a free agent"))
                continue
            _, name = max(fit)
            free[name] = (free[name][0] - 1, free[name][1])
            seated.add((ready.panel, name))
            record = facts_pb2.AssignmentRecord(
                task_index=ready.key.ref.index, replica=ready.key.ref.replica, agent=free[name][1].agent, cost_s=1.0
            )
            placements.append((ready.key, record))
        self.host.handle(events.Allocated(asked.round_number, tuple(placements), tuple(waiting), "simulated"))

    def _assemble(self, asked: effects.Assemble) -> None:
        read = [self.reach(finished.result.sha256) for finished in asked.results]
        if any(content is None for content in read):
            problem = common_pb2.Problem(code="blob-missing", message="a result is out of reach")
            missing = asked.results[read.index(None)].result.sha256
            self.host.handle(events.Assembled(asked.job_id, asked.plan_sha256, None, problem, missing))
            return
        content = b"result of " + hashlib.sha256(asked.job_id + b"".join(part or b"" for part in read)).digest()

        def stored(ref: common_pb2.BlobRef) -> None:
            self.host.handle(events.Assembled(asked.job_id, asked.plan_sha256, ref))

        def refused() -> None:
            problem = common_pb2.Problem(code="disk-full", message="no room for the result")
            self.host.handle(events.Assembled(asked.job_id, asked.plan_sha256, None, problem))

        self.keep(content, stored, refused)

    def _after(self, delay_s: float, call: Callable[[], None]) -> None:
        self.host.clock.after(delay_s, lambda: self.host.run(call, self.life))


def plan_of(job_id: bytes, request: work_pb2.JobRequest, planner: int) -> work_pb2.Plan:
    """The task graph that the question spells: "3,1 bad" is three tasks and one that reads them, all of them bad.

    Each planner names the plan otherwise; every second one numbers the tasks of a layer backwards.
    """
    shape, _, words = request.ask.question.partition(" ")
    plan = work_pb2.Plan(job_id=job_id, method=f"made by n{planner}")
    before: list[int] = []
    index = 0
    for layer in shape.split(","):
        here: list[int] = []
        last = 2 * index + int(layer) - 1
        for _ in range(int(layer)):
            for replica in range(request.ask.panel or 1):
                task = plan.tasks.add(index=index, replica=replica, depends_on=before, output_tokens_max=20)
                task.seed = last - index if planner % 2 else index
                task.answer.question = words
                if request.ask.panel > 1:
                    task.panel = f"panel {index}"
            here.append(index)
            index += 1
        before = here
    return plan


def ref_of(content: bytes) -> common_pb2.BlobRef:
    return common_pb2.BlobRef(sha256=hashlib.sha256(content).digest(), size_bytes=len(content))
