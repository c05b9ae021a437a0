"""Runs tasks that a leader assigned to this node, and reports how they go.

Idea: an assignment that the intake machine takes becomes one asyncio task: read inputs, run it on the engine, store the
result with copies on other nodes, author the `finished` fact, tell the leader. A failure is a fact too, so that the
leader can count it. Progress is a stream to whoever leads at the moment, and renews the lease only when the engine
really moved.

Does not: choose tasks, or retry them.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from google.protobuf.message import Message

from mesh.dispatch import TaskKey
from mesh.facts import Fact
from mesh.gossip import COPIES
from mesh.identity import NodeId
from mesh.intake import Intake, Running, event_of, key_of_assign
from mesh.wire import common_pb2, facts_pb2, mesh_pb2, work_pb2
from node.blobs import Blobs
from node.engine.api import Engine
from node.errors import KithError
from node.logs import log, where
from node.tasks import run_task
from solver.assemble import task_key

#: Progress is told at most this often a task.
PROGRESS_EVERY_S = 0.25
#: How long a result waits for its copies before it is announced all the same.
REPLICATE_S = 3.0


class Mesh(Protocol):
    """What the worker needs of the daemon."""

    def current_leader(self) -> common_pb2.FencingToken | None: ...

    def send_or_deliver(self, peer: NodeId, message: mesh_pb2.LinkMessage) -> None:
        """Send to a peer, or hand it to this node's own part."""

    def author(self, kind: str, content: Message) -> Awaitable[Fact]: ...


class Worker:
    def __init__(self, mesh: Mesh, engine: Engine, blobs: Blobs, slots: int, on_change: Callable[[], None]) -> None:
        self._mesh = mesh
        self._engine = engine
        self._blobs = blobs
        self._on_change = on_change
        self.intake = Intake(slots)
        self._tasks: dict[TaskKey, asyncio.Task[None]] = {}
        self._told_at: dict[TaskKey, float] = {}

    def assigned(self, sender: NodeId, assign: work_pb2.Assign) -> None:
        key = key_of_assign(assign)
        if self._engine.state == "ready" or key in self._tasks:
            problem = self.intake.offered(sender, assign, self._mesh.current_leader())
        else:
            problem = common_pb2.Problem(code="engine-not-ready", message=f"the engine is {self._engine.state}")
        event = work_pb2.TaskEvent(
            job_id=assign.job_id,
            task_index=assign.task.index,
            replica=assign.task.replica,
            attempt=assign.attempt,
            agent=assign.agent,
        )
        log("debug", f"{key.label} offered by {sender[:8]}: {problem.code if problem else 'taken'}")
        if problem is not None:
            event.token.CopyFrom(self.intake.highest)
            event.declined.CopyFrom(problem)
        else:
            event.token.CopyFrom(assign.token)
            event.accepted.SetInParent()
            if key not in self._tasks:
                running = self.intake.running[key]
                self._tasks[key] = asyncio.create_task(self._run(key, running), name=f"task {key.ref}")
        self._tell(sender, event)
        self._on_change()

    def leader_changed(self, token: common_pb2.FencingToken) -> None:
        report = self.intake.leader_changed(token)
        self._mesh.send_or_deliver(NodeId(token.leader_id), mesh_pb2.LinkMessage(work_report=report))

    def cancel_received(self, sender: NodeId, cancel: work_pb2.CancelTask) -> None:
        if key := self.intake.cancelled(sender, cancel):
            self._tasks[key].cancel()

    def job_ended(self, job_id: bytes) -> None:
        """What still runs for a job that ended is of no use."""
        for key in self.intake.of_job(job_id):
            if key in self._tasks:
                self._tasks[key].cancel()

    async def drain(self, seconds: float) -> None:
        """Take nothing new; let what runs finish for so long, then cancel it."""
        self.intake.draining = True
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()), timeout=seconds)
        running = list(self._tasks.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def load(self) -> tuple[int, int]:
        """Upper bounds of the prompt and output tokens still to be worked through here."""
        prompt = output = 0
        for running in self.intake.running.values():
            task, progress = running.assign.task, running.progress
            prompt += max(0, task.prompt_tokens_estimate - progress.prompt_tokens_done)
            output += max(0, task.output_tokens_max - progress.output_tokens)
        return prompt, output

    async def _run(self, key: TaskKey, running: Running) -> None:
        assign = running.assign
        began = time.monotonic()
        finished = facts_pb2.TaskFinished(
            job_id=assign.job_id,
            plan_sha256=assign.plan_sha256,
            task_index=assign.task.index,
            replica=assign.task.replica,
            task_key=task_key(assign.task, [ref.sha256 for ref in assign.inputs]),
            agent=assign.agent,
            model=self._engine.loaded.model if self._engine.loaded else "",
        )
        try:
            inputs = [work_pb2.TaskResult.FromString(await self._blobs.get(ref)) for ref in assign.inputs]
            result, usage = await run_task(
                assign.task,
                inputs,
                self._blobs.get,
                self._engine,
                lambda progress: self._progressed(key, running, progress),
            )
            blob = await self._blobs.put(result.SerializeToString(deterministic=True))
            await self._blobs.replicate([blob], COPIES, REPLICATE_S)
            finished.result.CopyFrom(blob)
            finished.usage.CopyFrom(usage)
        except KithError as error:
            log("warning", f"{key.label} failed: {error.code}")
            finished.failure.CopyFrom(error.to_wire())
        except asyncio.CancelledError:
            log("info", f"{key.label} was cancelled")
            self._forget(key)
            raise
        except Exception as error:
            # A programmer's error must not take the node down, nor leave the task without an end.
            log("error", f"{key.label} ended by {where(error)}")
            finished.failure.CopyFrom(
                common_pb2.Problem(code="task-crashed", message=f"{type(error).__name__} in the node's own code")
            )
        finished.token.CopyFrom(assign.token)
        try:
            fact = await self._mesh.author("task_finished", finished)
        finally:
            self._forget(key)
        event = event_of(running)
        event.ended.fact_hash = fact.hash
        event.ended.success = finished.WhichOneof("outcome") == "result"
        self._tell(NodeId(assign.token.leader_id), event)
        seconds = time.monotonic() - began
        log("info", f"{key.label} ended after {seconds:.1f} s")

    def _forget(self, key: TaskKey) -> None:
        self.intake.ended(key)
        self._tasks.pop(key, None)
        self._told_at.pop(key, None)
        self._on_change()

    def _progressed(self, key: TaskKey, running: Running, progress: work_pb2.TaskProgress) -> None:
        running.progress.CopyFrom(progress)
        now = time.monotonic()
        if now - self._told_at.get(key, 0.0) >= PROGRESS_EVERY_S:
            self._told_at[key] = now
            self._tell(NodeId(running.assign.token.leader_id), event_of(running))

    def _tell(self, leader: NodeId, event: work_pb2.TaskEvent) -> None:
        self._mesh.send_or_deliver(leader, mesh_pb2.LinkMessage(task_event=event))
