"""The work of a node as one machine: a client's submissions, a worker's tasks, a leader's jobs, and copies of blobs.

Idea: acceptance, copies, coordinator, placement, dispatch and intake are small machines of their own; this one wires
them, as replica.py wires membership, election and facts. What takes time (plans, the solver, the engine, transfers) is
an effect that the shell answers by an event.

Does not: know how a task is done or a plan is made.
"""

from collections.abc import Iterable, Sequence

from mesh import events
from mesh.acceptance import Acceptance
from mesh.coordinator import Coordinator
from mesh.copies import Copies
from mesh.effects import Effect
from mesh.facts import Fact
from mesh.identity import NodeId
from mesh.intake import Intake
from mesh.ledger import job_of
from mesh.surroundings import Surroundings
from mesh.wire import common_pb2, mesh_pb2

#: Messages of a link that are for this machine.
MESSAGES = frozenset({"assign", "task_event", "work_report", "cancel_task", "blob_offer", "blob_receipt"})


class Work:
    """Called by the replica only; every method returns effects, `Author` and `Send` to this node itself among them.

    Args:
        slots: tasks that this node's engine runs at a time.
    """

    def __init__(self, around: Surroundings, slots: int) -> None:
        self.around = around
        self.copies = Copies(around)
        self.acceptance = Acceptance(around, self.copies)
        self.intake = Intake(around, self.copies, slots)
        self.coordinator = Coordinator(around, self.copies)

    # At start

    def restored(self, blobs: Iterable[common_pb2.BlobRef]) -> None:
        """The folds are restored, and the store holds these blobs."""
        self.copies.restore(blobs)
        for job in self.around.ledger.jobs.values():
            self.copies.want(job.job_id, self.around.ledger.blobs_wanted(job), 0.0)

    def fact_seen(self, fact: Fact) -> None:
        """Every durable fact, restored or new."""
        self.acceptance.fact_seen(fact)

    # Events

    def tick(self, now: float) -> list[Effect]:
        effects = self.copies.tick(now)
        effects += self.acceptance.look(now)
        effects += self.intake.look(now)
        return effects + self.coordinator.look(now)

    def paused(self, now: float) -> None:
        """This node itself was paused."""
        self.acceptance.paused(now)

    def handle(self, event: events.Event, now: float) -> list[Effect]:
        """An event of events.py's sections on blobs and work."""
        effects = self._handle(event, now)
        self._tell_load()
        return effects + self.coordinator.look(now)

    def received(self, peer: NodeId, message: mesh_pb2.LinkMessage, now: float) -> list[Effect]:
        """One of `MESSAGES`, from a linked peer or from this node itself."""
        effects = self._received(peer, message, now)
        self._tell_load()
        return effects + self.coordinator.look(now)

    def member_changed(self, node_id: NodeId, state: int, now: float) -> list[Effect]:
        self.copies.members_changed(now)
        return self.coordinator.member_changed(node_id) + self.coordinator.look(now)

    def leader_changed(self, token: common_pb2.FencingToken | None, now: float) -> list[Effect]:
        if token is not None and token.leader_id == self.around.me:
            self.coordinator.lead(token, now)
        else:
            self.coordinator.concede()
        return self.intake.leader_changed(token) + self.coordinator.look(now)

    def facts_applied(self, facts: Sequence[Fact], now: float) -> list[Effect]:
        effects: list[Effect] = []
        touched: dict[bytes, None] = {}
        for fact in facts:
            self.acceptance.fact_seen(fact)
            if (job_id := job_of(fact)) is not None:
                touched[job_id] = None
                self.coordinator.job_changed(job_id)
            effects += self.coordinator.fact_applied(fact, now)
            effects += self.intake.fact_applied(fact)
        if not facts:  # the folds were made anew
            touched = dict.fromkeys([*self.copies.owners(), *self.around.ledger.jobs])
            self.coordinator.job_changed(None)
        for job_id in touched:
            job = self.around.ledger.jobs.get(job_id)
            self.copies.want(job_id, self.around.ledger.blobs_wanted(job) if job else (), now)
        self._tell_load()
        return effects + self.acceptance.look(now) + self.coordinator.look(now)

    def positions_told(self, peer: NodeId, now: float) -> list[Effect]:
        """A receipt, vector or digest of `peer` was noted: it may hold more than before."""
        return self.acceptance.look(now)

    def denied(self, node_id: NodeId) -> None:
        """A node was cut off."""
        self.intake.denied(node_id)

    def withdraw(self) -> list[Effect]:
        """This node itself is denied."""
        return [*self.intake.withdraw(), *self.acceptance.withdraw()]

    def needs(self, sha256: bytes, now: float) -> bool:
        """Whether a fact that is about to be said, here or by another node, names this blob."""
        if self.copies.is_promised(sha256, now):
            return True
        return self.intake.announces(sha256) or self.coordinator.announces(sha256) or self.acceptance.awaits(sha256)

    def blobs_dropped(self, sha256s: Iterable[bytes]) -> None:
        """Retention had these deleted here."""
        self.copies.dropped(sha256s)

    def validate(self) -> None:
        self.copies.validate()
        self.intake.validate()
        self.coordinator.validate()

    # Inside

    def _handle(self, event: events.Event, now: float) -> list[Effect]:
        match event:
            case events.BlobStored(ref, source):
                return self.copies.stored(ref, source, now)
            case events.BlobNotStored(ref, peer, refused):
                return self.copies.not_stored(ref, peer, refused=refused)
            case events.SubmitRequested():
                return self.acceptance.requested(event, now)
            case events.EngineChanged(ready, stalled):
                self.intake.engine_changed(ready=ready, stalled=stalled)
            case events.Draining():
                self.intake.draining = True
            case events.TaskProgressed(key, progress):
                return self.intake.progressed(key, progress, now)
            case events.TaskEnded(key, finished):
                return self.intake.ended(key, finished, now)
            case events.TaskStopped(key):
                return self.intake.stopped(key)
            case events.PlanMade():
                return self.coordinator.plan_made(event, now)
            case events.PlanFailed():
                return self.coordinator.plan_failed(event, now)
            case events.PlanRead():
                self.coordinator.plan_read(event, now)
            case events.Allocated():
                return self.coordinator.allocated(event, now)
            case events.Assembled():
                return self.coordinator.assembled(event, now)
        return []

    def _received(self, peer: NodeId, message: mesh_pb2.LinkMessage, now: float) -> list[Effect]:
        match message.WhichOneof("message"):
            case "assign":
                return self.intake.assigned(peer, message.assign, now)
            case "cancel_task":
                return self.intake.cancel_received(peer, message.cancel_task)
            case "task_event":
                return self.coordinator.task_event(peer, message.task_event, now)
            case "work_report":
                return self.coordinator.work_report(peer, message.work_report, now)
            case "blob_offer":
                return self.copies.offer_received(peer, message.blob_offer, now)
            case "blob_receipt":
                self.copies.receipt_received(peer, message.blob_receipt, now)
                return self.acceptance.look(now) + self.intake.look(now) + self.coordinator.copies_changed(now)
        return []

    def _tell_load(self) -> None:
        """What peers hear of this node with every probe."""
        load = self.around.membership.load
        load.queued_prompt_tokens, load.queued_output_tokens = self.intake.load()
        load.engine_stalled = self.intake.engine_stalled
        load.draining = self.intake.draining
