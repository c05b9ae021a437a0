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

from mesh.wire import engine_pb2, local_pb2
from node.client import NodeClient
from node.config import NodeConfig
from node.engine import process
from node.engine.process import EngineProcess
from node.errors import KithError
from scripts.daemons import until
from tests.conftest import DaemonFactory
from tests.node.engine import model_server
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
    listed: int = 0
    hold: asyncio.Event = field(default_factory=asyncio.Event)  # set: the stream goes on after its first word
    left: asyncio.Event = field(default_factory=asyncio.Event)  # set when a client leaves in the middle

    async def list_models(self, request: Request) -> Response:
        self.listed += 1
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return JSONResponse({"error": {"message": "bad key"}}, 401)
        return JSONResponse({"data": [{"id": name} for name in self.models]})

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        if not body.get("stream"):  # a trial: this server shows nothing but completions
            choice = {"message": {"content": "Paris"}, "text": "Paris"}
            return JSONResponse({"choices": [choice]})
        self.bodies.append(body)
        self.keys.append(request.headers.get("authorization", ""))
        text = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        if "please refuse" in text:
            return JSONResponse({"error": {"message": "no"}}, 429)
        if "not by us" in text:
            return JSONResponse({"error": {"message": "we know no seed"}}, 400)
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
        assert list(loaded.abilities) == ["chat", "generate"]
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


async def test_prompt_goes_on_and_a_dialogue_only_where_the_server_can(server: Server) -> None:
    async with client(server) as watched:
        await answer(watched.engine, engine_pb2.GenerateRequest(prompt="Once", continue_from=" upon"))
        assert server.bodies[-1]["prompt"] == "Once upon"
        request = ask("Go on.")
        request.continue_from = "So far"
        with pytest.raises(KithError, match="go on from a given beginning"):
            await answer(watched.engine, request)


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


