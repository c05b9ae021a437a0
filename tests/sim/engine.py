"""A host's engine in virtual time: tasks take their time, fail, kill it, and it may stop moving with all it holds.

A task's words decide what becomes of it: `bad` fails wherever it runs, `flaky` sometimes, `poison` kills the engine,
`stuck` may never move (stuck.py).
An engine that does not move is noticed by its watchdog after `NOTICED_S` and killed after `KILLED_S`, as in
node/engine. A result depends on the task, its inputs and the machine, as a model's floating-point result does.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mesh import events
from mesh.dispatch import TaskKey
from mesh.intake import attempt_of
from mesh.standing import ENGINE_GONE, ENGINE_GONE_SHARED
from mesh.wire import common_pb2, facts_pb2, work_pb2
from tests.sim.stuck import stands_still

if TYPE_CHECKING:
    from tests.sim.host import Host

NOTICED_S = 2.0
KILLED_S = 20.0
STEP_S = 0.3


@dataclass
class _Task:
    assign: work_pb2.Assign
    steps: int
    done: int = 0


class Engine:
    """Of one life of its host."""

    def __init__(self, host: Host, rng: random.Random) -> None:
        self.host = host
        self.life = host.life
        self.rng = rng
        self.tasks: dict[TaskKey, _Task] = {}
        self.ready = False
        self.moves = True
        self.generation = 0  # starts and ends of the engine's own process

    def boot(self) -> None:
        self.generation += 1
        generation = self.generation

        def up() -> None:
            if self.generation == generation:
                self.ready = True
                self.host.deliver(events.EngineChanged(ready=True), self.life)

        self._after(self.rng.uniform(0.2, 2.0), up)

    def start(self, key: TaskKey, assign: work_pb2.Assign) -> None:
        assert key not in self.tasks, "a task was started twice"
        assert len(self.tasks) < self.host.slots, "more tasks were started than there are slots"
        seconds = self.host.pace * self.rng.uniform(0.5, 1.5) * assign.task.output_tokens_max / 10.0
        task = self.tasks[key] = _Task(assign, max(1, round(seconds / STEP_S)))
        if not self.ready:
            self._after(0.1, lambda: self._end(key, task, "engine-not-ready"))
            return
        self._step_later(key, task)

    def stop(self, key: TaskKey) -> None:
        def stopped() -> None:
            if self.tasks.pop(key, None) is not None:
                self.host.deliver(events.TaskStopped(key), self.life)

        self._after(self.rng.uniform(0.0, 0.2), stopped)

    # What goes wrong

    def freeze(self, seconds: float) -> None:
        self.moves = False
        generation = self.generation

        def noticed() -> None:
            if not self.moves and self.generation == generation and self.ready and self.tasks:
                self.host.deliver(events.EngineChanged(ready=True, stalled=True), self.life)

        def thaw() -> None:
            if self.generation == generation:
                self.moves = True
                if self.ready:
                    self.host.deliver(events.EngineChanged(ready=True), self.life)

        self._after(NOTICED_S, noticed)
        if seconds < KILLED_S:
            self._after(seconds, thaw)
        else:
            self._after(KILLED_S, lambda: self.crash() if self.generation == generation else None)

    def crash(self) -> None:
        """The engine's process dies, and with it everything in it."""
        self.ready = False
        self.moves = True
        self.host.deliver(events.EngineChanged(ready=False), self.life)
        code = ENGINE_GONE if len(self.tasks) == 1 else ENGINE_GONE_SHARED
        for key, task in list(self.tasks.items()):
            self._end(key, task, code)
        self.boot()

    # Inside

    def _after(self, delay_s: float, call: object) -> None:
        assert callable(call)
        self.host.clock.after(delay_s, lambda: self.host.run(call, self.life))

    def _step_later(self, key: TaskKey, task: _Task) -> None:
        self._after(STEP_S * self.rng.uniform(0.8, 1.2), lambda: self._step(key, task))

    def _step(self, key: TaskKey, task: _Task) -> None:
        if self.tasks.get(key) is not task:
            return
        if not self.moves:
            self._step_later(key, task)
            return
        words = task.assign.task.answer.question
        if stands_still(key, words, self.host.name, task.assign.attempt):
            return
        task.done += 1
        if "poison" in words and task.done * 2 >= task.steps:
            self.host.checks.say(self.host, f"the engine dies of {key.label}")
            self.crash()
            return
        if task.done < task.steps:
            progress = work_pb2.TaskProgress(output_tokens=task.done, phase="writing")
            self.host.deliver(events.TaskProgressed(key, progress), self.life)
            self._step_later(key, task)
        elif "bad" in words or ("flaky" in words and self.rng.random() < 0.3):
            self._end(key, task, "bad-answer")
        else:
            self._finish(key, task)

    def _finish(self, key: TaskKey, task: _Task) -> None:
        for ref in task.assign.inputs:
            if not self.host.labour.reach(ref.sha256):
                self._end(key, task, "blob-missing")
                return
        words = [task.assign.task.SerializeToString(deterministic=True), *(ref.sha256 for ref in task.assign.inputs)]
        content = hashlib.sha256(b"".join(words) + self.host.name.encode()).digest() * 3

        def stored(ref: common_pb2.BlobRef) -> None:
            if self.tasks.get(key) is task:
                finished = self._outcome(task)
                finished.result.CopyFrom(ref)
                self._tell_end(key, finished)

        self.host.labour.keep(content, stored, lambda: self._end(key, task, "disk-full"))

    def _end(self, key: TaskKey, task: _Task, code: str) -> None:
        if self.tasks.get(key) is task:
            finished = self._outcome(task)
            finished.failure.code = code
            self._tell_end(key, finished)

    def _tell_end(self, key: TaskKey, finished: facts_pb2.TaskFinished) -> None:
        del self.tasks[key]
        self.host.checks.jobs.task_ended(self.host, key, finished)
        self.host.deliver(events.TaskEnded(key, finished), self.life)

    def _outcome(self, task: _Task) -> facts_pb2.TaskFinished:
        finished = attempt_of(task.assign)
        finished.model = "simulated"
        return finished
