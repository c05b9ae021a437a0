"""A majority is more than half; anything less is shown as it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solver.panel import answer_group, best_option, option_group, spokesman, tally


@pytest.mark.parametrize(
    ("groups", "winner", "votes"),
    [
        (["a", "a", "b"], "a", 2),
        (["a", "b", "c"], "", 1),
        (["a", "a", "b", "b"], "", 2),
        (["a", "a", "b", "c"], "", 2),
        (["a"], "a", 1),
        (["a", "", ""], "", 1),
        (["", ""], "", 0),
        ([], "", 0),
    ],
)
def test_votes_are_counted(groups: list[str], winner: str, votes: int) -> None:
    count = tally(groups)
    assert (count.winner, count.votes_for) == (winner, votes)
    assert count.majority == bool(winner)


@given(st.lists(st.sampled_from(["", "a", "b", "c"]), max_size=12))
def test_the_order_of_ballots_does_not_matter_and_nobody_is_lost(groups: list[str]) -> None:
    count = tally(groups)
    assert count == tally(sorted(groups)) == tally(groups[::-1])
    assert sum(votes for _, votes in count.groups) == len([g for g in groups if g])
    if count.majority:
        assert 2 * count.votes_for > len(groups)


@pytest.mark.parametrize(
    ("left", "right", "question"),
    [
        ("Paris", "paris.", ""),
        ("The Eiffel Tower", "Eiffel tower!", ""),
        ("three", "3", ""),
        ("Ｔｏｋｙｏ", "tokyo", ""),
        ("new  york", "New York", ""),
        ("The answer is Paris.", "Paris", ""),
        ("The capital of France is Paris.", "Paris", "What is the capital of France?"),
        ("北京。", "北京", ""),
    ],
)
def test_equal_answers_are_one_group(left: str, right: str, question: str) -> None:
    assert answer_group(left, question) == answer_group(right, question) != ""


@pytest.mark.parametrize(
    ("left", "right", "question"),
    [
        ("Paris", "London", ""),
        ("Anna is taller", "Bert is taller", "Is Anna or Bert taller?"),
        ("3", "4", ""),
        ("A", "B", ""),
        ("not Paris", "Paris", ""),
    ],
)
def test_different_answers_are_not(left: str, right: str, question: str) -> None:
    assert answer_group(left, question) != answer_group(right, question)


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_answer_raises(answer: str, question: str) -> None:
    answer_group(answer, question)


def test_best_option_takes_the_first_of_equals() -> None:
    assert best_option([-1.0, -0.5, -0.5]) == 1
    assert option_group("Yes!") == "yes"
    assert option_group("+") == "+"


def test_the_spokesman_is_the_commonest_then_the_shortest() -> None:
    assert spokesman(["Paris.", "Paris", "Paris", "paris"]) == "Paris"
    assert spokesman(["Paris.", "Paris"]) == "Paris"
    assert spokesman([]) == ""
