"""Local health: between its bounds, and patience grows with it."""

from hypothesis import given
from hypothesis import strategies as st

from mesh.awareness import Awareness


def test_a_healthy_node_waits_as_long_as_it_says() -> None:
    assert Awareness(8).scale(0.5) == 0.5


def test_each_missing_answer_adds_patience_and_each_good_one_takes_it_back() -> None:
    one = Awareness(8)
    one.apply(3)
    assert one.scale(1.0) == 4.0
    one.apply(-1)
    assert one.scale(1.0) == 3.0


@given(st.lists(st.integers(-20, 20)))
def test_it_stays_between_its_bounds(deltas: list[int]) -> None:
    one = Awareness(8)
    for delta in deltas:
        before = one.score
        one.apply(delta)
        assert 0 <= one.score <= 8
        assert one.score == min(8, max(0, before + delta))
