"""The client of hosted models against a real HTTP server on loopback that speaks the chat API."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from mesh.wire import engine_pb2
from node.config import NodeConfig
from node.engine.openai import estimate_tokens
from node.engine.process import EngineProcess
from node.errors import KithError
from tests.node.engine.engines import PATIENCE, Watched, answer, ask, idle, running

WORDS = ["Paris", " is", " the", " capital", "。"]
KEY = "sesame"


@dataclass
class Server:
    """What the server was asked, and how it behaves."""

    url: str = ""
    models: tuple[str, ...] = ("small",)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    hold: asyncio.Event = field(default_factory=asyncio.Event)  # set: the stream goes on after its first word
    left: asyncio.Event = field(default_factory=asyncio.Event)  # set when a client leaves in the middle

    async def list_models(self, request: Request) -> Response:
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return JSONResponse({"error": {"message": "bad key"}}, 401)
        return JSONResponse({"data": [{"id": name} for name in self.models]})

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.keys.append(request.headers.get("authorization", ""))
        text = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        if "please refuse" in text:
            return JSONResponse({"error": {"message": "no"}}, 429)
        if "speak nonsense" in text:
            return Response("<html>", media_type="text/html")
        return StreamingResponse(self.words("messages" in body), media_type="text/event-stream")

    async def words(self, chat: bool) -> AsyncIterator[bytes]:
        try:
            for word in WORDS:
                choice = {"delta": {"content": word}} if chat else {"text": word}
                yield b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"
                await self.hold.wait()
            yield b'data: {"choices": [{"delta": {}, "finish_reason": "length"}]}\n\n'
            yield b'data: {"choices": [], "usage": {"prompt_tokens": 21, "completion_tokens": 5}}\n\n'
            yield b"data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.left.set()
            raise


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    monkeypatch.setenv("TEST_KEY", KEY)
    state = Server()
    state.hold.set()
    routes = [
        Route("/v1/models", state.list_models),
        Route("/v1/chat/completions", state.complete, methods=["POST"]),
        Route("/v1/completions", state.complete, methods=["POST"]),
    ]
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    state.url = f"http://127.0.0.1:{sock.getsockname()[1]}/v1"
    config = uvicorn.Config(Starlette(routes=routes), log_level="error", lifespan="off", timeout_graceful_shutdown=1)
    http = uvicorn.Server(config)
    serving = asyncio.ensure_future(http._serve(sockets=[sock]))
    yield state
    http.should_exit = True
    with suppress(asyncio.CancelledError):
        await serving
    sock.close()


@asynccontextmanager
async def client(server: Server, **settings: Any) -> AsyncIterator[Watched]:
    base = {"engine": "openai", "engine_url": server.url, "engine_key_env": "TEST_KEY"}
    async with running(**{**base, **settings}) as watched:
        yield watched


async def test_answer_streams_with_the_servers_counts(server: Server) -> None:
    async with client(server) as watched:
        loaded = watched.engine.loaded
        assert loaded is not None
        assert loaded.model == "small"
        assert list(loaded.abilities) == ["generate", "chat"]
        assert "estimated" in loaded.system_info
        request = ask("What is the capital of France?", 5, seed=9, temperature=0.5)
        request.stop.append("\n")
        parts = [event async for event in watched.engine.generate(request)]
        assert "".join(part.delta.text for part in parts) == "".join(WORDS)
        assert parts[-1].finished.reason == "length"
        assert parts[-1].finished.usage.prompt_tokens == 21
        assert parts[-1].finished.usage.completion_tokens == 5
        body = server.bodies[-1]
        assert body["messages"] == [{"role": "user", "content": "What is the capital of France?"}]
        assert (body["model"], body["seed"], body["max_tokens"], body["stop"]) == ("small", 9, 5, ["\n"])
        assert server.keys[-1] == f"Bearer {KEY}"


async def test_prompt_and_prefill_go_to_their_places(server: Server) -> None:
    async with client(server) as watched:
        await answer(watched.engine, engine_pb2.GenerateRequest(prompt="Once", continue_from=" upon"))
        assert server.bodies[-1]["prompt"] == "Once upon"
        request = ask("Go on.")
        request.continue_from = "So far"
        await answer(watched.engine, request)
        assert server.bodies[-1]["messages"][-1] == {"role": "assistant", "content": "So far"}


async def test_cancelled_stream_is_closed_at_the_server(server: Server) -> None:
    async with client(server) as watched:
        server.hold.clear()
        stream = watched.engine.generate(ask("A long answer, please."))
        async for event in stream:
            if event.WhichOneof("event") == "delta":
                break
        await stream.aclose()
        async with asyncio.timeout(PATIENCE):
            await server.left.wait()
        assert (await idle(watched.engine)).slots_busy == 0


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [("please refuse", "busy", "429"), ("speak nonsense", "engine-failed", "not the OpenAI API")],
)
async def test_refusals_are_operating_errors(server: Server, text: str, code: str, words: str) -> None:
    async with client(server) as watched:
        with pytest.raises(KithError, match=words) as caught:
            await answer(watched.engine, ask(text))
        assert caught.value.code == code


async def test_scoring_is_not_offered(server: Server) -> None:
    async with client(server) as watched:
        with pytest.raises(KithError, match="can not score"):
            await watched.engine.score(engine_pb2.ScoreRequest(prompt="a", continuations=["b"]))
        assert await watched.engine.count_tokens(["four letters", "你好"]) == [3, 2]


async def failure(tmp_path: Path, **settings: Any) -> KithError:
    engine = EngineProcess(NodeConfig(data_dir=tmp_path, engine="openai", **settings), None, lambda _: None)
    with pytest.raises(KithError) as caught:
        await engine.start()
    assert engine.state == "failed"
    assert engine.pid is None
    return caught.value


async def test_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    error = await failure(tmp_path, engine_url="http://127.0.0.1:9/v1")
    assert "can not be reached" in error.message


async def test_wrong_url_is_refused(tmp_path: Path) -> None:
    assert "none of http or https" in (await failure(tmp_path, engine_url="127.0.0.1:11434")).message


async def test_wrong_key_names_the_variable(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", "wrong")
    error = await failure(tmp_path, engine_url=server.url, engine_key_env="TEST_KEY")
    assert "TEST_KEY" in error.remedy
    assert "wrong" not in error.message


async def test_unknown_model_lists_the_known(server: Server, tmp_path: Path) -> None:
    server.models = ("small", "large")
    error = await failure(tmp_path, engine_url=server.url, engine_key_env="TEST_KEY", model="huge")
    assert error.code == "bad-model"
    assert "small, large" in error.message
    error = await failure(tmp_path, engine_url=server.url, engine_key_env="TEST_KEY")
    assert "no model is named" in error.message


def test_estimate_counts_characters_where_words_have_no_spaces() -> None:
    assert estimate_tokens("") == 0
    assert estimate_tokens("abcd efgh") == 3
    assert estimate_tokens("你好世界") == 4
