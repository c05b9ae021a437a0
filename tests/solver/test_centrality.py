"""Central sentences are found, openings preferred, repetition avoided."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from solver.centrality import centrality, lead, select_central, selection_weights, topic_of

TEXT = [
    "The well in the river plain gives the valley its water.",
    "The water of the well contains iron, so the valley filters it.",
    "A band played in the evening.",
    "It was loud.",
]


@given(st.lists(st.text(max_size=40), max_size=8))
def test_scores_are_a_distribution(sentences: list[str]) -> None:
    scores = centrality(sentences)
    assert len(scores) == len(sentences)
    assert all(score >= 0 for score in scores)
    if sentences:
        assert abs(sum(scores) - 1) < 1e-6


def test_what_is_shared_is_central() -> None:
    scores = centrality(TEXT)
    assert min(scores[:2]) > max(scores[2:])


def test_weights_prefer_openings_topics_and_what_the_model_pointed_at() -> None:
    places = [1.0] * 4
    topic = topic_of(" ".join(TEXT))
    weights = selection_weights(TEXT, places, topic)
    assert weights[3] == min(weights)  # leans on its neighbours and is a scrap
    pointed = selection_weights(TEXT, places, topic, "A band in the evening")
    assert pointed[2] > weights[2]
    assert pointed[0] == weights[0]
    assert selection_weights(TEXT, [1, 1, 3, 1], topic)[2] > weights[2]
    assert lead(0, 1000) > lead(50, 1000) > lead(900, 1000) >= 1.0


def test_selection_is_ascending_bounded_and_without_repetition() -> None:
    twice = [*TEXT, TEXT[0]]
    weights = selection_weights(twice, [1.0] * 5, Counter())
    chosen = select_central(twice, weights, 3)
    assert chosen == sorted(chosen)
    assert len(chosen) == 3
    assert not {0, 4} <= set(chosen)
    assert 0 not in select_central(twice, weights, 3, taken=[TEXT[0]])
    assert select_central([], [], 3) == []
