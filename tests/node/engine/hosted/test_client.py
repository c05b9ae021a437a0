"""HTTP to a model server over real sockets: patience, refusals, broken streams."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import closing, suppress
from email.utils import formatdate
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from node.engine.hosted import client as client_module
from node.engine.hosted.client import ATTEMPTS_MAX, _retry_after_s
from node.errors import KithError
from tests.node.engine.hosted.talking import Told, client_of, says, streams, told_server


@pytest.fixture
async def server() -> AsyncIterator[Told]:
    async with told_server() as one:
        yield one


async def test_busy_server_is_asked_again_after_its_pause(server: Told) -> None:
    times: list[float] = []

    async def twice_busy(_: Request, __: Any) -> Response:
        times.append(time.monotonic())
        busy = len(times) < 3
        return JSONResponse({"ok": not busy}, 503 if busy else 200, {"retry-after-ms": "120"} if busy else None)

    server.answers["/v1/x"] = twice_busy
    assert await server.client().post("/x", {}) == {"ok": True}
    assert len(times) == 3
    assert min(times[1] - times[0], times[2] - times[1]) >= 0.12


async def test_who_would_wait_long_is_told_how_long(server: Told) -> None:
    server.answers["/v1/x"] = says({}, 429, {"retry-after": "77"})
    with pytest.raises(KithError, match="busy \\(429\\)") as caught:
        await server.client().post("/x", {})
    assert (caught.value.code, caught.value.retry_after_s) == ("busy", 77)
    assert len(server.asked) == 1


async def test_busy_for_ever_ends(server: Told) -> None:
    server.answers["/v1/x"] = says({}, 503, {"retry-after": "0.01"})
    with pytest.raises(KithError, match="busy"):
        await server.client().post("/x", {})
    assert len(server.asked) == ATTEMPTS_MAX


async def test_pause_ends_with_its_task(server: Told) -> None:
    asked = asyncio.Event()

    async def busy(_: Request, __: Any) -> Response:
        asked.set()
        return JSONResponse({}, 503, {"retry-after": "9"})

    server.answers["/v1/x"] = busy
    asking = asyncio.ensure_future(server.client().post("/x", {}))
    async with asyncio.timeout(5):
        await asked.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


@pytest.mark.parametrize(
    ("status", "error", "code", "words"),
    [
        (400, {"message": "no\nsuch\tthing", "type": "invalid"}, "agent-refused", "no such thing"),
        (422, {"message": "unknown field"}, "agent-refused", "unknown field"),
        (400, {"message": "too much", "type": "exceed_context_size_error"}, "prompt-too-long", "too much"),
        (400, {"message": "This model's maximum context length is 9"}, "prompt-too-long", "does not fit"),
        (500, {"message": "input is too large to process"}, "prompt-too-long", "too large"),
        (401, {"message": "bad"}, "engine-failed", "refuses the key"),
        (404, "gone", "engine-failed", "refuses the request (404): gone"),
        (302, {}, "engine-failed", "refuses the request (302)"),
        (500, {"message": "x" * 3000}, "engine-failed", "x" * 200),
    ],
)
async def test_refusals_keep_the_servers_reason_short(
    server: Told, status: int, error: Any, code: str, words: str
) -> None:
    server.answers["/v1/x"] = says({"error": error}, status, {"location": "http://127.0.0.1:9/"})
    with pytest.raises(KithError) as caught:
        await server.client().post("/x", {})
    assert caught.value.code == code
    assert words in caught.value.message
    assert len(caught.value.message) < 400


async def test_error_in_a_stream_ends_it(server: Told) -> None:
    server.answers["/v1/x"] = streams({"a": 1}, {"error": {"message": "out of memory"}})
    got = []

    async def read() -> None:
        async for chunk in server.client().stream("/x", {}, bool):
            got.append(chunk)

    with pytest.raises(KithError, match="broke off its answer: out of memory"):
        await read()
    assert got == [{"a": 1}]


async def test_answer_without_end_is_cut(server: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "ANSWER_BYTES_MAX", 1000)
    server.answers["/v1/x"] = says({"text": "x" * 2000})
    with pytest.raises(KithError, match="not the OpenAI API"):
        await server.client().post("/x", {})


async def test_connection_that_ended_meanwhile_costs_one_more_attempt() -> None:
    """The server closes each connection without a word when it is used a second time."""
    seen = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        with suppress(asyncio.IncompleteReadError), closing(writer):
            await reader.readuntil(b"\r\n\r\n")
            seen += 1
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            await reader.readuntil(b"\r\n\r\n")

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        client = client_of(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        assert await client.get("/a") == {}
        assert await client.get("/b") == {}
        await client.close()
    assert seen == 2


def test_pauses_in_seconds_milliseconds_and_dates() -> None:
    import httpx2

    assert _retry_after_s(httpx2.Headers({"retry-after": "3"})) == 3
    assert _retry_after_s(httpx2.Headers({"retry-after-ms": "250", "retry-after": "9"})) == 0.25
    assert 50 < _retry_after_s(httpx2.Headers({"retry-after": formatdate(time.time() + 60, usegmt=True)})) <= 60
    assert _retry_after_s(httpx2.Headers({"retry-after": "soon"})) == 0
    assert _retry_after_s(httpx2.Headers({"retry-after": "-5"})) == 0
