"""Requests come out bounded or not at all."""

from typing import Any

import pytest

from mesh.wire import engine_pb2
from node.errors import NO_ROOM, KithError, grpc_status
from node.limits import (
    GRAMMAR_CHARACTERS_MAX,
    MESSAGES_MAX,
    OUTPUT_TOKENS_MAX,
    PRIORITY_MAX,
    TEXTS_MAX,
    TOP_LOGPROBS_MAX,
    bounded,
    check_texts,
    too_many,
    urgent,
)


def test_no_room_is_said_with_a_time_on_both_sides_of_the_wire() -> None:
    error = too_many("too often", 1.5)
    assert error.code in NO_ROOM
    assert grpc_status(error).name == "RESOURCE_EXHAUSTED"
    back = KithError.from_wire(error.to_wire())
    assert (back.code, back.retry_after_s) == (error.code, 1.5)
    assert "1.5 s" in back.remedy


def test_an_absurd_time_from_a_peer_is_cut() -> None:
    problem = too_many("too often", 1.0).to_wire()
    problem.retry_after_ms = 4_000_000_000
    assert KithError.from_wire(problem).retry_after_s == 3600.0


def test_answers_and_priorities_are_capped_and_the_request_stays_as_it_was() -> None:
    request = engine_pb2.GenerateRequest(prompt="x", priority=2_000_000_000)
    capped = bounded(request, 4096)
    assert (capped.max_tokens, capped.priority) == (OUTPUT_TOKENS_MAX, PRIORITY_MAX)
    assert request.max_tokens == 0
    assert bounded(engine_pb2.GenerateRequest(prompt="x", max_tokens=5), 4096).max_tokens == 5


def test_nobody_asks_to_be_served_after_everybody_else() -> None:
    """A negative priority would be starved by every task; it is 0, as a task's is."""
    assert bounded(engine_pb2.GenerateRequest(prompt="x", priority=-5), 4096).priority == 0
    assert bounded(engine_pb2.GenerateRequest(prompt="x", priority=-(2**31)), 4096).priority == 0


def test_texts_of_one_call_are_counted() -> None:
    check_texts(["x"] * TEXTS_MAX)
    with pytest.raises(KithError, match="texts are more than") as caught:
        check_texts(["x"] * (TEXTS_MAX + 1))
    assert caught.value.code == "bad-request"


def test_a_prompt_that_can_not_fit_is_refused_before_it_is_read() -> None:
    with pytest.raises(KithError, match="holds at most") as caught:
        bounded(engine_pb2.GenerateRequest(prompt="x" * 200_000), 4096)
    assert caught.value.code == "prompt-too-long"
    bounded(engine_pb2.GenerateRequest(prompt="x" * 100_000), 4096)
    messages = [engine_pb2.ChatMessage(role="user", content="x")] * (MESSAGES_MAX + 1)
    with pytest.raises(KithError, match="messages are more"):
        bounded(engine_pb2.GenerateRequest(messages=messages), 1 << 20)


def test_wishes_are_clamped() -> None:
    request = engine_pb2.GenerateRequest(prompt="x", logprobs=True, top_logprobs=4_000_000_000, useful_seconds=-1.0)
    capped = bounded(request, 4096)
    assert (capped.top_logprobs, capped.useful_seconds) == (TOP_LOGPROBS_MAX, 0.0)
    assert bounded(engine_pb2.GenerateRequest(prompt="x", top_logprobs=5), 4096).top_logprobs == 0
    assert bounded(engine_pb2.GenerateRequest(prompt="x", useful_seconds=2.5), 4096).useful_seconds == 2.5
    for odd in (float("nan"), float("inf"), 1e9):
        assert bounded(engine_pb2.GenerateRequest(prompt="x", useful_seconds=odd), 4096).useful_seconds == 0.0


@pytest.mark.parametrize("kind", [engine_pb2.ScoreRequest, engine_pb2.EmbedRequest])
def test_a_question_is_as_urgent_as_it_may_be_and_stays_as_it_was(kind: Any) -> None:
    request = kind(priority=2_000_000_000, useful_seconds=-1.0)
    assert (urgent(request).priority, urgent(request).useful_seconds) == (PRIORITY_MAX, 0.0)
    assert request.priority == 2_000_000_000
    assert urgent(kind(priority=-5)).priority == 0
    assert urgent(kind(useful_seconds=2.5)).useful_seconds == 2.5
    assert urgent(kind(useful_seconds=float("nan"))).useful_seconds == 0.0


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"continue_tokens": [1] * 4097}, "tokens to go on from"),
        ({"grammar": "x" * (GRAMMAR_CHARACTERS_MAX + 1)}, "characters of grammar"),
        ({"json_schema": "x" * (GRAMMAR_CHARACTERS_MAX + 1)}, "characters of JSON schema"),
        ({"owner": "x" * 200}, "owner's name"),
        ({"adapter": "x" * 200}, "adapter's name"),
        ({"sampling": engine_pb2.Sampling(logit_bias=dict.fromkeys(range(1025), 1.0))}, "tokens with a bias"),
    ],
)
def test_wishes_without_measure_are_refused(fields: dict[str, object], reason: str) -> None:
    with pytest.raises(KithError, match=reason) as caught:
        bounded(engine_pb2.GenerateRequest(prompt="x", **fields), 4096)  # type: ignore[arg-type]
    assert caught.value.code == "bad-request"
