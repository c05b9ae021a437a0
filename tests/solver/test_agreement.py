"""Choosing among open answers: by judges, by overlap."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.agreement import best, by_judges, by_overlap


def test_nobody_judges_its_own_while_there_are_others() -> None:
    authors = [frozenset({0}), frozenset({1}), frozenset({2})]
    # Each likes its own best; of the others' answers all prefer the second.
    scores = {0: [-1.0, -2.0, -9.0], 1: [-9.0, -1.0, -9.5], 2: [-9.0, -2.0, -1.0]}
    assert best(by_judges(authors, scores)) == 1


def test_a_judge_alone_judges_all() -> None:
    assert best(by_judges([frozenset({0}), frozenset({0})], {0: [-3.0, -1.0]})) == 1


def test_scales_of_models_do_not_count() -> None:
    authors = [frozenset[int](), frozenset[int]()]
    assert by_judges(authors, {0: [-1.0, -2.0], 1: [-101.0, -102.0]}) == pytest.approx([0.5, -0.5])


def test_what_is_no_number_loses() -> None:
    authors = [frozenset[int](), frozenset[int]()]
    assert best(by_judges(authors, {0: [float("nan"), -5.0]})) == 1
    assert by_judges(authors, {}) == [0.0, 0.0]


def test_the_answer_in_the_middle_has_most_in_common() -> None:
    answers = ["a red fish", "a red fish swims", "a red fish swims home", "stones"]
    assert best(by_overlap(answers)) == 1
    assert by_overlap(["alone"]) == [0.0]
    assert by_overlap(["", ""]) == [0.0, 0.0]


@settings(max_examples=30)
@given(st.lists(st.text(max_size=20), min_size=1, max_size=6))
def test_overlap_is_a_share(answers: list[str]) -> None:
    scores = by_overlap(answers)
    assert all(0.0 <= score <= 1.0 for score in scores)
    assert 0 <= best(scores) < len(answers)


@given(st.permutations(range(4)))
def test_the_order_of_answers_does_not_matter(order: list[int]) -> None:
    scores = {0: [-1.0, -4.0, -2.0, -8.0], 1: [-3.0, -1.0, -2.5, -9.0]}
    authors = [frozenset({0}), frozenset({1}), frozenset[int](), frozenset[int]()]
    plain = by_judges(authors, scores)
    moved = by_judges([authors[i] for i in order], {judge: [of[i] for i in order] for judge, of in scores.items()})
    assert moved == pytest.approx([plain[i] for i in order])
