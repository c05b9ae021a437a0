"""Split or unified: by what runs together, and not back and forth."""

from hypothesis import given
from hypothesis import strategies as st

from node.engine.kv_choice import SEEN_MAX, SEEN_MIN, SPLIT, SPLIT_ABOVE, UNIFIED, UNIFIED_BELOW, KvChoice

#: Distinct and all tokens of eight prompts of 330, by how they begin.
ALIKE, DIFFERENT = (300 + 8 * 30, 8 * 330), (8 * 330, 8 * 330)


def after(choice: KvChoice, seen: tuple[int, int], times: int) -> str:
    for _ in range(times):
        choice.seen(*seen)
    return choice.wanted


def test_prompts_that_begin_alike_want_one_pool_and_others_cells_of_their_own() -> None:
    choice = KvChoice()
    assert after(choice, ALIKE, SEEN_MIN - 1) == SPLIT
    assert after(choice, ALIKE, 1) == UNIFIED
    choice.changed(UNIFIED)
    assert after(choice, DIFFERENT, SEEN_MIN - 1) == UNIFIED
    assert after(choice, DIFFERENT, 1) == SPLIT


def test_what_was_seen_long_ago_does_not_count() -> None:
    choice = KvChoice()
    after(choice, DIFFERENT, 1000)
    assert after(choice, ALIKE, SEEN_MAX - 1) == UNIFIED


def test_it_says_why() -> None:
    choice = KvChoice()
    assert choice.why == f"auto: fewer than {SEEN_MIN} requests came since it is so"
    after(choice, DIFFERENT, SEEN_MIN)
    assert choice.why == "auto: 100% of the tokens of prompts that run together are distinct"


def test_prompts_without_tokens_say_nothing() -> None:
    assert after(KvChoice(UNIFIED), (0, 0), SEEN_MAX) == UNIFIED


SEEN = st.integers(0, 5000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total)))


@given(st.sampled_from([SPLIT, UNIFIED]), st.lists(SEEN, max_size=200))
def test_changes_are_far_apart_whatever_comes(kind: str, requests: list[tuple[int, int]]) -> None:
    choice = KvChoice(kind)
    since = 0
    for distinct, total in requests:
        choice.seen(distinct, total)
        since += 1
        if choice.wanted != choice.kind:
            assert since >= SEEN_MIN
            choice.changed(choice.wanted)
            assert choice.wanted == choice.kind
            since = 0


@given(st.lists(st.tuples(st.integers(1, 5000), st.floats(UNIFIED_BELOW, SPLIT_ABOVE)), max_size=100))
def test_between_the_thresholds_both_kinds_stay(requests: list[tuple[int, float]]) -> None:
    split, unified = KvChoice(SPLIT), KvChoice(UNIFIED)
    for thousands, share in requests:
        for choice in (split, unified):
            choice.seen(round(1000 * thousands * share), 1000 * thousands)
    assert (split.wanted, unified.wanted) == (SPLIT, UNIFIED)


@given(st.sampled_from([SPLIT, UNIFIED]), st.lists(SEEN, min_size=SEEN_MIN, max_size=SEEN_MAX))
def test_the_choice_does_not_depend_on_the_order_of_what_was_seen(kind: str, requests: list[tuple[int, int]]) -> None:
    one, other = KvChoice(kind), KvChoice(kind)
    for request in requests:
        one.seen(*request)
    for request in sorted(requests):
        other.seen(*request)
    assert (one.wanted, one.why) == (other.wanted, other.why)
