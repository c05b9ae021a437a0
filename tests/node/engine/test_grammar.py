"""Tokens against a grammar: the same answer as checking the text as a whole, whatever the cut."""

import random
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.engine import grammar_memory
from node.engine.gbnf import Characters
from node.engine.grammar import TOKEN_STEPS, TOKENS_SAVED, Budget, Grammar, Matcher, Vocabulary
from node.errors import KithError

#: Letters, strings of several, halves of characters, a token without text, two ends.
PIECES = [b"a", b"b", b"ab", b"ba", b"aa", b"\xe8", b"\xaf\xad", b"\xe8\xaf", b"\xad", "语".encode(), "语a".encode(),
          b"\xff", b"", b"<end>", b"<eot>", b"\xada", b"\xf0\x9f", b"\x98\x80"]  # fmt: skip
ENDS = (13, 14)
#: Until a thread has come to where it is waited for, at the latest, seconds.
WITHIN_S = 20.0
#: About what a step takes, seconds.
STEP_S = 3e-6
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


#: Ways that only add up, and a token of many characters.
WORDS = "root ::= ([a-z]+ [ .,;]*){1,900}"
LONG_TOKENS = Vocabulary([b"a" * 60, b"<end>"], [1])


def said_before_the_end(matcher: Matcher, why: str = "too ambiguous", most: int = 200) -> int:
    said = 0

    def speak() -> None:
        nonlocal said
        while said < most:
            matcher.accept(0)
            said += 1

    with pytest.raises(KithError, match=why) as caught:
        speak()
    assert caught.value.code == "bad-grammar"
    return said


def test_a_grammar_that_costs_much_at_every_token_ends_as_an_error_at_the_same_token_every_time() -> None:
    begun = time.process_time()
    first = said_before_the_end(Matcher(Grammar(WORDS), LONG_TOKENS))
    assert time.process_time() - begun < 10 * (STEP_S * TOKEN_STEPS * (TOKENS_SAVED + first))
    assert 1 <= first < 60
    assert said_before_the_end(Matcher(Grammar(WORDS), LONG_TOKENS)) == first


def test_what_is_remembered_costs_nothing() -> None:
    grammar = Grammar(WORDS)
    first = said_before_the_end(Matcher(grammar, LONG_TOKENS))
    assert said_before_the_end(Matcher(grammar, LONG_TOKENS)) > first


def test_an_answer_that_is_gone_on_with_has_a_budget_too() -> None:
    matcher = Matcher(Grammar(WORDS), LONG_TOKENS)
    assert matcher.resume([0])
    with pytest.raises(KithError, match="too ambiguous"):
        matcher.resume([0] * 200)
    assert not Matcher(Grammar(WORDS), LONG_TOKENS).resume([0, 1])


def test_a_search_through_the_vocabulary_costs_as_well() -> None:
    """Of a grammar without loops every state is new, and remembers no list."""
    texts = [f"{number}x".encode() for number in range(30_000)]
    matcher = Matcher(Grammar("root ::= [^a]{0,2000}"), Vocabulary([*texts, b"<end>"], [len(texts)]))

    def look_on() -> None:
        for _ in range(100):
            assert matcher.allowed() is not None
            matcher._state = next(after for after in matcher._state.moves.values() if after is not None)

    with pytest.raises(KithError, match="too ambiguous"):
        look_on()


def test_memory_of_what_was_seen_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 512 << 10
    monkeypatch.setattr(grammar_memory, "REMEMBERED_BYTES_MAX", limit)
    grammar = Grammar('root ::= "x"? [^b]* "b" root | "y"')
    budget = Budget(10**9)
    most = 0
    tracemalloc.start()
    try:
        for number in range(8_000):
            after = grammar.move(grammar.start, chr(0x100 + number), budget)
            assert after is not None
            assert grammar.move(after, "é", budget) is not None
            most = max(most, grammar.bytes_kept)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.9 * limit < most < 1.1 * limit
    assert kept < 1.5 * 1.1 * limit
    assert len(grammar.start.moves) < 8_000
    assert grammar.move(grammar.start, "b", budget) is not None
    assert grammar.move(grammar.start, "y", budget) is not None


