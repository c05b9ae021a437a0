"""Rumours: each goes out as often as it was told, the newest first, and then rests."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mesh.rumours import Rumours
from tests.mesh.members import named


def test_the_newest_go_first_and_news_of_the_same_member_starts_anew() -> None:
    rumours = Rumours()
    rumours.tell(named(1), 2)
    rumours.tell(named(2), 2)
    assert rumours.take(1) == [named(2)]
    rumours.tell(named(1), 3)
    taken = [about for _ in range(10) for about in rumours.take(5)]
    assert Counter(taken) == {named(1): 3, named(2): 1}
    assert len(rumours) == 0


def test_what_is_forgotten_is_not_sent() -> None:
    rumours = Rumours()
    rumours.tell(named(1), 5)
    rumours.forget(named(1))
    rumours.forget(named(2))
    assert rumours.take(9) == []


@given(st.dictionaries(st.integers(0, 30), st.integers(1, 9)), st.integers(1, 12))
def test_each_is_sent_exactly_as_often_as_told_and_never_twice_in_one_message(told: dict[int, int], room: int) -> None:
    rumours = Rumours()
    for number, times in told.items():
        rumours.tell(named(number), times)
    sent: Counter[str] = Counter()
    while len(rumours):
        message = rumours.take(room)
        assert len(set(message)) == len(message) <= room
        sent.update(message)
    assert sent == {named(number): times for number, times in told.items()}
