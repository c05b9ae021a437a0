"""Buckets keep the pace of each caller."""

import pytest

from mesh.rate import Rate


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
