"""What moves take is learned by pair: from what they took, with those that failed, and forgotten again."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.kv_costs import (
    BYTES_PER_S_MAX,
    BYTES_PER_S_PRIOR,
    CAME_MIN,
    HALF_LIFE_S,
    LATENCY_MIN_S,
    LATENCY_PRIOR_S,
    PRIOR,
    KvCosts,
)

MB = 1e6
latencies = st.floats(1e-3, 1.0)
rates = st.floats(1e5, 1e9)
sizes = st.floats(0.1 * MB, 500 * MB)


def test_what_was_not_seen_is_the_prior_and_says_so() -> None:
    cost = KvCosts().of("holder", "taker", 5.0)
    assert cost is PRIOR, "nothing is computed: routers ask for each holder and agent"
    assert cost.moves == 0
    assert cost.seconds(50 * MB) == pytest.approx(LATENCY_PRIOR_S + 50 * MB / BYTES_PER_S_PRIOR)


def test_a_pair_and_its_other_direction_are_learned_apart() -> None:
    costs = KvCosts()
    for _ in range(10):
        costs.moved("a", "b", 0.0, size_bytes=20 * MB, seconds=20.0, came=1.0)
    assert costs.of("a", "b", 0.0).seconds(20 * MB) > 15.0
    assert costs.of("b", "a", 0.0) == costs.of("a", "c", 0.0) == PRIOR


def test_small_moves_teach_the_fixed_time_and_large_ones_the_rate() -> None:
    costs = KvCosts()
    for _ in range(20):
        costs.moved("far", "b", 0.0, size_bytes=0.2 * MB, seconds=0.5, came=1.0)
        costs.moved("narrow", "b", 0.0, size_bytes=200 * MB, seconds=100.0, came=1.0)
    far, narrow = costs.of("far", "b", 0.0), costs.of("narrow", "b", 0.0)
    assert far.latency_s == pytest.approx(0.5, rel=0.05)
    assert 1.0 / far.s_per_byte > BYTES_PER_S_PRIOR / 10, "and not the 0.4 MB a second of size by time"
    assert 1.0 / narrow.s_per_byte == pytest.approx(2 * MB, rel=0.05)
    assert narrow.latency_s == pytest.approx(LATENCY_PRIOR_S, rel=0.2)


def test_a_failed_move_is_dear_even_where_it_failed_at_once() -> None:
    costs = KvCosts()
    for _ in range(10):
        costs.moved("a", "b", 0.0, size_bytes=20 * MB, seconds=0.3, came=1.0)
    before = costs.of("a", "b", 0.0)
    costs.moved("a", "b", 0.0, size_bytes=20 * MB, seconds=0.01, came=0.0)
    after = costs.of("a", "b", 0.0)
    assert after.seconds(20 * MB) > 1.4 * before.seconds(20 * MB)
    assert after.takes_s(20 * MB) == before.takes_s(20 * MB), "that it ended early says nothing of the link"
    costs.moved("a", "b", 0.0, size_bytes=20 * MB, seconds=10.0, came=0.0)
    assert costs.of("a", "b", 0.0).takes_s(20 * MB) > 10 * before.takes_s(20 * MB), "it would have taken that at least"


def test_of_a_move_whose_time_nobody_told_only_what_came_is_learned() -> None:
    costs = KvCosts()
    costs.moved("a", "b", 0.0, size_bytes=20 * MB, seconds=None, came=0.0)
    found = costs.of("a", "b", 0.0)
    assert found.takes_s(20 * MB) == PRIOR.takes_s(20 * MB)
    assert found.seconds(20 * MB) > 1.4 * PRIOR.seconds(20 * MB)


def test_moves_that_succeed_make_up_for_those_that_failed() -> None:
    costs = KvCosts()
    for _ in range(30):
        costs.moved("a", "b", 0.0, size_bytes=20 * MB, seconds=0.0, came=0.0)
    dear = costs.of("a", "b", 0.0)
    assert dear.seconds(20 * MB) == pytest.approx(dear.takes_s(20 * MB) / CAME_MIN)
    for _ in range(15):
        costs.moved("a", "b", 0.0, size_bytes=20 * MB, seconds=0.42, came=1.0)
    assert costs.of("a", "b", 0.0).seconds(20 * MB) == pytest.approx(0.42, rel=0.02)


def test_what_brought_half_costs_double() -> None:
    costs = KvCosts()
    for _ in range(20):
        costs.moved("a", "b", 0.0, size_bytes=20 * MB, seconds=0.42, came=0.5)
    assert costs.of("a", "b", 0.0).seconds(20 * MB) == pytest.approx(0.84, rel=0.02)


def test_what_was_learned_fades_to_the_prior_so_that_the_pair_is_tried_again() -> None:
    costs = KvCosts()
    for _ in range(20):
        costs.moved("a", "b", 100.0, size_bytes=20 * MB, seconds=10.0, came=0.0)
    now, later, much_later = (costs.of("a", "b", 100.0 + lives * HALF_LIFE_S) for lives in (0, 1, 30))
    assert now.seconds(20 * MB) > 2 * later.seconds(20 * MB) > 4 * PRIOR.seconds(20 * MB)
    assert later.came == pytest.approx(1.0 - (1.0 - now.came) / 2)
    assert much_later.seconds(20 * MB) == pytest.approx(PRIOR.seconds(20 * MB), rel=1e-3)
    assert costs.of("a", "b", 50.0) == now, "a clock that went back makes nothing older"


def test_the_pair_that_moved_longest_ago_is_forgotten() -> None:
    costs = KvCosts(pairs_max=3)
    for taker in "abcad":
        costs.moved("h", taker, 0.0, size_bytes=MB, seconds=1.0, came=0.0)
        costs.validate()
    assert [taker for taker in "abcd" if costs.of("h", taker, 0.0).moves] == ["a", "c", "d"]


@given(latencies, rates, sizes)
def test_moves_of_one_size_are_soon_estimated_as_what_they_take(latency_s: float, rate: float, size: float) -> None:
    costs = KvCosts()
    for number in range(25):
        costs.moved("a", "b", float(number), size_bytes=size, seconds=latency_s + size / rate, came=1.0)
    assert costs.of("a", "b", 25.0).seconds(size) == pytest.approx(latency_s + size / rate, rel=0.1)


@given(latencies, rates, st.lists(sizes, min_size=2, max_size=4))
def test_moves_of_several_sizes_are_estimated_within_a_factor(
    latency_s: float, rate: float, several: list[float]
) -> None:
    costs = KvCosts()
    for number in range(80):
        size = several[number % len(several)]
        costs.moved("a", "b", float(number), size_bytes=size, seconds=latency_s + size / rate, came=1.0)
    for size in several:
        assert 0.4 < costs.of("a", "b", 80.0).seconds(size) / (latency_s + size / rate) < 2.5


@given(st.floats(0.0, 100.0), sizes, st.lists(st.tuples(sizes, st.floats(0.0, 100.0)), max_size=5))
def test_one_move_brings_the_estimate_of_its_size_nearer_and_not_beyond(
    seconds: float, size: float, before: list[tuple[float, float]]
) -> None:
    costs = KvCosts()
    for earlier, took in before:
        costs.moved("a", "b", 0.0, size_bytes=earlier, seconds=took, came=1.0)
    was = costs.of("a", "b", 0.0).takes_s(size)
    costs.moved("a", "b", 0.0, size_bytes=size, seconds=seconds, came=1.0)
    now = costs.of("a", "b", 0.0).takes_s(size)
    least = LATENCY_MIN_S + size / BYTES_PER_S_MAX  # any move is thought to take
    assert 0.999 * min(was, seconds) <= now <= 1.001 * max(was, seconds, least)


anything = st.floats(allow_nan=True, allow_infinity=True)


@given(st.lists(st.tuples(st.booleans(), st.floats(0.0, 1e12), anything, anything, st.floats(0.0, 1e9)), max_size=40))
def test_whatever_is_told_the_costs_stay_finite_and_bounded(
    told: list[tuple[bool, float, float, float, float]],
) -> None:
    costs = KvCosts(pairs_max=2)
    for number, (timed, size, seconds, came, now_s) in enumerate(told):
        taker = "abc"[number % 3]
        costs.moved("h", taker, now_s, size_bytes=size, seconds=seconds if timed else None, came=came)
        costs.validate()
        found = costs.of("h", taker, now_s).seconds(30 * MB)
        assert math.isfinite(found)
        assert found > 0.0
