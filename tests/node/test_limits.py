"""Buckets keep the pace of each caller, and requests come out bounded or not at all."""

import pytest

from mesh.wire import engine_pb2
from node.errors import NO_ROOM, KithError, grpc_status
from node.limits import MESSAGES_MAX, OUTPUT_TOKENS_MAX, PRIORITY_MAX, Rate, bounded, too_many


def test_a_caller_that_spent_its_part_is_told_when_to_come_again() -> None:
    rate = Rate(per_s=2.0, burst=3.0)
    assert [rate.wait_s("a", 0.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert rate.wait_s("a", 0.0) == pytest.approx(0.5)
    assert rate.wait_s("a", 0.4) == pytest.approx(0.1)
    assert rate.wait_s("a", 0.5) == 0.0


def test_one_callers_excess_costs_the_others_nothing() -> None:
    rate = Rate(per_s=1.0, burst=1.0)
    while not rate.wait_s("flood", 0.0):
        pass
    assert rate.wait_s("other", 0.0) == 0.0


def test_what_is_larger_than_the_bucket_passes_once_it_is_full_and_leaves_a_debt() -> None:
    rate = Rate(per_s=1.0, burst=4.0)
    assert rate.wait_s("a", 0.0, 10.0) == 0.0
    assert rate.wait_s("a", 0.0, 1.0) == pytest.approx(7.0)


def test_a_charge_is_taken_in_any_case_and_says_how_long_to_wait() -> None:
    rate = Rate(per_s=10.0, burst=5.0)
    assert rate.charge("a", 0.0, 5.0) == 0.0
    assert rate.charge("a", 0.0, 5.0) == pytest.approx(0.5)
    assert rate.charge("a", 10.0, 1.0) == 0.0


def test_a_clock_that_goes_back_gives_nothing_away() -> None:
    rate = Rate(per_s=1.0, burst=1.0)
    assert rate.wait_s("a", 10.0) == 0.0
    assert rate.wait_s("a", 5.0) > 0.0


def test_buckets_do_not_grow_without_end() -> None:
    rate = Rate(per_s=1.0, burst=1.0, remembered=10)
    for number in range(1000):
        rate.wait_s(number, 0.0)
    assert len(rate._buckets) == 10


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


def test_a_prompt_that_can_not_fit_is_refused_before_it_is_read() -> None:
    with pytest.raises(KithError, match="holds at most") as caught:
        bounded(engine_pb2.GenerateRequest(prompt="x" * 200_000), 4096)
    assert caught.value.code == "prompt-too-long"
    bounded(engine_pb2.GenerateRequest(prompt="x" * 100_000), 4096)
    messages = [engine_pb2.ChatMessage(role="user", content="x")] * (MESSAGES_MAX + 1)
    with pytest.raises(KithError, match="messages are more"):
        bounded(engine_pb2.GenerateRequest(messages=messages), 1 << 20)
