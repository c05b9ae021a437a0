"""What the echo back end answers is a function of its prompt; its pace is kept by the clock, so it is not tested to
the millisecond."""

import time

from hypothesis import given
from hypothesis import strategies as st

from mesh.wire import engine_pb2
from node.engine.echo import answer_to, score_of, tokens_of
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


async def heard(request: engine_pb2.GenerateRequest) -> tuple[str, list[int]]:
    async with running() as watched:
        events = [event async for event in watched.engine.generate(request)]
    deltas = [event.delta for event in events if event.HasField("delta")]
    return "".join(delta.text for delta in deltas), [token for delta in deltas for token in delta.token_ids]


async def test_tokens_come_where_they_are_wanted_and_go_on_where_they_end() -> None:
    request = ask("First sentence here. Second one. Third.")
    assert (await heard(request))[1] == []
    request.want_tokens = True
    text, tokens = await heard(request)
    assert (text, len(tokens)) == ("First sentence here. Second one.", 5)
    request.continue_tokens.extend(tokens[:2])
    assert await heard(request) == (" here. Second one.", tokens[2:])
    request.continue_tokens[0] += 1
    assert (await heard(request))[0] == text, "another answer was begun elsewhere"
