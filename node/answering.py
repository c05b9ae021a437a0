"""Drives one routed answer: opens the streams that the machine asks for, and hands on what it tells.

Idea: each attempt is a task that reads one stream into one short queue; the machine (mesh/answer.py) sees the events in
the order in which they came, and decides. A slow client is waited for: the queue is full then, and the streams wait in
turn; the time that the client took counts against nobody.

Does not: choose an agent, or know what a stream is; the router does.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Collection
from typing import Protocol

from mesh.answer import Answer, Ask, Broke, Choice, Drop, Fail, Said, State, Tell
from mesh.wire import common_pb2, engine_pb2
from node.errors import KithError
from node.logs import log

#: Events that wait for the client.
QUEUE_MAX = 8
#: A client that takes longer for one event than this is slow: no agent is blamed for it, seconds.
SLOW_CLIENT_S = 0.05
#: What every agent says alike of a request.
FINAL_CODES = frozenset({"bad-request", "bad-grammar", "bad-schema"})

Open = Callable[[Choice, engine_pb2.GenerateRequest, float], AsyncGenerator[engine_pb2.GenerateEvent, None]]


class Doubted(Protocol):
    def __call__(self, agents: Collection[Choice], /) -> Collection[str]:
        """Those of these whose node is suspect or whose engine stands still."""


class Answering:
    def __init__(self, answer: Answer, open_stream: Open, doubted: Doubted) -> None:
        """`open_stream` gets what is left of the time, seconds, and raises `KithError`."""
        self._answer = answer
        self._open = open_stream
        self._doubted = doubted
        self._queue: asyncio.Queue[Said | Broke | Exception] = asyncio.Queue(QUEUE_MAX)
        self._reading: dict[int, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()

    async def events(self, first: Choice) -> AsyncGenerator[engine_pb2.GenerateEvent, None]:
        """What the client is told; the last one is `finished`. Raises `KithError`. Closing it cancels everywhere."""
        answer, now = self._answer, asyncio.get_running_loop().time
        try:
            effects = answer.begin(first, now())
            while True:
                for effect in effects:
                    match effect:
                        case Tell(event):
                            told_at = now()
                            yield event
                            if (took := now() - told_at) > SLOW_CLIENT_S:
                                answer.waited(took)
                        case Ask():
                            self._ask(effect)
                        case Drop(attempt):
                            self._drop(attempt)
                        case Fail(problem):
                            raise KithError.from_wire(problem)
                if answer.state is State.FINISHED:
                    return
                event_or_none = await self._next_by(answer.wake_at)
                if event_or_none is None:
                    effects = answer.tick(now(), self._doubted(answer.live.values()))
                else:
                    effects = answer.handle(event_or_none, now())
        finally:
            tasks = {*self._reading.values(), *self._ending}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _next_by(self, deadline: float) -> Said | Broke | None:
        """None at `deadline`."""
        try:
            item = self._queue.get_nowait()
        except asyncio.QueueEmpty:
            try:
                async with asyncio.timeout_at(deadline):
                    item = await self._queue.get()
            except TimeoutError:
                return None
        if isinstance(item, Exception):
            raise item
        return item

    def _ask(self, ask: Ask) -> None:
        if ask.why != "first":
            log("info", f"an answer goes on at {ask.choice.agent}: the one before is {ask.why}")
        reading = self._read(ask, self._answer.deadline - asyncio.get_running_loop().time())
        self._reading[ask.attempt] = asyncio.create_task(reading, name=f"answer from {ask.choice.agent}")

    def _drop(self, attempt: int) -> None:
        task = self._reading.pop(attempt)
        task.cancel()
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _read(self, ask: Ask, within_s: float) -> None:
        attempt = ask.attempt
        try:
            async with contextlib.aclosing(self._open(ask.choice, ask.request, within_s)) as events:
                async for event in events:
                    await self._queue.put(Said(attempt, event))
            problem = common_pb2.Problem(code="node-unreachable", message="the stream ended in the middle")
            await self._queue.put(Broke(attempt, problem))
        except KithError as error:
            await self._queue.put(Broke(attempt, error.to_wire(), is_final(error)))
        except Exception as error:  # a programmer's error is the client's to hear, not this task's alone
            await self._queue.put(error)


def is_final(error: KithError) -> bool:
    """Whether any agent would refuse the request: it is wrong by our own contract. What one server or one context does
    not take (mesh/answer.py: REFUSALS), another one may."""
    return error.code in FINAL_CODES