def test_a_grammar_whose_room_was_used_up_learns_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """It once remembered nothing more from then on, and every token was looked for as if for the first time."""
    monkeypatch.setattr(grammar_memory, "REMEMBERED_BYTES_MAX", 64 << 10)
    grammar = Grammar("root ::= [^b]* | [cd]*")
    for number in range(2_000):
        assert Matcher(grammar, VOCABULARY).accept_text(chr(0x100 + number))
    for _ in range(2):
        matcher = Matcher(grammar, VOCABULARY)
        assert matcher.accept_text("dddcdc")
        tokens = matcher.allowed()
    spent = matcher._budget.left
    assert matcher.accept_text("dddcdc")
    assert matcher.allowed() is tokens
    assert spent == matcher._budget.left == TOKENS_SAVED * TOKEN_STEPS


def test_places_count_in_the_room_and_are_forgotten_with_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 256 << 10
    monkeypatch.setattr(grammar_memory, "REMEMBERED_BYTES_MAX", limit)
    grammar = Grammar('root ::= "a" root "x" | "b" root "y" | "z"')
    rng = random.Random(3)
    tracemalloc.start()
    try:
        for _ in range(300):
            text = [rng.choice("ab") for _ in range(20)]
            matcher = Matcher(grammar, VOCABULARY)
            assert matcher.accept_text(
                "".join(text) + "z" + "".join({"a": "x", "b": "y"}[one] for one in reversed(text))
            )
            assert matcher.over
            assert grammar.bytes_kept < 1.1 * limit
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1.5 * 1.1 * limit


def test_answers_on_their_way_go_on_when_all_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_memory, "REMEMBERED_BYTES_MAX", 64 << 10)
    grammar = Grammar('root ::= "a" root "x" | "b" root "y" | [^abxy] root?')
    rng = random.Random(5)
    opened = [[rng.choice("ab") for _ in range(20)] for _ in range(4)]
    matchers = [Matcher(grammar, VOCABULARY) for _ in opened]
    for depth in range(20):
        for matcher, text in zip(matchers, opened, strict=True):
            assert matcher.accept_text(text[depth])
            assert Matcher(grammar, VOCABULARY).accept_text("".join(chr(rng.randrange(200, 50_000)) for _ in range(40)))
    for matcher, text in zip(matchers, opened, strict=True):
        for character in ["c", *("x" if one == "a" else "y" for one in reversed(text))]:
            assert not matcher.over
            assert not matcher.accept_text("y" if character == "x" else "x")
            assert matcher.accept_text(character)
        assert matcher.over


def test_a_text_whose_stacks_alone_need_more_than_the_room_ends_as_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_memory, "REMEMBERED_BYTES_MAX", 64 << 10)
    matcher = Matcher(Grammar('root ::= "a" root "b" | "b"'), VOCABULARY)
    said = said_before_the_end(matcher, "nests too deep", 1_000)
    assert (64 << 10) / 250 / 4 < said < (64 << 10) / 250


def test_a_list_for_which_there_is_no_room_is_worked_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = Vocabulary([*(chr(0x100 + number).encode() for number in range(2_000)), b"<end>"], [2_000])
    matcher = Matcher(Grammar("root ::= [Ā-𐀀]*"), vocabulary)
    limit = 7_000
    matcher.accept(0)
    monkeypatch.setattr(grammar_memory, "REMEMBERED_BYTES_MAX", limit)
    for _ in range(2):
        tokens = matcher.allowed()
        assert tokens is not None
        assert tokens.nbytes > limit
        assert tokens.tolist() == list(range(2_001))
    matcher.accept(1)
    assert matcher.complete


