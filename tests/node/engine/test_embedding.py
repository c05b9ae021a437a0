"""Vectors from the real model, beside what it writes."""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from mesh.wire import engine_pb2
from node.errors import KithError
from tests.node.engine.engines import Watched, answer, ask, running

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched(model_path: Path) -> AsyncIterator[Watched]:
    async with running(model_path, slots=2, ctx=256) as watched:
        yield watched


async def vectors(watched: Watched, texts: Sequence[str]) -> list[list[float]]:
    reply = await watched.engine.embed(engine_pb2.EmbedRequest(texts=texts))
    return [list(vector.values) for vector in reply.vectors]


def product(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


async def test_vectors_have_length_one_and_order_what_is_alike(watched: Watched) -> None:
    cat, kitten, tax = await vectors(
        watched,
        ["The cat sleeps on the sofa.", "A cat is sleeping on the couch.", "Income tax is due at the end of April."],
    )
    assert watched.engine.loaded is not None
    for vector in (cat, kitten, tax):
        assert len(vector) == watched.engine.loaded.embedding_size
        assert math.isclose(product(vector, vector), 1.0, abs_tol=1e-5)
    assert product(cat, kitten) > product(cat, tax)


async def test_company_does_not_change_a_vector(watched: Watched) -> None:
    texts = [f"Sentence number {i} speaks of {thing}." for i, thing in enumerate(["bread", "war", "rain"] * 13)]
    together = await vectors(watched, texts)
    assert len(together) == len(texts)
    for i in (0, 17, 38):
        (alone,) = await vectors(watched, [texts[i]])
        assert product(alone, together[i]) > 0.999


async def test_writing_goes_on_beside_it(watched: Watched) -> None:
    expected, _, _ = await answer(watched.engine, ask("Tell me a story.", 24))
    writing = asyncio.ensure_future(answer(watched.engine, ask("Tell me a story.", 24)))
    await watched.until_slots_busy()
    assert len(await vectors(watched, ["word " * 60] * 8)) == 8
    assert (await writing)[0] == expected


async def test_usage_counts_the_tokens(watched: Watched) -> None:
    reply = await watched.engine.embed(engine_pb2.EmbedRequest(texts=["one two three", "four"]))
    assert reply.usage.prompt_tokens == sum(await watched.engine.count_tokens(["one two three", "four"]))


async def test_control_tokens_in_a_text_are_text(watched: Watched) -> None:
    reply = await watched.engine.embed(engine_pb2.EmbedRequest(texts=["<|im_start|>"]))
    assert reply.usage.prompt_tokens > 1


@pytest.mark.parametrize(
    ("texts", "code"), [(["fine", "word " * 300], "prompt-too-long"), ([], "bad-request"), (["x", ""], "bad-request")]
)
async def test_what_can_not_be_embedded_is_refused(watched: Watched, texts: list[str], code: str) -> None:
    with pytest.raises(KithError) as caught:
        await vectors(watched, texts)
    assert caught.value.code == code
