"""The worker's side: which assignments a node takes, and from whom.

Idea: a worker keeps the highest fencing token it has seen and starts a task only for the holder of it, and only when
that holder is the leader in its own live view; it declines lower tokens with its highest, so that a leader that was
replaced learns it. Work that runs goes on under a new leader, who is told about it at once.

Source for fencing: Kleppmann, "How to do distributed locking" (2016).

Does not: run anything (node/worker.py does).
"""

from dataclasses import dataclass, field

from mesh.dispatch import TaskKey
from mesh.election import token_order
from mesh.identity import NodeId
from mesh.ledger import TaskRef
from mesh.wire import common_pb2, work_pb2


@dataclass
class Running:
    assign: work_pb2.Assign
    progress: work_pb2.TaskProgress = field(default_factory=work_pb2.TaskProgress)


@dataclass
class Intake:
    """Invariant: `highest` never goes down; at most `slots` tasks run."""

    slots: int
    highest: common_pb2.FencingToken = field(default_factory=common_pb2.FencingToken)
    running: dict[TaskKey, Running] = field(default_factory=dict)
    draining: bool = False

    def offered(
        self, sender: NodeId, assign: work_pb2.Assign, leader: common_pb2.FencingToken | None
    ) -> common_pb2.Problem | None:
        """Take the task (None) or say why not. `leader` is whom this node follows now."""
        token = assign.token
        if token_order(token) < token_order(self.highest):
            return _refuse("stale-leader", f"a leader of term {self.highest.term} is known here")
        if token.leader_id != sender or leader is None or token_order(leader) != token_order(token):
            return _refuse("not-leader", "the sender is not the leader in this node's view")
        self.highest = common_pb2.FencingToken(term=token.term, leader_id=token.leader_id)
        if self.draining:
            return _refuse("node-draining", "this node is stopping")
        key = key_of_assign(assign)
        if key in self.running:
            # The same task, assigned again by a leader that did not know: go on, under its token.
            self.running[key].assign.token.CopyFrom(token)
            self.running[key].assign.attempt = assign.attempt
            return None
        if len(self.running) >= self.slots:
            return _refuse("busy", f"all {self.slots} slots are taken")
        self.running[key] = Running(assign)
        return None

    def leader_changed(self, token: common_pb2.FencingToken) -> work_pb2.WorkReport:
        """Everything that runs here goes on under the new leader: what to tell it."""
        if token_order(token) > token_order(self.highest):
            self.highest = common_pb2.FencingToken(term=token.term, leader_id=token.leader_id)
        report = work_pb2.WorkReport(token=token)
        for running in self.running.values():
            running.assign.token.CopyFrom(token)
            report.running.append(event_of(running))
        return report

    def ended(self, key: TaskKey) -> None:
        self.running.pop(key, None)

    def cancelled(self, sender: NodeId, cancel: work_pb2.CancelTask) -> TaskKey | None:
        """The running task to stop, if the one who asks may ask."""
        key = TaskKey(cancel.job_id, TaskRef(cancel.task_index, cancel.replica))
        if cancel.token.leader_id != sender or token_order(cancel.token) < token_order(self.highest):
            return None
        return key if key in self.running else None

    def of_job(self, job_id: bytes) -> list[TaskKey]:
        return [key for key in self.running if key.job_id == job_id]


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
        progress=running.progress,
    )


def _refuse(code: str, message: str) -> common_pb2.Problem:
    return common_pb2.Problem(code=code, message=message, remedy="The leader assigns the task elsewhere.")
