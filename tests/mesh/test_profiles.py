"""Profiles: the latest one of each node, the same on every node."""

import random

from hypothesis import given
from hypothesis import strategies as st

from mesh.profiles import Profiles
from mesh.wire import facts_pb2
from tests.mesh.building import KEYS, Author


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(1, 2), st.integers(0, 3)), max_size=12),
    st.randoms(use_true_random=False),
)
def test_the_latest_profile_wins_in_any_order(said: list[tuple[int, int, int]], shuffler: random.Random) -> None:
    authors = {(who, life): Author(KEYS[who], life) for who in range(2) for life in (1, 2)}
    facts = [
        authors[who, life].say("node_profile", facts_pb2.NodeProfile(cores=number), clock)
        for number, (who, life, clock) in enumerate(said)
    ]
    shuffler.shuffle(facts)
    profiles = Profiles()
    for fact in [*facts, *facts]:
        assert profiles.apply(fact)
    for key in KEYS[:2]:
        own = [fact for fact in facts if fact.author == key.node_id]
        latest = max(own, key=lambda fact: (fact.hybrid_clock, fact.hash), default=None)
        assert profiles.of(key.node_id) == (latest.body.node_profile if latest else None)


def test_other_facts_are_not_of_this_fold() -> None:
    profiles = Profiles()
    assert not profiles.apply(Author().note("x"))
    assert profiles.of(KEYS[0].node_id) is None
