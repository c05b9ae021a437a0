"""The work of a node as one machine: a client's submissions, a worker's tasks, a leader's jobs, and copies of blobs.

Idea: acceptance, copies, coordinator, dispatch and intake are small machines of their own; this one wires them, as
replica.py wires membership, election and facts. What takes time (plans, the solver, the engine, transfers) is an effect
that the shell answers by an event.

Does not: know how a task is done or a plan is made.
"""

from collections.abc import Sequence

from mesh.effects import Effect
from mesh.events import Event
from mesh.facts import Fact
from mesh.identity import NodeId
from mesh.wire import common_pb2, mesh_pb2

#: Messages of a link that are for this machine.
MESSAGES = frozenset({"assign", "task_event", "work_report", "cancel_task", "blob_offer", "blob_receipt"})


class Work:
    """Called by the replica only; every method returns effects, `Author` and `Send` to this node itself among them."""

    def tick(self, now: float) -> list[Effect]:
        return []

    def handle(self, event: Event, now: float) -> list[Effect]:
        """An event of events.py's sections on blobs and work."""
        return []

    def received(self, peer: NodeId, message: mesh_pb2.LinkMessage, now: float) -> list[Effect]:
        """One of `MESSAGES`, from a linked peer or from this node itself."""
        return []

    def member_changed(self, node_id: NodeId, state: int, now: float) -> list[Effect]:
        return []

    def leader_changed(self, token: common_pb2.FencingToken | None, now: float) -> list[Effect]:
        return []

    def facts_applied(self, facts: Sequence[Fact], now: float) -> list[Effect]:
        return []

    def positions_told(self, peer: NodeId, now: float) -> list[Effect]:
        """A receipt, vector or digest of `peer` was noted: it may hold more than before."""
        return []
