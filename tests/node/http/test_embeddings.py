"""Embeddings with OpenAI's own client."""

import asyncio
import json
import time
from collections.abc import Hashable
from typing import Any

import httpx2
import openai
import pytest

from mesh.wire import engine_pb2
from node.errors import ExitCode, KithError
from node.http import embeddings
from node.http.chat import PRIORITY
from node.limits import MESSAGE_BYTES_MAX
from node.route import Route
from tests.node.http.scripted import Scripted, agent

VECTORS = {"a": [1.0, 0.0], "b": [0.6, -0.8]}


def mesh(*agents: tuple[str, Any]) -> Scripted:
    return Scripted(list(agents) or [agent("a", embedding_size=2)], vectors=lambda text: VECTORS.get(text, [0.0, 1.0]))


@pytest.mark.parametrize("encoding", ["float", "base64", None])
async def test_vectors_come_in_order_in_either_encoding(encoding: Any) -> None:
    more: Any = {"encoding_format": encoding} if encoding else {}
    async with mesh().client() as client:
        answer: Any = await client.embeddings.create(model="kith", input=["a", "b"], **more)
    vectors = [entry.embedding for entry in answer.data]
    if encoding == "base64":
        assert vectors[0] == "AACAPwAAAAA="
    else:  # the client asks for base64 by itself, and decodes it
        assert vectors == [[1.0, 0.0], [pytest.approx(0.6), pytest.approx(-0.8)]]
    assert [entry.index for entry in answer.data] == [0, 1]
    assert answer.model == "m"
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 2


async def test_many_texts_go_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "BATCH", 2)
    async with mesh().client() as client:
        answer = await client.embeddings.create(model="kith", input=["a", "b", "a", "c", "b"])
    assert len(answer.data) == 5
    assert answer.data[2].embedding == [1.0, 0.0]
    assert answer.usage.prompt_tokens == 5


async def test_what_a_client_waits_for_is_as_urgent_as_its_dialogues() -> None:
    given: list[engine_pb2.EmbedRequest] = []

    class Noting(Scripted):
        async def embed(
            self, route: Route, request: engine_pb2.EmbedRequest, who: Hashable = "local"
        ) -> tuple[engine_pb2.EmbedReply, Route]:
            given.append(request)
            return await super().embed(route, request, who)

    async with Noting([agent("a", embedding_size=2)]).client() as client:
        await client.embeddings.create(model="kith", input=["a"], encoding_format="float")
    assert [(request.priority, request.owner) for request in given] == [(PRIORITY, "key:somebody")]


def test_the_vectors_of_one_call_fit_into_a_message_between_nodes() -> None:
    vector = engine_pb2.EmbedReply.Vector(values=[0.1] * 8192)
    assert engine_pb2.EmbedReply(vectors=[vector] * embeddings.BATCH).ByteSize() < MESSAGE_BYTES_MAX


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [1, 2]}, "input"),
        ({"input": [[1, 2]]}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"dimensions": 1}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"model": "kith/panel"}, "model"),
    ],
)
async def test_what_can_not_be_done_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    async with mesh().client() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.embeddings.create(**({"model": "kith", "input": "a"} | fields))
        assert caught.value.param == param
        await client.embeddings.create(model="kith", input="a", dimensions=2)


async def test_an_agent_that_does_not_embed() -> None:
    async with mesh(agent("a", abilities=("chat",))).client() as client:
        with pytest.raises(openai.BadRequestError, match="embed") as caught:
            await client.embeddings.create(model="kith", input="a")
    assert caught.value.param == "model"


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_very_many_numbers_hold_nobody_else_up(encoding: str) -> None:
    """Between two turns of the loop its thread computes for a moment only, whatever else this machine does."""
    whole = [1.0, 1.0 / 3.0, *[0.1] * 1022]
    many = Scripted([agent("a", embedding_size=1024)], vectors=lambda text: whole)
    longest_s = 0.0

    async def beat() -> None:
        nonlocal longest_s
        before = time.thread_time()
        while True:
            await asyncio.sleep(0.001)
            now = time.thread_time()
            longest_s, before = max(longest_s, now - before), now

    async with many.serving() as url, httpx2.AsyncClient(timeout=60) as client:
        body = {"model": "kith", "input": ["a"] * 512, "encoding_format": encoding}
        beating = asyncio.create_task(beat())
        got = bytearray()
        async with client.stream("POST", f"{url}/embeddings", json=body) as response:
            async for chunk in response.aiter_bytes():
                got += chunk
        beating.cancel()
    assert response.headers["content-type"] == "application/json"
    data = json.loads(got)["data"]
    assert [entry["index"] for entry in data] == list(range(512))
    assert all(entry["embedding"] == data[0]["embedding"] for entry in data)
    if encoding == "float":
        assert data[0]["embedding"] == pytest.approx(whole)
    assert longest_s < 0.1


async def test_numbers_that_json_does_not_have_are_an_engines_failure() -> None:
    async with Scripted(vectors=lambda text: [1.0, float("nan")]).client() as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.embeddings.create(model="kith", input="a", encoding_format="float")
    assert caught.value.code == "engine-failed"


async def test_a_text_that_is_too_long_for_the_engine_is_named_as_the_field_that_is_wrong() -> None:
    class Short(Scripted):
        async def embed(
            self, route: Route, request: engine_pb2.EmbedRequest, who: Hashable = "local"
        ) -> tuple[engine_pb2.EmbedReply, Route]:
            raise KithError("prompt-too-long", "a text has 2,001 tokens", "Send it in parts.", ExitCode.BAD_INPUT)

    async with Short([agent("a", embedding_size=2)]).client() as client:
        with pytest.raises(openai.BadRequestError, match="in parts") as caught:
            await client.embeddings.create(model="kith", input="a")
    assert (caught.value.code, caught.value.param) == ("prompt-too-long", "input")
