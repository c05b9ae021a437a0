"""What the echo back end answers is a function of its prompt; its pace is kept by the clock, so it is not tested to
the millisecond."""

import asyncio
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.wire import engine_pb2
from node.engine.echo import EMBEDDING_SIZE, answer_to, id_of, score_of, tokens_of, vector_of
from node.errors import KithError
from tests.node.engine.engines import answer, ask, running


@given(st.text())
def test_tokens_join_to_the_text(text: str) -> None:
    assert "".join(tokens_of(text)) == text.rstrip() or text.isspace()


@given(st.text())
def test_answer_is_verbatim(text: str) -> None:
    found = answer_to(text)
    assert found in text or found == "(nothing)"


def test_answer_is_the_beginning_of_the_longest_paragraph() -> None:
    prompt = "Summarise this text.\n\nThe fox ran 3.5 miles. It slept! Then it ate. Then it slept again.\n\nThanks."
    assert answer_to(prompt) == "The fox ran 3.5 miles. It slept!"
    assert answer_to("请总结。\n\n春眠不觉晓。处处闻啼鸟。夜来风雨声。") == "春眠不觉晓。处处闻啼鸟。"


def test_tokens_are_words_and_characters() -> None:
    assert tokens_of("Hello, big world") == ["Hello,", " big", " world"]
    assert tokens_of("你好 world") == ["你", "好", " world"]


@pytest.mark.parametrize("unit", [".", " ", "\n", "。", "” ", ".)", ". ", "!\n\n", "a"])
def test_a_megabyte_of_anything_is_read_in_one_go(unit: str) -> None:
    """By what was quadratic it took hours: the bound is a hundred times what is needed."""
    text = unit * (1_000_000 // len(unit))
    began = time.process_time()
    answer_to(text + "x")
    assert "".join(tokens_of(f"x{text}")) == f"x{text}".rstrip()
    assert time.process_time() - began < 20


@given(st.text(), st.text(min_size=1))
def test_score_is_negative_and_repeatable(prompt: str, continuation: str) -> None:
    assert score_of(prompt, continuation) == score_of(prompt, continuation) < 0


async def test_pace_is_not_exceeded() -> None:
    async with running(echo_tokens_per_s=100.0) as watched:
        begun = time.monotonic()
        text, reason, _ = await answer(watched.engine, ask("a b c d e f g h i j k l m n o p q r s t u v w x y z", 20))
        assert (text, reason) == ("a b c d e f g h i j k l m n o p q r s t", "length")
        assert time.monotonic() - begun >= 19 / 100


async def test_continued_answer_is_the_rest() -> None:
    async with running() as watched:
        request = ask("First sentence here. Second one. Third.")
        request.continue_from = "First sentence"
        assert (await answer(watched.engine, request))[0] == " here. Second one."


async def test_continued_tokens_are_followed_by_exactly_the_rest() -> None:
    async with running() as watched:
        request = ask("First sentence here. Second one. Third.")
        request.want_tokens = True
        text = ""
        ids: list[int] = []
        async for event in watched.engine.generate(request):
            text += event.delta.text
            ids += event.delta.token_ids
        assert ids == [id_of(token) for token in tokens_of(text)]
        for cut in range(1, len(ids)):
            request.continue_tokens[:] = ids[:cut]
            rest, reason, _ = await answer(watched.engine, request)
            assert (rest, reason) == ("".join(tokens_of(text)[cut:]), "stop")
        request.continue_tokens[:] = [1, 2]
        with pytest.raises(KithError, match="not what this engine says"):
            await answer(watched.engine, request)


@given(st.text(max_size=50))
def test_vectors_have_length_one(text: str) -> None:
    vector = vector_of(text)
    assert len(vector) == EMBEDDING_SIZE
    assert math.isclose(sum(value * value for value in vector), 1.0, rel_tol=1e-9)
    assert vector == vector_of(text)


async def test_embedding_orders_texts_by_their_words() -> None:
    async with running() as watched:
        texts = ["the cat sat on the mat", "on the mat sat a cat", "income tax is due in april"]
        reply = await watched.engine.embed(engine_pb2.EmbedRequest(texts=texts))
        one, same, other = [list(vector.values) for vector in reply.vectors]
        assert watched.engine.loaded is not None
        assert watched.engine.loaded.embedding_size == len(one)
        assert sum(a * b for a, b in zip(one, same, strict=True)) > sum(a * b for a, b in zip(one, other, strict=True))
        assert reply.usage.prompt_tokens == 18
        with pytest.raises(KithError, match="nothing to embed"):
            await watched.engine.embed(engine_pb2.EmbedRequest())


async def test_what_it_can_not_follow_is_refused() -> None:
    async with running() as watched:
        assert watched.engine.loaded is not None
        assert not {"grammar", "logprobs", "tools"} & set(watched.engine.loaded.abilities)
        for fields in ({"grammar": 'root ::= "a"'}, {"json_schema": "{}"}, {"logprobs": True}, {"tools_json": "[]"}):
            request = ask("Hello there.")
            request.MergeFrom(engine_pb2.GenerateRequest(**fields))
            with pytest.raises(KithError, match="can not follow"):
                await answer(watched.engine, request)


async def test_a_request_that_comes_too_late_is_not_begun() -> None:
    async with running(echo_tokens_per_s=20.0, slots=1) as watched:
        long = asyncio.ensure_future(answer(watched.engine, ask("a b c d e f g h i j k l m n o p q r", 18)))
        await watched.until_slots_busy()
        late = ask("Hello there.")
        late.useful_seconds = 0.05
        with pytest.raises(KithError) as caught:
            await answer(watched.engine, late)
        assert caught.value.code == "too-late"
        await long
        assert (await answer(watched.engine, late))[0] == "Hello there."
