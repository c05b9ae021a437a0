"""Streams over real sockets: the first event decides the status, comments keep it alive, a client that goes ends it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from starlette.requests import ClientDisconnect

from node.errors import KithError
from node.http.event_stream import ALIVE, DONE, Chunks, EventStream, error_event, event, unless_gone
from tests.node.http.scripted import Scripted, delta, finished, started
from tests.node.http.serving import plain_server

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@asynccontextmanager
async def serving(chunks: Callable[[], Chunks]) -> AsyncIterator[httpx2.AsyncClient]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "http.request"
        await EventStream(chunks(), {"x-kith-node": "a"})(scope, receive, send)

    async with (
        plain_server(app) as port,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=10) as http,
    ):
        yield http


async def test_a_stream_arrives_with_its_comments() -> None:
    async def chunks() -> Chunks:
        yield event({"a": "ü"})
        yield ALIVE
        yield event({"b": 1}, "typed")
        yield DONE

    async with serving(chunks) as http:
        answer = await http.get("/")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-kith-node"] == "a"
    assert answer.text == ('data: {"a": "ü"}\n\n: still here\n\nevent: typed\ndata: {"b": 1}\n\ndata: [DONE]\n\n')


async def test_an_error_before_the_first_event_is_an_http_error() -> None:
    async def chunks() -> Chunks:
        for error in (KithError("busy", "too much", "Wait.", retry_after_s=2.5),):
            raise error
        yield ""

    async with serving(chunks) as http:
        answer = await http.get("/")
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "3"
    assert answer.json()["error"]["code"] == "busy"


def test_an_error_after_it_is_an_event() -> None:
    said = error_event(KithError("node-unreachable", "it went away", "Ask again."))
    assert '"code": "node-unreachable"' in said
    assert said.endswith(DONE)


async def test_a_client_that_goes_away_ends_the_stream_in_the_midst_of_waiting() -> None:
    ended = asyncio.Event()

    async def chunks() -> Chunks:
        try:
            yield event({"a": 1})
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with serving(chunks) as http:
        async with http.stream("GET", "/") as answer:
            assert await anext(answer.aiter_lines()) == 'data: {"a": 1}'
        async with asyncio.timeout(5):
            await ended.wait()


async def test_a_whole_answer_is_cancelled_when_nobody_waits_for_it() -> None:
    cancelled = asyncio.Event()

    async def answer() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientDisconnect):
        await unless_gone(receive, answer())
    assert cancelled.is_set()


async def test_an_answer_that_is_there_is_given_and_its_error_raised() -> None:
    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    async def good() -> int:
        return 3

    async def bad() -> int:
        raise KithError("busy", "no")

    assert await unless_gone(receive, good()) == 3
    with pytest.raises(KithError):
        await unless_gone(receive, bad())


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}], "tools": [TOOL]}),
        ("completions", {"prompt": "x"}),
        ("responses", {"input": "x"}),
    ],
    ids=["chat", "chat with tools", "completions", "responses"],
)
async def test_each_word_is_with_the_client_before_the_next_one_is_said(path: str, body: dict[str, Any]) -> None:
    spoken = [asyncio.Event() for _ in range(4)]
    words = [f"word{number}" for number in range(4)]
    said = [part for word, gate in zip(words, spoken, strict=True) for part in (gate, delta(word))]
    mesh = Scripted(says=lambda request, route: [started(), *said, finished()])
    asked = body | {"model": "kith", "stream": True}
    async with (
        asyncio.timeout(20),
        mesh.serving() as url,
        httpx2.AsyncClient(trust_env=False, timeout=10) as http,
        http.stream("POST", f"{url}/{path}", json=asked) as answer,
    ):
        blocks = answer.aiter_bytes()
        seen = b""
        for word, gate in zip(words, spoken, strict=True):
            assert word.encode() not in seen
            gate.set()
            while word.encode() not in seen:
                seen += await anext(blocks)
