"""What the tests of dialects share: a real llama-server, a client of it, and a small server that does as it is told."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mesh.wire import engine_pb2
from node.engine.hosted.client import HttpClient
from node.engine.hosted.dialect import Dialect, Piece

Answer = Callable[[Request, Any], Awaitable[Response]]


@dataclass
class Told:
    """A server that answers each path as it is told, and remembers what it was asked."""

    url: str = ""
    answers: dict[str, Answer] = field(default_factory=dict)
    asked: list[tuple[str, Any]] = field(default_factory=list)
    clients: list[HttpClient] = field(default_factory=list)

    def client(self) -> HttpClient:
        """A new one; it is closed with the server."""
        self.clients.append(client_of(self.url))
        return self.clients[-1]

    async def serve(self, request: Request) -> Response:
        body = json.loads(await request.body() or b"null")
        path = request.url.path
        self.asked.append((path, body))
        if path not in self.answers:
            return JSONResponse({"error": {"message": "no such page"}}, 404)
        return await self.answers[path](request, body)


@asynccontextmanager
async def told_server() -> AsyncIterator[Told]:
    state = Told()
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()  # who connects before the server accepts waits
    state.url = f"http://127.0.0.1:{sock.getsockname()[1]}/v1"
    app = Starlette(routes=[Route("/{path:path}", state.serve, methods=["GET", "POST"])])
    config = uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
    http = uvicorn.Server(config)
    serving = asyncio.ensure_future(http._serve(sockets=[sock]))
    try:
        yield state
    finally:
        for client in state.clients:
            await client.close()
        http.should_exit = True
        with suppress(asyncio.CancelledError):
            await serving
        sock.close()


def client_of(url: str, key: str = "") -> HttpClient:
    return HttpClient(url, key, "TEST_KEY", 4)


def says(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    async def answer(request: Request, asked: Any) -> Response:
        del request, asked
        return JSONResponse(body, status, headers)

    return answer


def streams(*chunks: Any, done: bool = True) -> Answer:
    """A stream of events, ended as OpenAI's are; `done`: it says that this is its end."""

    async def answer(request: Request, asked: Any) -> Response:
        del request, asked
        lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
        return Response("".join([*lines, "data: [DONE]\n\n" * done]), media_type="text/event-stream")

    return answer


async def pieces_of(dialect: Dialect, command: engine_pb2.GenerateRequest) -> list[Piece]:
    return [piece async for piece in dialect.generate(command)]


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def chat(text: str, **more: Any) -> engine_pb2.GenerateRequest:
    return engine_pb2.GenerateRequest(messages=[engine_pb2.ChatMessage(role="user", content=text)], **more)
