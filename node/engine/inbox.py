"""Events of one request on their way from the reader of the socket to whoever asked.

Invariant: at most one unread delta waits, whatever the reader's pace, because a delta is joined to the one before it.
So the memory of a slow reader is bounded by its text, which is bounded by `TEXT_BYTES_MAX`.
"""

import asyncio
from collections import deque

from mesh.wire import engine_pb2
from node.errors import KithError

#: Unread text of one request. Threat: an engine (or a server behind it) that never stops talking.
TEXT_BYTES_MAX = 8 * 1024 * 1024
TOKENS_MAX = 1_000_000


class Inbox:
    """One reader, one writer, one event loop. `looks`: of a request that only asks how the engine is."""

    def __init__(self, *, looks: bool = False) -> None:
        self.looks = looks
        self._events: deque[engine_pb2.EngineEvent] = deque()
        self._error: Exception | None = None
        self._arrived = asyncio.Event()
        self.ended = False  # the last event is here, or an error
        self.overflowed = False  # ended by this side while the engine still talks

    def put(self, event: engine_pb2.EngineEvent) -> None:
        if self.ended:
            return
        kind = event.WhichOneof("event")
        if kind == "problem":
            self.fail(KithError.from_wire(event.problem))
            return
        generate = event.generate.WhichOneof("event") if kind == "generate" else None
        last = self._events[-1].generate if self._events else None
        if generate == "delta" and last is not None and last.WhichOneof("event") == "delta":
            last.delta.text += event.generate.delta.text
            last.delta.tokens += event.generate.delta.tokens
            last.delta.token_ids.extend(event.generate.delta.token_ids)
            last.delta.logprobs.extend(event.generate.delta.logprobs)
            tokens = max(len(last.delta.token_ids), len(last.delta.logprobs))
            if len(last.delta.text) > TEXT_BYTES_MAX or tokens > TOKENS_MAX:
                self.overflowed = True
                self.fail(KithError("engine-failed", "the answer grew beyond all bounds", "Set max_tokens."))
        else:
            self._events.append(event)
            self.ended = kind != "generate" or generate == "finished"
        self._arrived.set()

    def fail(self, error: Exception) -> None:
        """What has arrived can still be read; then `error` is raised."""
        if not self.ended:
            self._error = error
            self.ended = True
        self._arrived.set()

    async def get(self) -> engine_pb2.EngineEvent:
        """The next event. Raises what ended the request, a `KithError` unless somebody erred in the program."""
        while not self._events:
            if self._error is not None:
                raise self._error
            self._arrived.clear()
            await self._arrived.wait()
        return self._events.popleft()