async def test_a_server_that_comes_later_is_found(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that boots may start the node before the server, or the server before its model is there."""
    monkeypatch.setattr(process, "SERVER_AGAIN_FIRST_S", 0.01)
    settings: dict[str, Any] = {"engine_url": server.url, "engine_key_env": "TEST_KEY", "model": "huge"}
    watched = Watched(NodeConfig(data_dir=Path("unused"), engine="openai", **settings), None)
    starting = asyncio.create_task(watched.engine.start_or_wait())
    try:
        await until(lambda: tried(server, 3), PATIENCE, "it tries again")
        assert watched.engine.state == "failed"
        assert sum("has no model" in line or "huge" in line for line in watched.lines) == 1, "said once"
        server.models = ("huge",)
        await asyncio.wait_for(starting, PATIENCE)
        assert watched.engine.state == "ready"
        assert (await answer(watched.engine, ask("x", 5)))[0] == "".join(WORDS)
    finally:
        starting.cancel()
        await watched.engine.stop()


async def tried(server: Server, times: int) -> bool:
    return server.listed >= times


async def test_what_no_waiting_mends_ends_at_once(tmp_path: Path) -> None:
    engine = EngineProcess(NodeConfig(data_dir=tmp_path, engine="llama"), tmp_path / "none.gguf", lambda _: None)
    with pytest.raises(KithError):
        await engine.start_or_wait()
    assert engine.state == "failed"


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


async def test_requests_wait_for_a_place_by_priority(server: Server) -> None:
    async with client(server) as watched:
        server.hold.clear()
        running = []
        for number, (text, priority) in enumerate((("a", 0), ("b", 0), ("c", 1))):
            request = ask(text)
            request.priority = priority
            running.append(asyncio.ensure_future(answer(watched.engine, request)))
            async with asyncio.timeout(PATIENCE):
                while (stats := await watched.engine.stats()).slots_busy + stats.queue_length <= number:
                    pass
        server.hold.set()
        await asyncio.gather(*running)
        texts = [body["messages"][0]["content"] for body in server.bodies]
        assert texts[-3:] == ["a", "c", "b"]


@pytest.mark.model
@pytest.mark.slow
async def test_real_llama_server_is_fronted_with_all_it_can(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xllamacpp")
    monkeypatch.setenv("TEST_KEY", model_server.KEY)
    with model_server.llama_server(model_path) as url:
        settings: dict[str, Any] = {"engine": "openai", "engine_url": url, "engine_key_env": "TEST_KEY"}
        async with running(**settings) as watched:
            loaded, rates = watched.engine.loaded, watched.engine.calibrated
            assert loaded is not None
            assert rates is not None
            abilities = {"generate", "chat", "continue", "score", "grammar", "json_schema", "logprobs", "embed"}
            assert set(loaded.abilities) == abilities
            assert (loaded.model, loaded.context_tokens) == (model_server.MODEL, model_server.CONTEXT_TOKENS)
            assert loaded.system_info.startswith("llama-server at http://")
            assert loaded.parameters > 100_000_000
            assert 1 < rates.decode_tokens_per_s < 10_000
            assert 1 < rates.prefill_tokens_per_s < 100_000
            request = ask("Name the capital of France.", 8)
            request.want_tokens = True
            events = [event async for event in watched.engine.generate(request)]
            deltas = [event.delta for event in events if event.WhichOneof("event") == "delta"]
            assert sum(delta.tokens for delta in deltas) == sum(len(delta.token_ids) for delta in deltas) > 0
            assert events[-1].finished.usage.prompt_tokens > 30
            reply = await watched.engine.embed(engine_pb2.EmbedRequest(texts=["a", "b"]))
            assert [len(vector.values) for vector in reply.vectors] == [loaded.embedding_size] * 2
            score = engine_pb2.ScoreRequest(messages=request.messages, continuations=["Paris", "xqzzzjk"])
            paris, nonsense = (await watched.engine.score(score)).log_probabilities
            assert paris > nonsense
            assert await watched.engine.count_tokens(["hello world"]) == [2]
            stream = watched.engine.generate(ask("Write a long story.", 900))
            async for event in stream:
                if event.delta.text:
                    break
            await stream.aclose()
            assert (await answer(watched.engine, ask("Hi", 2)))[0]  # the server has one slot, and it is free


async def test_own_http_door_is_fronted(daemon: DaemonFactory) -> None:
    """A node whose engine is another mesh: the answer comes from the echo engine behind it."""
    behind = daemon("--http", "127.0.0.1:0", alone=True)
    url = f"http://{(await behind.ready()).http_address}/v1"
    options = ("--engine", "openai", "--engine-url", url, "--model", "kith")
    front = daemon(*options, alone=True, name="front")
    agent = (await front.ready()).agent
    assert (agent.backend, agent.model) == ("openai", "kith")
    assert "chat" in agent.abilities
    assert not {"grammar", "continue", "kv"} & set(agent.abilities)
    request = local_pb2.ChatRequest(request=ask("One sentence. Another one. A third."))
    async with NodeClient(front.data_dir) as node:
        said = [event.generate.delta.text async for event in node.chat(request)]
    assert "".join(said) == "One sentence. Another one."


async def test_what_its_server_refuses_another_node_answers(server: Server, daemon: DaemonFactory) -> None:
    options = ("--engine", "openai", "--engine-url", server.url)
    front = daemon(*options, name="front", environment={"OPENAI_API_KEY": KEY})
    [address, *_] = (await front.ready()).addresses
    seed = ("--seed", f"{address.host}:{address.port}")
    other = daemon(*seed, name="other", environment={"KITH_ECHO_TOKENS_PER_S": "20"})
    await other.ready()

    async def both() -> bool:
        return sum(len(info.profile.agents) for info in await front.nodes()) == 2

    await until(both, 20.0, "both agents")
    request = local_pb2.ChatRequest(request=ask("This is said, but not by us."))
    async with front.client() as node:
        events = [event async for event in node.chat(request)]
        assert events[0].routed.node_name == "front", "its server is the faster one"
        assert "".join(event.generate.delta.text for event in events) == "This is said, but not by us."
        request.node = "front"
        with pytest.raises(KithError, match="we know no seed") as caught:
            assert [event async for event in node.chat(request)]
    assert caught.value.code == "agent-refused"
