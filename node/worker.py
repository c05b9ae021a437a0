"""Runs the tasks that this node took: each is one asyncio task around the engine, and ends as an event.

Idea: what to run, and what becomes of a result, is decided by mesh/intake.py. Here inputs are read, the engine is
driven, and the result is stored; a failure is an outcome too, so that it can be counted. An engine that reads a long
prompt says nothing for seconds, so its steps count as progress of all that is in it: continuous batching moves all at
once. A task that still reads what it needs from other nodes is not in it.

Does not: take, refuse or retry tasks, or tell anybody but the machines.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from mesh import effects, events
from mesh.dispatch import TaskKey
from mesh.intake import attempt_of
from mesh.wire import common_pb2, work_pb2
from node.blobs import Blobs
from node.engine.api import Engine
from node.errors import KithError
from node.logs import log, where
from node.tasks import run_task
from solver.assemble import to_bytes

#: Progress of a task is handed on at most this often: the engine may move a thousand times a second.
PROGRESS_EVERY_S = 0.1
#: How often the engine's steps are looked at.
STEPS_EVERY_S = 0.25


@dataclass
class _Running:
    task: "asyncio.Task[None]"
    progress: work_pb2.TaskProgress = field(default_factory=work_pb2.TaskProgress)
    told_at: float = 0.0
    reads: int = 0  # blobs that it waits for


class Worker:
    def __init__(
        self,
        engine: Engine,
        blobs: Blobs,
        post: Callable[[events.Event], None],
        pick: Callable[[str], Engine] | None = None,
        steps: Callable[[], int] | None = None,
    ) -> None:
        """`pick` and `steps`: where the node has several engines, the one of an agent, and the steps of all."""
        self._pick = pick or (lambda _agent: engine)
        self._steps = steps or (lambda: engine.figures.steps)
        self._blobs = blobs
        self._post = post
        self._running: dict[TaskKey, _Running] = {}
        self._begun = asyncio.Event()

    @property
    def running(self) -> int:
        return len(self._running)

    def start(self, effect: effects.StartTask) -> None:
        assert effect.key not in self._running, "a task is started once"
        task = asyncio.create_task(self._run(effect.key, effect.assign), name=f"task {effect.key.ref}")
        self._running[effect.key] = _Running(task)
        self._begun.set()
        task.add_done_callback(lambda _: self._stopped(effect.key))

    def stop(self, effect: effects.StopTask) -> None:
        if running := self._running.get(effect.key):
            log("info", f"{effect.key.label} is stopped: {effect.reason}")
            running.task.cancel()

    async def stop_all(self) -> None:
        tasks = [running.task for running in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def watch_steps(self) -> None:
        """Until cancelled: tell that what runs moves, while the engine does."""
        steps = self._steps()
        while True:
            if not self._running:
                self._begun.clear()
                await self._begun.wait()
                steps = self._steps()
            await asyncio.sleep(STEPS_EVERY_S)
            if self._steps() != steps:
                steps = self._steps()
                for key, running in list(self._running.items()):
                    if not running.reads:
                        self._moved(key, None)

    async def _run(self, key: TaskKey, assign: work_pb2.Assign) -> None:
        began = time.monotonic()
        finished = attempt_of(assign)
        try:
            engine = self._pick(assign.agent.agent)
            finished.model = engine.loaded.model if engine.loaded else ""
            read = partial(self._read, self._running[key])
            inputs = [work_pb2.TaskResult.FromString(await read(ref)) for ref in assign.inputs]
            result, usage = await run_task(assign.task, inputs, read, engine, partial(self._moved, key))
            finished.result.CopyFrom(await self._blobs.put(to_bytes(result)))
            finished.usage.CopyFrom(usage)
            log("debug", f"{key.label} ran for {time.monotonic() - began:.1f} s")
        except KithError as error:
            log("warning", f"{key.label} failed: {error.code}")
            finished.failure.CopyFrom(error.to_wire())
        except Exception as error:
            # A programmer's error must not take the node down, nor leave the task without an end.
            log("error", f"{key.label} ended by {where(error)}")
            finished.failure.CopyFrom(
                common_pb2.Problem(code="task-crashed", message=f"{type(error).__name__} in the node's own code")
            )
        del self._running[key]
        self._post(events.TaskEnded(key, finished))

    async def _read(self, running: _Running, ref: common_pb2.BlobRef) -> bytes:
        running.reads += 1
        try:
            return await self._blobs.get(ref)
        finally:
            running.reads -= 1

    def _stopped(self, key: TaskKey) -> None:
        if self._running.pop(key, None):  # it ended without an outcome, perhaps before it began
            self._post(events.TaskStopped(key))

    def _moved(self, key: TaskKey, progress: work_pb2.TaskProgress | None) -> None:
        """The engine moved; `progress` says how far this task is, where that is known."""
        running = self._running[key]
        if progress is not None:
            running.progress = progress
        now = time.monotonic()
        if now - running.told_at >= PROGRESS_EVERY_S:
            running.told_at = now
            self._post(events.TaskProgressed(key, running.progress))
