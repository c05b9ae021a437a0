"""Suspicion: its time follows memberlist's formula, between its bounds, and only shrinks."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.suspicion import Suspicion
from tests.mesh.members import named


def suspicion(confirmations: int = 2, min_s: float = 4.0, max_s: float = 24.0) -> Suspicion:
    return Suspicion(named(0), 100.0, min_s, max_s, confirmations)


@pytest.mark.parametrize(("confirmed", "seconds"), [(0, 24.0), (1, 24.0 - 20.0 * math.log(2) / math.log(3)), (2, 4.0)])
def test_the_published_values(confirmed: int, seconds: float) -> None:
    one = suspicion()
    for number in range(confirmed):
        assert one.confirm(named(number + 1))
    assert one.timeout_s == pytest.approx(seconds)
    assert one.ends_at == pytest.approx(100.0 + seconds)


def test_nobody_counts_twice_and_no_more_than_are_wanted() -> None:
    one = suspicion()
    assert not one.confirm(named(0)), "the accuser itself"
    assert one.confirm(named(1))
    assert not one.confirm(named(1))
    assert one.confirm(named(2))
    assert not one.confirm(named(3)), "enough have said so"
    assert one.said_by == [named(0), named(1), named(2)]


def test_where_nobody_could_confirm_the_shortest_time_holds_at_once() -> None:
    one = suspicion(confirmations=0)
    assert one.timeout_s == 4.0
    assert not one.confirm(named(1))


@given(
    st.integers(0, 10),
    st.lists(st.integers(0, 12), max_size=30),
    st.floats(0.1, 60.0),
    st.floats(1.0, 10.0),
)
def test_it_only_shrinks_and_stays_between_its_bounds(
    confirmations: int, said_by: list[int], min_s: float, factor: float
) -> None:
    one = suspicion(confirmations, min_s, min_s * factor)
    times = [one.timeout_s]
    for number in said_by:
        one.confirm(named(number))
        times.append(one.timeout_s)
        assert len(one.said_by) <= confirmations + 1
    assert times == sorted(times, reverse=True)
    assert all(min_s <= seconds <= max(min_s, min_s * factor) * (1 + 1e-9) for seconds in times)
    if len(set(said_by) - {0}) >= confirmations:
        assert times[-1] == pytest.approx(min_s)


def test_the_least_time_is_over_when_a_confirmed_one_would_have_ended() -> None:
    one = suspicion()
    assert not one.least_is_over(104.0)
    assert one.least_is_over(104.1)
    assert one.ends_at > 104.1
