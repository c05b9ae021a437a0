"""The store of spilled prefixes: bounded, longest first, oldest out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.engine.radix import common_prefix
from node.engine.spill import TOKENS_MIN, Spill

BASE = list(range(100, 100 + TOKENS_MIN))
sequences = st.lists(st.lists(st.integers(0, 1), max_size=5).map(lambda tail: BASE + tail), max_size=12)


def stored(tokens: list[int]) -> bytearray:
    return bytearray(len(tokens))


@given(sequences, st.booleans(), st.integers(0, 120))
def test_bound_holds_and_what_is_found_is_right(puts: list[list[int]], divisible: bool, limit: int) -> None:
    spill = Spill(limit, divisible)
    for tokens in puts:
        kept = spill.put(tokens, stored(tokens))
        assert spill.used_bytes <= limit
        length, key = spill.longest(tokens)
        assert length == len(tokens) or not kept
        if key is not None:
            found = spill.get(key)
            assert length == common_prefix(found.tokens, tokens)
            assert divisible or length == len(found.tokens)
            assert found.state == stored(found.tokens)


def test_least_recently_used_goes_first() -> None:
    spill = Spill(3 * 17, divisible=True)
    for tail in (1, 2, 3):
        spill.put([*BASE, tail], bytearray(17))
    spill.get(spill.longest([*BASE, 1])[1] or 0)
    spill.put([*BASE, 4], bytearray(17))
    assert [spill.longest([*BASE, tail])[0] == 17 for tail in (1, 2, 3, 4)] == [True, False, True, True]


@pytest.mark.parametrize("divisible", [True, False])
def test_beginning_of_a_kept_one_is_kept_only_where_memory_can_not_be_cut(divisible: bool) -> None:
    spill = Spill(1000, divisible)
    spill.put(BASE, bytearray(16))
    spill.put([*BASE, 5, 6], bytearray(18))
    assert spill.put([*BASE, 5], bytearray(17)) is not divisible
    assert len(spill) == (1 if divisible else 3)


def test_trifles_and_giants_are_not_kept() -> None:
    spill = Spill(100, divisible=True)
    assert not spill.put(BASE[:-1], bytearray(5))
    assert not spill.put(BASE, bytearray(101))
    assert not spill.put(BASE, bytearray())
    assert not Spill(0, divisible=True).wants(BASE)
    spill.put(BASE, bytearray(5))
    spill.clear()
    assert (len(spill), spill.used_bytes, spill.longest(BASE)) == (0, 0, (0, None))
