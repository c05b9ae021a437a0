"""Measuring a server from outside; the rest of serving is tested through the child, in test_openai.py."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from mesh.wire import engine_pb2
from node.engine.backend import Outbox, Request
from node.engine.hosted.client import HttpClient
from node.engine.hosted.dialect import Dialect, Piece, estimate_prompt, estimate_tokens
from node.engine.hosted.llama_server import LlamaServer
from node.engine.hosted.openai_api import OpenaiApi
from node.engine.hosted.serving import CALIBRATION_TOKENS, Serving, calibrate
from node.errors import KithError
from tests.node.engine.hosted.talking import client_of, streams, told_server


class Clock:
    """Seconds that pass only when they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("node.engine.hosted.serving.time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


async def test_rates_are_reading_until_the_first_token_and_writing_after_it(clock: Clock) -> None:
    asked: list[engine_pb2.GenerateRequest] = []

    async def generate(command: engine_pb2.GenerateRequest) -> AsyncGenerator[Piece, None]:
        asked.append(command)
        clock.now += 2.0
        for _ in range(CALIBRATION_TOKENS):
            yield Piece(text="one ", tokens=1)
            clock.now += 0.1
        yield Piece(reason="length", prompt_tokens=150, completion_tokens=CALIBRATION_TOKENS)

    rates = await calibrate(generate)
    assert rates.prefill_tokens_per_s == pytest.approx(75)
    assert rates.decode_tokens_per_s == pytest.approx(10)
    await calibrate(generate)
    assert asked[0].messages[0].content.split(":")[0] != asked[1].messages[0].content.split(":")[0]


async def test_server_that_sends_all_at_once_is_measured_as_a_whole(clock: Clock) -> None:
    async def generate(command: engine_pb2.GenerateRequest) -> AsyncGenerator[Piece, None]:
        clock.now += 4.0
        yield Piece(text="all of it", prompt_tokens=estimate_prompt(command), completion_tokens=20)

    assert (await calibrate(generate)).decode_tokens_per_s == pytest.approx(5)


async def test_model_that_says_nothing_is_no_model() -> None:
    async def generate(command: engine_pb2.GenerateRequest) -> AsyncGenerator[Piece, None]:
        await asyncio.sleep(0)
        yield Piece(reason="stop")

    with pytest.raises(KithError, match="answers nothing"):
        await calibrate(generate)


async def test_a_long_count_does_not_make_the_engine_look_busy() -> None:
    """The server's progress stands still meanwhile: the watchdog would take it for a hang."""
    begun, go_on = threading.Event(), threading.Event()

    async def count(texts: Sequence[str]) -> list[int]:
        begun.set()
        await asyncio.to_thread(go_on.wait)
        return [len(text) for text in texts]

    serving = Serving("counting")
    serving.use(SimpleNamespace(count_tokens=count), (), 1, 100)
    ended: list[int] = []
    over = threading.Event()

    def end(number: int) -> None:
        ended.append(number)
        over.set()

    command = engine_pb2.EngineCommand(id=7, count_tokens=engine_pb2.CountTokensRequest(texts=["abc"]))
    serving.submit(Request(command, Outbox(lambda _: None), end))
    assert await asyncio.to_thread(begun.wait, 30)
    stats = serving.stats()
    assert (stats.slots_busy, stats.queue_length) == (0, 0)
    go_on.set()
    assert await asyncio.to_thread(over.wait, 30)
    assert ended == [7]
    end_of(serving)


def end_of(serving: Serving) -> None:
    thread = next(thread for thread in threading.enumerate() if thread.name == serving._name)
    serving._loop.call_soon_threadsafe(serving._loop.stop)
    thread.join(10)
    serving._loop.close()


@pytest.mark.parametrize(
    ("make", "path", "field", "told"),
    [
        (LlamaServer, "/completion", "n_predict", 90),
        (OpenaiApi, "/v1/completions", "max_tokens", None),
    ],
)
async def test_a_limit_beyond_the_context_is_kept_back_only_where_servers_refuse_it(
    make: Callable[[HttpClient, str], Dialect], path: str, field: str, told: Any
) -> None:
    """llama-server stops where its context ends, and without the limit it would write on until there."""
    done = threading.Event()
    command = engine_pb2.EngineCommand(id=1, generate=engine_pb2.GenerateRequest(prompt="x " * 20, max_tokens=90))
    request = Request(command, Outbox(lambda _: None), lambda _: done.set())
    async with told_server() as server:
        server.answers[path] = streams({"content": "yes", "stop": True, "choices": [{"text": "yes"}]})
        serving = Serving("test")

        async def connect() -> HttpClient:
            return client_of(server.url)

        client = serving.run(connect())
        try:
            serving.use(make(client, "m"), ("generate",), 1, 100)
            serving.submit(request)
            assert await asyncio.to_thread(done.wait, 10)
        finally:
            serving.run(client.close())
            end_of(serving)
        assert [body.get(field) for _, body in server.asked] == [told]


class Kept(Outbox):
    """Events, as they are sent."""

    def __init__(self) -> None:
        super().__init__(lambda _: None)
        self.events: list[engine_pb2.GenerateEvent] = []

    def put(self, event: engine_pb2.EngineEvent) -> None:
        self.events.append(event.generate)


async def test_a_limit_that_is_held_here_is_reached_by_the_whole_text_and_not_by_each_piece_rounded_up() -> None:
    """A server that streams token by token was cut at two thirds of what was asked for."""
    done = threading.Event()
    command = engine_pb2.EngineCommand(id=1, generate=engine_pb2.GenerateRequest(prompt="x " * 20, max_tokens=90))
    kept = Kept()
    async with told_server() as server:
        server.answers["/v1/completions"] = streams(*({"choices": [{"text": text}]} for text in [" and", "."] * 200))
        serving = Serving("test")

        async def connect() -> HttpClient:
            return client_of(server.url)

        client = serving.run(connect())
        try:
            serving.use(OpenaiApi(client, "m"), ("generate",), 1, 100)
            serving.submit(Request(command, kept, lambda _: done.set()))
            assert await asyncio.to_thread(done.wait, 10)
        finally:
            serving.run(client.close())
            end_of(serving)
    deltas = [event.delta for event in kept.events if event.HasField("delta")]
    assert estimate_tokens("".join(delta.text for delta in deltas)) == 90
    assert sum(delta.tokens for delta in deltas) == 90
    assert deltas[0].tokens == 1
    assert (kept.events[-1].finished.reason, kept.events[-1].finished.usage.completion_tokens) == ("length", 90)


@pytest.mark.parametrize("when", ["before", "at once"])
def test_a_request_that_is_cancelled_before_its_first_step_ends(when: str) -> None:
    """A task that never began runs none of its lines: the request would be open, and the engine busy, for ever."""
    serving = Serving("test")
    sent: list[bytes] = []
    ended: list[int] = []
    command = engine_pb2.EngineCommand(id=7, generate=engine_pb2.GenerateRequest(prompt="x"))
    request = Request(command, Outbox(sent.append), ended.append)

    async def both() -> None:
        request.cancelled = when == "before"
        serving._begin(request)
        request.cancelled = True
        serving._cancel_cancelled()
        for _ in range(3):
            await asyncio.sleep(0)

    serving.run(both())
    end_of(serving)
    assert (ended, len(sent)) == ([7], 1)
    assert not serving._running
