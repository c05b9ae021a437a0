"""Who holds a prompt's beginning follows from what was sent where, and from what the agents say of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.prefixes import AGENTS_MAX, BLOCK_CHARACTERS, BLOCKS_OF_ONE_MAX, HOLDERS_MAX, Prefixes, blocks_of

SYSTEM = "s" * 700
FIRST = blocks_of([SYSTEM, "hello"])
NEXT = blocks_of([SYSTEM, "hello", "hi there", "and now?"])


def test_a_dialogue_begins_with_what_it_was() -> None:
    assert NEXT[: len(FIRST)] == FIRST
    assert blocks_of(["other", "hello"])[-1] != FIRST[-1]


def test_the_border_between_two_messages_counts() -> None:
    assert blocks_of(["ab", "c"]) != blocks_of(["a", "bc"])


@given(st.lists(st.text(max_size=600), max_size=5), st.text(min_size=1, max_size=600))
def test_more_text_changes_no_block_before_it(parts: list[str], more: str) -> None:
    blocks = blocks_of(parts)
    assert blocks_of([*parts, more])[: len(blocks)] == blocks
    assert sum(block.characters for block in blocks) == sum(map(len, parts))
    assert all(block.characters <= BLOCK_CHARACTERS for block in blocks)


def test_a_prompt_without_end_has_an_end_here() -> None:
    blocks = blocks_of(["x" * 10_000_000, "y" * 7])
    assert len(blocks) == BLOCKS_OF_ONE_MAX + 1
    assert blocks[-1].characters == 10_000_007 - BLOCKS_OF_ONE_MAX * BLOCK_CHARACTERS


@pytest.mark.parametrize(
    ("beginning", "rest"),
    [
        (["x" * BLOCK_CHARACTERS * BLOCKS_OF_ONE_MAX], ["y" * 3 * BLOCK_CHARACTERS * BLOCKS_OF_ONE_MAX]),
        (["x" * 10] * BLOCKS_OF_ONE_MAX, ["y" * 30 * BLOCKS_OF_ONE_MAX]),
        (["x" * 10] * BLOCKS_OF_ONE_MAX, ["y" * 10] * 3 * BLOCKS_OF_ONE_MAX),
    ],
)
def test_who_holds_the_beginning_of_a_long_prompt_does_not_hold_all(beginning: list[str], rest: list[str]) -> None:
    known = Prefixes()
    known.sent(blocks_of(beginning), "a", 200)
    assert known.expected(blocks_of(beginning), "a", 0) == 1.0
    assert known.expected(blocks_of([*beginning, *rest]), "a", 0) == 0.25
    # Nor does who was sent another long one: what follows the beginning has no name.
    known.sent(blocks_of([*beginning, "z" * 1000]), "a", 200)
    assert known.expected(blocks_of([*beginning, *rest]), "a", 0) == 0.25


def test_who_was_sent_a_prompt_holds_its_beginning() -> None:
    known = Prefixes()
    known.sent(FIRST, "a", 200)
    assert known.held(FIRST, "a", 4096) == 1.0
    assert 0.95 < known.held(NEXT, "a", 4096) < 1.0
    assert known.held(NEXT, "b", 4096) == 0.0
    assert known.held(blocks_of(["hello"]), "a", 4096) == 0.0


def test_what_was_sent_since_pushes_it_out() -> None:
    known = Prefixes()
    known.sent(FIRST, "a", 200)
    known.sent(blocks_of(["x"]), "a", 4000)
    assert known.held(FIRST, "a", 4096) == 1.0
    known.sent(blocks_of(["y"]), "a", 200)
    assert known.held(FIRST, "a", 4096) == 0.0
    assert known.held(FIRST, "a", 0) == 1.0, "a cache whose size is not known is not thought full"


def test_an_agent_that_finds_nothing_is_expected_to_find_less() -> None:
    known = Prefixes()
    known.sent(FIRST, "a", 200)
    for _ in range(10):
        known.answered("a", known.expected(FIRST, "a", 4096), 0.0)
    assert known.held(FIRST, "a", 4096) < 0.2
    for _ in range(20):
        known.answered("a", known.expected(FIRST, "a", 4096), 1.0)
    assert known.held(FIRST, "a", 4096) > 0.9


def test_what_was_not_expected_teaches_nothing() -> None:
    known = Prefixes()
    known.answered("a", 0.0, 0.0)
    known.sent(FIRST, "a", 1)
    assert known.held(FIRST, "a", 0) == 1.0


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 30), st.integers(0, 5000), st.floats(0.0, 1.0)), max_size=80)
)
def test_it_stays_within_its_bounds(sent: list[tuple[int, int, int, float]]) -> None:
    known = Prefixes(blocks_max=64)
    for text, agent, tokens, cached in sent:
        blocks = blocks_of([SYSTEM, str(text)])
        expected = known.expected(blocks, str(agent), 4096)
        known.sent(blocks, str(agent), tokens)
        known.answered(str(agent), expected, cached)
        known.validate()
        assert known.expected(blocks, str(agent), 4096) == 1.0


def test_agents_and_holders_are_bounded() -> None:
    known = Prefixes()
    for number in range(AGENTS_MAX + HOLDERS_MAX):
        known.sent(FIRST, str(number), 1)
    known.validate()
