"""Answers that may take long: server-sent events, and whole ones whose client may go away meanwhile.

Idea: what a client asked for is worth nothing once it is gone, so each answer is raced against the end of its
connection, and cancelled by it, through the router down to the engine. The status of a stream is decided by its first
event: an error before it is an HTTP error, one after it is an event. While nothing comes, a comment line keeps proxies
from closing the connection.

Source: HTML standard, server-sent events; OpenAI's streaming format (`data: [DONE]`).
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from node.errors import KithError
from node.http.guard import body_of, headers_of, status_of

#: A comment, in the terms of server-sent events.
ALIVE = ": still here\n\n"
DONE = "data: [DONE]\n\n"

Value = TypeVar("Value")
#: Chunks of text, ready to be sent. It has to be closed.
Chunks = AsyncGenerator[str, None]


def event(data: Mapping[str, Any], name: str = "") -> str:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, ensure_ascii=False)}\n\n"


def error_event(error: KithError) -> str:
    """An error after the first event, and the end."""
    return event(body_of(error)) + DONE


def error_response(error: KithError) -> Response:
    return JSONResponse(body_of(error), status_code=status_of(error), headers=headers_of(error))


async def unless_gone(receive: Receive, answer: Coroutine[Any, Any, Value]) -> Value:
    """The answer. Raises `ClientDisconnect` where nobody waits for it any more; it is cancelled then.

    Args:
        receive: of a request whose body was read.
    """
    answering = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise ClientDisconnect
        return answering.result()
    finally:
        for task in (answering, gone):
            task.cancel()
        await asyncio.gather(answering, gone, return_exceptions=True)


class EventStream(Response):
    """ASGI response that sends `chunks`; the first of them decides the status."""

    media_type = "text/event-stream"

    def __init__(self, chunks: Chunks, headers: Mapping[str, str] | None = None) -> None:
        self._chunks = chunks
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no", **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(ClientDisconnect):
            await unless_gone(receive, self._send(scope, receive, send))

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with contextlib.aclosing(self._chunks) as chunks:
            try:
                first = await anext(chunks)
            except KithError as error:
                await error_response(error)(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": first.encode(), "more_body": True})
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
