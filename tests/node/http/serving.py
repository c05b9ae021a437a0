"""A server for tests of the door's parts: real sockets, and nothing of a node behind them."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

from node.http.guard import Connection


async def passed_whole(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def passed(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200})


@asynccontextmanager
async def plain_server(app: Any) -> AsyncIterator[int]:
    """A server with our connections and nothing else; its port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, http=Connection, log_config=None, lifespan="off", ws="none"))
    listening = socket.create_server(("127.0.0.1", 0))
    task = asyncio.create_task(server._serve([listening]))
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        await task
        listening.close()
