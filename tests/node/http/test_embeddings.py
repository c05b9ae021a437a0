"""Embeddings with OpenAI's own client."""

from typing import Any

import openai
import pytest

from node.http import embeddings
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
