"""Tokens against a grammar: the same answer as checking the text as a whole, whatever the cut."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.engine.grammar import Grammar, Matcher, Vocabulary
from node.errors import KithError

#: Letters, strings of several, halves of characters, a token without text, two ends.
PIECES = [b"a", b"b", b"ab", b"ba", b"aa", b"\xe8", b"\xaf\xad", b"\xe8\xaf", b"\xad", "语".encode(), "语a".encode(),
          b"\xff", b"", b"<end>", b"<eot>", b"\xada", b"\xf0\x9f", b"\x98\x80"]  # fmt: skip
ENDS = (13, 14)
VOCABULARY = Vocabulary(PIECES, ENDS)


def is_complete(matcher: Matcher) -> bool:
    return matcher.complete


def allowed(matcher: Matcher) -> set[int]:
    return {token for token in range(len(PIECES)) if matcher.allows(token)}


def test_first_tokens() -> None:
    matcher = Matcher(Grammar('root ::= "ab" "a"*'), VOCABULARY)
    assert allowed(matcher) == {0, 2}
    matcher.accept(0)
    assert allowed(matcher) == {1, 3}
    assert not is_complete(matcher)
    matcher.accept(1)
    assert is_complete(matcher)
    assert not matcher.over
    assert allowed(matcher) == {0, 4, *ENDS}


def test_over_when_nothing_can_follow() -> None:
    matcher = Matcher(Grammar('root ::= "ab"'), VOCABULARY)
    matcher.accept(2)
    assert matcher.over
    assert allowed(matcher) == set(ENDS)


def test_characters_in_halves() -> None:
    matcher = Matcher(Grammar("root ::= [语]+"), VOCABULARY)
    assert allowed(matcher) == {5, 7, 9}  # not the beginning of an emoji
    matcher.accept(5)
    assert not is_complete(matcher)
    assert allowed(matcher) == {6}
    matcher.accept(6)
    assert is_complete(matcher)
    assert listed(matcher) == allowed(matcher) == {5, 7, 9, *ENDS}
    matcher.accept(7)
    assert listed(matcher) == allowed(matcher) == {8}


def listed(matcher: Matcher) -> set[int]:
    tokens = matcher.allowed()
    assert tokens is not None
    quick = matcher.allowed(patient=False)
    assert quick is None or list(quick) == list(tokens)
    return set(tokens.tolist())


GRAMMARS = [
    'root ::= ("a" | "b" "a")* "语"?',
    'root ::= "a" root "b" | "语" | ""',
    "root ::= [^b]{2,5}",
    'root ::= x y x\nx ::= "ab"*\ny ::= [语😀] | "ba"',
    "root ::= .*",
]


@given(st.sampled_from(GRAMMARS), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_the_list_says_what_allows_says_and_every_way_is_in_the_grammar(text: str, seed: int) -> None:
    grammar = Grammar(text)
    matcher = Matcher(grammar, VOCABULARY)
    said = b""
    rng = random.Random(seed)
    for _ in range(12):
        possible = allowed(matcher)
        assert listed(matcher) == possible
        if not possible or rng.random() < 0.1:
            break
        token = rng.choice(sorted(possible))
        if token in ENDS:
            again = Matcher(grammar, VOCABULARY)
            assert again.accept_text(said.decode())
            assert again.complete
            break
        said += PIECES[token]
        matcher.accept(token)
    assert Matcher(grammar, VOCABULARY).accept_text(said.decode("utf-8", "ignore"))


@given(st.sampled_from(GRAMMARS), st.lists(st.sampled_from(range(len(PIECES))), max_size=6))
@settings(max_examples=200, deadline=None)
def test_what_is_refused_can_not_begin_a_text_of_the_grammar(text: str, tokens: list[int]) -> None:
    matcher = Matcher(Grammar(text), VOCABULARY)
    said = b""
    for token in tokens:
        if token in ENDS:
            continue
        said += PIECES[token]
        if not matcher.allows(token):
            whole = said.decode("utf-8", "replace")
            fits = Matcher(Grammar(text), VOCABULARY).accept_text(whole)
            # What does not fit either ends badly as text, prints nothing, or ends within a character.
            assert not fits or not PIECES[token] or "\ufffd" in whole
            return
        matcher.accept(token)


def test_ways_that_multiply_end_as_an_error() -> None:
    """llama.cpp's sampler takes six seconds for the eighth character of this, and ten times more for the next."""
    matcher = Matcher(Grammar('root ::= "a" root "b" | "a" root "c" | "a" root "d" | "a"'), VOCABULARY)

    def speak() -> None:
        for _ in range(50):
            assert matcher.allows(0)
            matcher.accept(0)

    with pytest.raises(KithError, match="ambiguous") as caught:
        speak()
    assert caught.value.code == "bad-grammar"


def test_nesting_without_end_is_bounded_and_cheap_for_long() -> None:
    grammar = Grammar('root ::= "a" root "b" | "b"')
    matcher = Matcher(grammar, VOCABULARY)
    for _ in range(5000):
        matcher.accept(0)
    assert not grammar.full
    assert allowed(matcher) == {0, 1, 2, 4}


def test_digest_tells_vocabularies_apart() -> None:
    same = Vocabulary(list(PIECES), ENDS)
    assert same.sha256() == VOCABULARY.sha256()
    others = [Vocabulary([*PIECES, b""], ENDS), Vocabulary(PIECES, (13,)), Vocabulary([b"aa", b"", *PIECES[2:]], ENDS)]
    assert len({VOCABULARY.sha256(), *(other.sha256() for other in others)}) == 4