@pytest.mark.parametrize(
    ("room", "depth", "texts"),
    [(grammar_memory.REMEMBERED_BYTES_MAX, 600, 1), (64 << 10, 30, 20)],
    ids=["room for all", "room for one"],
)
def test_threads_may_use_one_grammar_at_once(
    room: int, depth: int, texts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One goes on with an answer on the worker's thread, while others are being written on the loop's."""
    monkeypatch.setattr(grammar_memory, "REMEMBERED_BYTES_MAX", room)
    vocabulary = Vocabulary([b"a", b"b", b"x", b"y", b"z"], [])
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def nest(grammar: Grammar, seed: int, ready: threading.Barrier) -> bool:
        rng = random.Random(seed)
        ready.wait(WITHIN_S)
        for _ in range(texts):
            matcher = Matcher(grammar, vocabulary)
            opened = [rng.randrange(2) for _ in range(depth)]
            if not (matcher.resume([*opened, 4, *(2 + one for one in reversed(opened))]) and matcher.over):
                return False
        return True

    try:
        grammar = Grammar('root ::= "a" root "x" | "b" root "y" | "z"')
        learned = grammar.start.generation
        ready = threading.Barrier(4)
        with ThreadPoolExecutor(4) as pool:
            said = [pool.submit(nest, grammar, number, ready) for number in range(4)]
            assert [one.result() for one in said] == [True] * 4
        assert (grammar.start.generation > learned) == (texts > 1), "forgets where there is no room, and only there"
        places = grammar._memory._places
        assert len({place.number for place in places.values()}) == len(places)
        assert all((place.node, place.rest) == content for content, place in places.items())
    finally:
        sys.setswitchinterval(before)


def test_what_a_grammar_remembers_is_added_by_one_thread_at_a_time() -> None:
    grammar = Grammar('root ::= [ab] root | "z"')
    locked: list[bool] = []

    class Looking(Characters):
        def has(self, code_point: int) -> bool:
            locked.append(grammar._lock.locked())
            return super().has(code_point)

    grammar._elements = [Looking(one.ranges) if isinstance(one, Characters) else one for one in grammar._elements]
    matcher = Matcher(grammar, VOCABULARY)
    assert matcher.allows(0)
    assert locked
    assert all(locked)
    before = len(locked)
    assert matcher.allows(0)
    assert len(locked) == before, "what is remembered needs no lock"


def test_nesting_without_end_is_bounded_and_cheap_for_long() -> None:
    grammar = Grammar('root ::= "a" root "b" | "b"')
    matcher = Matcher(grammar, VOCABULARY)
    for _ in range(5000):
        matcher.accept(0)
    assert allowed(matcher) == {0, 1, 2, 4}


def test_a_vocabulary_is_sorted_when_a_grammar_first_needs_it() -> None:
    vocabulary = Vocabulary(PIECES, ENDS)
    vocabulary.sha256()
    assert not hasattr(vocabulary, "ordered"), "every start of an engine would pay for it"
    Matcher(Grammar('root ::= "a"'), vocabulary)
    assert vocabulary.ordered == sorted(vocabulary.ordered)


class SlowPieces(list[bytes]):
    """Whoever reads these waits until somebody else had time to come."""

    def __init__(self, pieces: list[bytes]) -> None:
        super().__init__(pieces)
        self.being_read, self.go_on = threading.Event(), threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        self.being_read.set()
        assert self.go_on.wait(WITHIN_S)
        return super().__iter__()


def test_a_vocabulary_that_another_thread_is_sorting_is_waited_for() -> None:
    pieces = SlowPieces(PIECES)
    vocabulary, grammar = Vocabulary(pieces, ENDS), Grammar('root ::= "a"')
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(Matcher, grammar, vocabulary)
        assert pieces.being_read.wait(WITHIN_S)
        second = pool.submit(Matcher, grammar, vocabulary)
        assert not wait([second], 0.2).done, "it would use what is not there yet"
        pieces.go_on.set()
        assert first.result(WITHIN_S).allows(0)
        assert second.result(WITHIN_S).allows(0)


def test_digest_tells_vocabularies_apart() -> None:
    same = Vocabulary(list(PIECES), ENDS)
    assert same.sha256() == VOCABULARY.sha256()
    others = [Vocabulary([*PIECES, b""], ENDS), Vocabulary(PIECES, (13,)), Vocabulary([b"aa", b"", *PIECES[2:]], ENDS)]
    assert len({VOCABULARY.sha256(), *(other.sha256() for other in others)}) == 4
