"""The choice of a slot, as a table of situations."""

from hypothesis import given
from hypothesis import strategies as st

from node.engine.slots import Slot, choose, common_prefix

tokens = st.lists(st.integers(0, 3), max_size=20)


@given(tokens, tokens)
def test_common_prefix_is_common_and_longest(left: list[int], right: list[int]) -> None:
    length = common_prefix(left, right)
    assert left[:length] == right[:length]
    assert length == min(len(left), len(right)) or left[length] != right[length]


def test_longest_prefix_wins() -> None:
    slots = [Slot(0, [1, 2], 5), Slot(1, [1, 2, 3, 4], 9), Slot(2, [], 0)]
    slot, length = choose(slots, [1, 2, 3, 9])
    assert (slot.id, length) == (1, 3)


def test_a_trifle_does_not_cost_a_long_conversation() -> None:
    conversation = Slot(0, [1, 2, *range(100, 1000)], 9)
    empty = Slot(1, [], 0)
    prompt = [1, 2, *range(5000, 5100)]
    slot, length = choose([conversation, empty], prompt)
    assert (slot.id, length) == (1, 0)


def test_oldest_slot_goes_where_none_fits() -> None:
    slots = [Slot(0, [7], 3), Slot(1, [8], 1), Slot(2, [9], 2)]
    slot, length = choose(slots, [1, 2, 3])
    assert (slot.id, length) == (1, 0)
