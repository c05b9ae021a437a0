"""The real model, through the real child process."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from mesh.wire import engine_pb2
from node.config import NodeConfig
from node.engine.process import EngineProcess
from node.errors import KithError
from tests.node.engine.engines import PATIENCE, Watched, answer, ask, idle, running
from tests.node.engine.gguf_files import sample

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="module")]

CAPITAL = "The capital of Germany is Berlin. The capital of Italy is Rome. The capital of France is"


def goes_on(prompt: str, max_tokens: int) -> engine_pb2.GenerateRequest:
    return engine_pb2.GenerateRequest(prompt=prompt, max_tokens=max_tokens)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched(model_path: Path) -> AsyncIterator[Watched]:
    async with running(model_path, slots=3, ctx=512) as watched:
        yield watched


async def test_engine_says_what_it_loaded(watched: Watched, model_path: Path) -> None:
    loaded, calibrated = watched.engine.loaded, watched.engine.calibrated
    assert loaded is not None
    assert loaded.parameters == 134_515_008
    assert loaded.model == model_path.stem
    assert (loaded.quantization, loaded.slots, loaded.context_tokens) == ("Q4_1", 3, 512)
    assert loaded.vocabulary_size == 49_152
    assert loaded.has_chat_template
    assert calibrated is not None
    assert calibrated.prefill_tokens_per_s > 1
    assert calibrated.decode_tokens_per_s > 1


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"slots": 2}, ("split", "auto: fewer than 16 requests came since it is so")),
        ({"slots": 1}, ("split", "auto: with one slot both are the same")),
        ({"slots": 2, "kv_cache": "split"}, ("split", "set so")),
        ({"slots": 2, "kv_cache": "unified"}, ("unified", "set so")),
    ],
)
async def test_engine_says_of_which_kind_its_kv_cache_is(
    model_path: Path, settings: dict[str, Any], told: tuple[str, str]
) -> None:
    async with running(model_path, ctx=128, **settings) as watched:
        stats = await idle(watched.engine)
        assert (stats.kv_cache, stats.kv_cache_why) == told


async def test_prompts_that_begin_alike_bring_a_unified_cache_and_the_answers_stay_right(model_path: Path) -> None:
    async with running(model_path, slots=8, ctx=128) as watched:
        for _ in range(2):
            answers = await asyncio.gather(*(answer(watched.engine, goes_on(CAPITAL, 4)) for _ in range(24)))
            assert all(text.startswith(" Paris") and reason == "length" for text, reason, _ in answers)
        stats = await idle(watched.engine)
        assert stats.kv_cache == "unified"
        assert (await answer(watched.engine, goes_on(CAPITAL, 4)))[2] > 0, "what was read is still there"


async def test_tokens_stream(watched: Watched) -> None:
    kinds: list[str] = []
    tokens = 0
    async for event in watched.engine.generate(ask("What is the capital of France?", 12)):
        kinds.append(event.WhichOneof("event") or "")
        tokens += event.delta.tokens
    assert kinds[0] == "started"
    assert kinds[-1] == "finished"
    assert kinds.count("delta") >= 2
    assert event.finished.usage.completion_tokens >= tokens > 0
    assert event.finished.usage.prompt_tokens > 10
    assert event.finished.usage.decode_seconds > 0


async def test_greedy_answer_is_right(watched: Watched) -> None:
    text, reason, _ = await answer(watched.engine, goes_on(CAPITAL, 4))
    assert text.startswith(" Paris")
    assert reason == "length"


async def test_seed_decides_the_text(watched: Watched) -> None:
    same = [
        (await answer(watched.engine, ask("Tell me a story.", 16, temperature=1.0, seed=7, top_k=50)))[0]
        for _ in range(2)
    ]
    other = (await answer(watched.engine, ask("Tell me a story.", 16, temperature=1.0, seed=8, top_k=50)))[0]
    assert same[0] == same[1]
    assert other != same[0]


async def test_company_does_not_change_what_is_likely(watched: Watched) -> None:
    """Texts may part where two tokens are as good as equal, because a batch of one row rounds differently."""
    options = [" is a small furry animal.", " is wide and blue.", " are the capital of France."]
    requests = [
        engine_pb2.ScoreRequest(prompt=f"Here is one sentence about them: {thing}", continuations=options)
        for thing in ("The cat", "The sea", "Paris and Berlin")
    ]
    alone = [list((await watched.engine.score(request)).log_probabilities) for request in requests]
    together = await asyncio.gather(*(watched.engine.score(request) for request in requests))
    for reply, values in zip(together, alone, strict=True):
        assert list(reply.log_probabilities) == pytest.approx(values, abs=0.3)


async def test_more_requests_than_slots_all_finish(watched: Watched) -> None:
    answers = await asyncio.gather(*(answer(watched.engine, ask(f"Count from {i}.", 6)) for i in range(7)))
    assert all(text for text, _, _ in answers)


async def test_cancelled_generation_frees_its_slot(watched: Watched) -> None:
    before = await watched.engine.stats()
    stream = watched.engine.generate(ask("Write a very long story.", 400))
    async for event in stream:
        if event.WhichOneof("event") == "delta":
            break
    await stream.aclose()
    stats = await idle(watched.engine)
    assert stats.tokens_generated - before.tokens_generated < 300
    assert (await answer(watched.engine, ask("Say hello.", 4)))[0]


@pytest.mark.parametrize("kind", ["score", "embed"])
async def test_a_question_that_is_cancelled_half_way_frees_its_slot_and_the_next_answer_is_right(
    watched: Watched, kind: str
) -> None:
    engine = watched.engine
    texts = [f" {number}" + " one two three four" * 12 for number in range(250)]
    options = [" Paris", " a banana in the sun"]
    before = await engine.score(engine_pb2.ScoreRequest(prompt=CAPITAL, continuations=options))
    (vector,) = (await engine.embed(engine_pb2.EmbedRequest(texts=[CAPITAL]))).vectors
    whole = sum(await engine.count_tokens(texts))
    begun = (await idle(engine)).prompt_tokens_processed
    asked = (
        engine.score(engine_pb2.ScoreRequest(prompt="Count:", continuations=texts))
        if kind == "score"
        else engine.embed(engine_pb2.EmbedRequest(texts=texts))
    )
    asking = asyncio.ensure_future(asked)
    async with asyncio.timeout(PATIENCE):
        while (await engine.stats()).prompt_tokens_processed < begun + 300:
            assert not asking.done()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    stats = await idle(engine)
    assert asking.cancelled()
    assert 300 <= stats.prompt_tokens_processed - begun < whole / 2
    again = await engine.score(engine_pb2.ScoreRequest(prompt=CAPITAL, continuations=options))
    assert list(again.log_probabilities) == pytest.approx(list(before.log_probabilities), abs=0.3)
    (same,) = (await engine.embed(engine_pb2.EmbedRequest(texts=[CAPITAL]))).vectors
    assert list(same.values) == pytest.approx(list(vector.values), abs=0.01)
    assert (await answer(engine, goes_on(CAPITAL, 4)))[0].startswith(" Paris")


async def test_prompt_that_was_read_before_is_not_read_again(watched: Watched) -> None:
    question = "Here is a list: " + ", ".join(f"item {i}" for i in range(30)) + ". How many are there?"
    _, _, cached_first = await answer(watched.engine, ask(question, 4))
    _, _, cached_second = await answer(watched.engine, ask(question, 4))
    assert cached_first < 40
    assert cached_second > 100


async def test_answer_goes_on_from_what_was_said(watched: Watched) -> None:
    request = ask("Write one sentence about bread.", 16)
    whole, _, _ = await answer(watched.engine, request)
    middle = whole.index(" ", len(whole) // 2)
    request.continue_from = whole[:middle]
    rest, _, _ = await answer(watched.engine, request)
    assert rest.startswith(whole[middle:][:10])


async def test_stop_string_ends_the_text_before_it(watched: Watched) -> None:
    whole, _, _ = await answer(watched.engine, goes_on(CAPITAL, 24))
    stop = whole[len(whole) // 2 :][:6]
    request = goes_on(CAPITAL, 24)
    request.stop.append(stop)
    text, reason, _ = await answer(watched.engine, request)
    assert reason == "stop"
    assert text == whole[: whole.index(stop)]


async def test_chinese_comes_in_whole_characters(watched: Watched) -> None:
    request = engine_pb2.GenerateRequest(prompt="春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。" * 3, max_tokens=24)
    text, _, _ = await answer(watched.engine, request)
    assert "\ufffd" not in text
    assert any("\u4e00" <= character <= "\u9fff" for character in text)


async def test_score_prefers_the_sensible_continuation(watched: Watched) -> None:
    options = ["The capital of France is Paris.", "The capital of France is banana.", "Paris", "Xylophone"]
    messages = [engine_pb2.ChatMessage(role="user", content="What is the capital of France?")]
    reply = await watched.engine.score(engine_pb2.ScoreRequest(messages=messages, continuations=options))
    right, wrong, short, odd = reply.log_probabilities
    assert right > wrong
    assert short > odd
    assert all(value < 0 for value in reply.log_probabilities)
    assert list(reply.token_counts) == await watched.engine.count_tokens(options)


async def test_score_agrees_with_the_chain_rule(watched: Watched) -> None:
    """log P(ab | prompt) = log P(a | prompt) + log P(b | prompt a), however the engine batches it."""
    prompt = "The quick brown fox jumps"
    whole = engine_pb2.ScoreRequest(prompt=prompt, continuations=[" over the lazy dog", " over", " under it"])
    both, first, _ = (await watched.engine.score(whole)).log_probabilities
    after = engine_pb2.ScoreRequest(prompt=prompt + " over", continuations=[" the lazy dog"])
    (second,) = (await watched.engine.score(after)).log_probabilities
    assert both == pytest.approx(first + second, abs=0.05)


async def test_score_of_a_long_continuation_spans_batches(watched: Watched) -> None:
    text = " one two three four five" * 50
    request = engine_pb2.ScoreRequest(prompt="Count:", continuations=[text, " one"])
    reply = await watched.engine.score(request)
    assert reply.token_counts[0] == 250
    assert -600 < reply.log_probabilities[0] < reply.log_probabilities[1] < 0


async def test_prompt_beyond_the_context_is_refused(watched: Watched) -> None:
    with pytest.raises(KithError, match="holds 512") as caught:
        await answer(watched.engine, ask("word " * 600))
    assert caught.value.code == "prompt-too-long"


async def test_answer_ends_where_the_context_ends(watched: Watched) -> None:
    request = engine_pb2.GenerateRequest(prompt="1 2 3 4 5 6 7 8 9 " * 26)
    (count,) = await watched.engine.count_tokens([request.prompt])
    assert 450 < count < 512
    async for event in watched.engine.generate(request):
        finished = event.finished
    assert finished.reason == "length"
    assert finished.usage.completion_tokens == 512 - finished.usage.prompt_tokens + 1


async def test_killed_child_is_replaced(watched: Watched) -> None:
    engine = watched.engine
    assert engine.pid is not None
    asking = asyncio.ensure_future(answer(engine, ask("Write a very long story.", 400)))
    while not (await engine.stats()).slots_busy:
        pass
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(KithError) as caught:
        await asking
    assert caught.value.code == "engine-gone"
    await watched.until(lambda: watched.states[-1] == "ready" and "restarting" in watched.states)
    assert (await answer(engine, ask("Say hello.", 4)))[0]


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (engine_pb2.GenerateRequest(), "either messages or a prompt"),
        (ask("x", temperature=-1.0), "temperature is out of range"),
        (engine_pb2.GenerateRequest(prompt="x", stop=[""]), "stop strings"),
    ],
)
async def test_bad_requests_are_refused(watched: Watched, request_: engine_pb2.GenerateRequest, reason: str) -> None:
    with pytest.raises(KithError, match=reason) as caught:
        await answer(watched.engine, request_)
    assert caught.value.code == "bad-request"


async def test_file_that_only_looks_like_a_model_is_refused(tmp_path: Path) -> None:
    """Its header is right, so the daemon lets it pass; llama.cpp refuses it; there is no restart."""
    path = tmp_path / "tiny.gguf"
    path.write_bytes(sample().build())
    lines: list[str] = []
    engine = EngineProcess(NodeConfig(data_dir=tmp_path, threads=1), path, lines.append)
    with pytest.raises(KithError) as caught:
        await engine.start()
    assert caught.value.code == "bad-model"
    assert caught.value.remedy
    assert engine.state == "failed"
    assert engine.pid is None
    assert any("error" in line or "failed" in line for line in lines)
    await engine.stop()


async def test_file_cut_short_is_refused_without_a_child(tmp_path: Path, model_path: Path) -> None:
    path = tmp_path / "short.gguf"
    with model_path.open("rb") as source:
        path.write_bytes(source.read(5_000_000))
    engine = EngineProcess(NodeConfig(data_dir=tmp_path, threads=1), path, lambda _: None)
    with pytest.raises(KithError, match="cut short") as caught:
        await engine.start()
    assert caught.value.code == "bad-model"
    await engine.stop()


async def test_memory_limit_ends_in_words(tmp_path: Path, model_path: Path) -> None:
    engine = EngineProcess(
        NodeConfig(data_dir=tmp_path, threads=1, ctx=8192, slots=8), model_path, lambda _: None,
        memory_limit_bytes=200_000_000,
    )  # fmt: skip
    with pytest.raises(KithError) as caught:
        await engine.start()
    assert caught.value.code in ("engine-failed", "bad-model")
    assert engine.pid is None
    await engine.stop()


async def test_logs_hold_no_prompt(watched: Watched) -> None:
    await answer(watched.engine, ask("My secret word is xylograph.", 8))
    assert not any("xylograph" in line for line in watched.lines)
