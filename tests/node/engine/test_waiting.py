"""The order of the queue, against what fairness means."""

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from node.engine.waiting import OWNERS_MAX, Entry, Waiting


def entry(item: str, owner: str = "a", priority: int = 0, cost: float = 1.0, begin_by: float = math.inf) -> Entry[str]:
    return Entry(item, priority, owner, cost, begin_by)


def drained(waiting: Waiting[str]) -> list[str]:
    taken = []
    while (item := waiting.take()) is not None:
        waiting.validate()
        taken.append(item)
    return taken


def test_an_owner_with_one_request_does_not_wait_behind_another_with_a_hundred() -> None:
    waiting: Waiting[str] = Waiting()
    for i in range(100):
        waiting.add(entry(f"many{i}", "many"))
    waiting.add(entry("one", "one"))
    assert drained(waiting).index("one") <= 1


def test_priority_goes_before_fairness() -> None:
    waiting: Waiting[str] = Waiting()
    waiting.add(entry("job", "a"))
    waiting.add(entry("chat1", "b", priority=1))
    waiting.add(entry("chat2", "b", priority=1))
    assert drained(waiting) == ["chat1", "chat2", "job"]


def test_long_requests_count_more() -> None:
    waiting: Waiting[str] = Waiting()
    for i in range(40):
        waiting.add(entry(f"l{i}", "long", cost=30))
        waiting.add(entry(f"s{i}", "short", cost=10))
    first = Counter(item[0] for item in drained(waiting)[:40])
    assert 8 <= first["l"] <= 12


def test_nobody_saves_up() -> None:
    waiting: Waiting[str] = Waiting()
    for i in range(50):
        waiting.add(entry(f"busy{i}", "busy"))
    drained(waiting)
    for i in range(10):
        waiting.add(entry(f"new{i}", "new"))
        waiting.add(entry(f"busy{i}", "busy"))
    assert 3 <= sum(item.startswith("busy") for item in drained(waiting)[:10]) <= 7


def test_what_was_dropped_costs_nothing() -> None:
    waiting: Waiting[str] = Waiting()
    for i in range(20):
        waiting.add(entry(f"a{i}", "a", cost=100))
    waiting.add(entry("b", "b"))
    assert len(waiting.drop(lambda item: item.startswith("a"))) == 20
    waiting.add(entry("again", "a"))
    assert drained(waiting) == ["b", "again"]


def test_too_late_is_taken_out_and_never_begun() -> None:
    waiting: Waiting[str] = Waiting()
    waiting.add(entry("soon", begin_by=5.0))
    waiting.add(entry("later", begin_by=50.0))
    waiting.add(entry("whenever"))
    assert waiting.too_late(5.0) == []
    assert waiting.too_late(5.1) == ["soon"]
    assert drained(waiting) == ["later", "whenever"]


def test_who_holds_less_is_before_who_had_less_and_who_may_not_begin_is_not_taken() -> None:
    waiting: Waiting[str] = Waiting()
    for item, owner in (("a0", "a"), ("a1", "a"), ("b0", "b"), ("c0", "c")):
        waiting.add(entry(item, owner))
    assert waiting.take() == "a0"
    holds = {"a": 0, "b": 1, "c": None}
    assert [waiting.take(lambda owner: holds[str(owner)]) for _ in range(3)] == ["a1", "b0", None]
    waiting.validate()
    assert drained(waiting) == ["c0"]


def test_what_is_raised_shares_with_those_that_were_urgent_before() -> None:
    waiting: Waiting[str] = Waiting()
    for i in range(4):
        waiting.add(entry(f"urgent{i}", "a", priority=1))
    for i in range(3):
        waiting.add(entry(f"old{i}", "b"))
    waiting.add(entry("new", "c"))
    assert waiting.take() == "urgent0"
    waiting.raise_to(1, lambda item: item != "new")
    waiting.validate()
    assert drained(waiting) == ["old0", "urgent1", "old1", "urgent2", "old2", "urgent3", "new"]


def test_names_without_end_do_not_fill_the_memory() -> None:
    waiting: Waiting[str] = Waiting()
    for i in range(OWNERS_MAX + 200):
        waiting.add(entry(str(i), f"owner {i}"))
        waiting.take()
        waiting.validate()


requests = st.tuples(st.sampled_from("abc"), st.integers(0, 1), st.integers(1, 20))


@given(st.lists(st.one_of(requests, st.none()), max_size=120))
def test_each_comes_once_in_order_of_its_owner_and_none_starves(steps: list[tuple[str, int, int] | None]) -> None:
    """None: take one. Between two owners with something waiting, the served cost differs by no more than one of
    the longest requests of each (the bound of start-time fair queueing)."""
    waiting: Waiting[tuple[int, str, int, int]] = Waiting()
    added: list[tuple[int, str, int, int]] = []
    taken: list[tuple[int, str, int, int]] = []
    for number, step in enumerate([*steps, *[None] * len(steps)]):
        if step is not None:
            owner, priority, cost = step
            added.append((number, owner, priority, cost))
            waiting.add(Entry(added[-1], priority, owner, cost, math.inf))
        elif (item := waiting.take()) is not None:
            assert item[2] == max(one[2] for one in added if one not in taken)
            taken.append(item)
        waiting.validate()
    assert sorted(taken) == sorted(added)
    for owner in "abc":
        for priority in (0, 1):
            mine = [item for item in taken if item[1:3] == (owner, priority)]
            assert mine == sorted(mine)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 20)), min_size=1, max_size=60))
def test_served_costs_stay_close_while_both_wait(requests: list[tuple[str, int]]) -> None:
    waiting: Waiting[tuple[str, int]] = Waiting()
    for request in requests:
        waiting.add(Entry(request, 0, request[0], request[1], math.inf))
    left = Counter(owner for owner, _ in requests)
    served = {"a": 0, "b": 0}
    while left["a"] and left["b"]:
        item = waiting.take()
        assert item is not None
        left[item[0]] -= 1
        served[item[0]] += item[1]
        assert abs(served["a"] - served["b"]) <= 20


def test_what_is_dropped_is_also_returned() -> None:
    """A request that is cancelled between two looks would else be lost without an answer."""
    waiting: Waiting[str] = Waiting()
    waiting.add(entry("a", "a"))
    answers = iter([False, True])
    first = waiting.drop(lambda _: next(answers))
    assert len(first) + len(drained(waiting)) == 1
