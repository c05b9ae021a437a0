"""Tests of node/once.py."""

from node.once import Once


def test_a_thing_is_said_once_and_again_after_a_while() -> None:
    now = [0.0]
    once = Once(10.0, now=lambda: now[0])
    assert [once.due("a"), once.due("a"), once.due("b")] == [True, False, True]
    now[0] = 9.9
    assert not once.due("a")
    now[0] = 10.0
    assert [once.due("a"), once.due("a")] == [True, False]


def test_only_so_many_things_are_remembered() -> None:
    once = Once(10.0, remembered=2)
    assert [once.due(thing) for thing in "abcab"] == [True, True, True, True, True]
    assert not once.due("b")
