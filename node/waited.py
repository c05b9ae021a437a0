"""What a request waits before its engine has it, for a turn (turns.py) or for its model to be loaded (engines.py).

Idea: it is part of the request's time: taken from its usefulness, and told as `queue_seconds` with what it waits in the
engine's own queue.

What was waited for (a place, a model in memory) is held while the engine is at work, and no longer: an answer is read
by a task of its own, so a client that takes its words slowly, or not at all, keeps nobody else waiting. Its text waits
for it here, within the bounds of an inbox (engine/inbox.py).
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeVar

from mesh.wire import engine_pb2
from node.engine.api import AskedT
from node.engine.inbox import Inbox
from node.errors import ExitCode, KithError

#: What is left of a request's usefulness when the wait ended at the last moment, seconds: 0 would mean "for ever".
USEFUL_MIN_S = 0.001

#: What is waited for; yields how long that took, seconds.
Wait = AbstractAsyncContextManager[float]
Reply = TypeVar("Reply", engine_pb2.ScoreReply, engine_pb2.EmbedReply)


class Generates(Protocol):
    def generate(self, request: engine_pb2.GenerateRequest) -> AsyncGenerator[engine_pb2.GenerateEvent, None]: ...


async def generated(
    wait: Wait, engine: Generates, request: engine_pb2.GenerateRequest
) -> AsyncGenerator[engine_pb2.GenerateEvent, None]:
    """As `Engine.generate`, after `wait`, which ends with the engine's work."""
    inbox = Inbox()
    reading = asyncio.create_task(_read(inbox, wait, engine, request), name="engine's answer")
    try:
        while True:
            event = (await inbox.get()).generate
            yield event
            if event.HasField("finished"):
                return
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def _read(inbox: Inbox, wait: Wait, engine: Generates, request: engine_pb2.GenerateRequest) -> None:
    try:
        async with wait as waited_s, contextlib.aclosing(engine.generate(after(waited_s, request))) as events:
            async for event in events:
                if event.HasField("finished"):
                    event.finished.usage.queue_seconds += waited_s
                inbox.put(engine_pb2.EngineEvent(generate=event))
    except Exception as error:  # a programmer's error is the asker's to hear, not this task's alone
        inbox.fail(error)
    finally:  # also where the engine was taken away, or its answer has no end: nobody waits for what does not come
        gone = "the engine ended before its answer did"
        inbox.fail(KithError("engine-gone", gone, "Ask again.", ExitCode.UNAVAILABLE))


async def answered(wait: Wait, request: AskedT, answer: Callable[[AskedT], Awaitable[Reply]]) -> Reply:
    """As `answer` of the request, after `wait`."""
    async with wait as waited_s:
        reply = await answer(after(waited_s, request))
    reply.usage.queue_seconds += waited_s
    return reply


def after(waited_s: float, request: AskedT) -> AskedT:
    """The request when so much of its time has gone."""
    if not request.useful_seconds:
        return request
    rest = type(request)()
    rest.CopyFrom(request)
    rest.useful_seconds = max(USEFUL_MIN_S, request.useful_seconds - waited_s)
    return rest


def too_late(useful_s: float, what: str) -> KithError:
    """`what`: did not come in time, as a phrase."""
    message = f"the request was of use for {useful_s:.1f} s, and {what}"
    return KithError("too-late", message, "Ask with more time.", ExitCode.UNAVAILABLE)
