"""Measuring a server from outside; the rest of serving is tested through the child, in test_openai.py."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from mesh.wire import engine_pb2
from node.engine.hosted.dialect import Piece, estimate_prompt
from node.engine.hosted.serving import CALIBRATION_TOKENS, calibrate
from node.errors import KithError


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
