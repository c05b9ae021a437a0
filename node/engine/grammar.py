"""Holds an answer to a grammar: which tokens may come next, whatever is sampled.

A pushdown automaton over characters that keeps every way in which the text so far can be read. A state is the set of
these ways; what a character does to a state is computed once and remembered, so in the usual case a token costs some
look-ups in dictionaries. The sampled token is checked first; the tokens that a state allows are only computed where
samples are refused and few tokens fit or many samples were refused, and then remembered too.

llama.cpp's own grammar sampler does the same without bounds: `root ::= "a" root "b" | "a" root "c" | "a" root "d" |
"a"` costs it six seconds for the eighth character and ten times more for each that follows, and left recursion behind
a rule that may be empty never ends. Here both are refused: at once, or when the text gets there.

Cost is counted in steps and not by a clock: each answer has a `Budget`, which every token fills up by a little, and an
answer that spends it ends with an error. Only what was not remembered costs. Memory is bounded as well: a grammar that
has used up its room forgets what it knows and learns anew (`grammar_memory.py`).

Any threads may use a grammar at once: what was read of it never changes, what it remembers is added under a lock, and
what belongs to one answer is in its `Matcher`, which one thread at a time may use.
"""

import codecs
import contextlib
import hashlib
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from node.engine import gbnf
from node.engine.gbnf import Characters, bad_grammar
from node.engine.grammar_memory import END, PLACE_BYTES, FullError, Memory, Place, State
from node.errors import KithError

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Ways to read the same text. Threat: a small grammar whose ways triple with each character.
WAYS_MAX = 1024
#: Steps from one state to the terminals that may follow. Threat: left recursion, which has no end.
STEPS_MAX = 8192
#: The same, over all rules, when a grammar is made, and over the whole of an answer that is gone on with.
MAKING_STEPS_MAX = 500_000
RESUMING_STEPS_MAX = 1_000_000
#: Steps (about 2 µs each) that a token may take in the mean, and how many an answer may save up; more where the
#: vocabulary is large, of which two entries are a step. Threat: a grammar that takes a second for every token, while
#: everybody waits.
TOKEN_STEPS, TOKENS_SAVED = 25_000, 10
#: Characters that may come next, and steps through the vocabulary, so few that working all tokens out is cheap.
FEW_CHARACTERS, FEW_STEPS = 64, 1000

T = TypeVar("T")


class Vocabulary:
    """The tokens of a model as text, which are read when a grammar first needs them.

    Args:
        pieces: the bytes of each token; empty for those that print nothing.
        ends: tokens that end a generation.
    """

    def __init__(self, pieces: Sequence[bytes], ends: Iterable[int]) -> None:
        self.pieces = pieces
        self.ends = frozenset(ends)
        self._prepared = False
        self._lock = threading.Lock()  # guards what `prepare` makes until it is whole

    def prepare(self) -> None:
        """Read and sort the texts, once: 0.04 s for ten thousand tokens. By the thread that first makes a matcher."""
        with self._lock:
            if not self._prepared:
                self._read()
                self._prepared = True

    def _read(self) -> None:
        pieces = self.pieces
        self.texts = [None if token in self.ends else _decode(piece) for token, piece in enumerate(pieces)]
        self.cut: list[int] = []  # tokens that are only a beginning of a character
        self.continuing: list[int] = []  # tokens that go on with a character that another began
        for token, text in enumerate(self.texts):
            if text is not None and not text[0]:
                self.cut.append(token)
            elif text is None and pieces[token] and token not in self.ends and pieces[token][0] & 0xC0 == 0x80:
                self.continuing.append(token)

        ordered = sorted((text[0], token) for token, text in enumerate(self.texts) if text is not None and text[0])
        self.ordered = [text for text, _ in ordered]
        self.ordered_tokens = [token for _, token in ordered]
        self.firsts = sorted({text[0] for text in self.ordered})

    def sha256(self) -> bytes:
        """Of all pieces in order, each with its length, and of the ends."""
        digest = hashlib.sha256()
        for piece in self.pieces:
            digest.update(len(piece).to_bytes(4))
            digest.update(piece)
        for token in sorted(self.ends):
            digest.update(token.to_bytes(4))
        return digest.digest()


def _decode(data: bytes) -> tuple[str, bytes] | None:
    """Whole characters, and the beginning of one more. None: nothing, or no beginning of UTF-8."""
    if not data:
        return None
    try:
        text, length = codecs.utf_8_decode(data, "strict", False)
    except UnicodeDecodeError:
        return None
    return text, data[length:]


class Budget:
    """Steps that may still be taken. `spent`: what to say where there are none."""

    __slots__ = ("_spent", "left")

    def __init__(self, left: int, spent: str = "it is too ambiguous: it takes too many steps to follow it") -> None:
        self.left = left
        self._spent = spent

    def spend(self, steps: int) -> None:
        """Raises `KithError` (`bad-grammar`) where they are more than is left."""
        self.left -= steps
        if self.left < 0:
            raise bad_grammar(self._spent)


class Grammar:
    """A grammar ready for use. Raises `KithError` (`bad-grammar`) where it can not be used."""

    def __init__(self, text: str) -> None:
        rules, root = gbnf.read(text)
        # A node is an element of an alternative, with the node after it; 0 is none.
        self._elements: list[gbnf.Element] = [0]
        self._after: list[int] = [0]
        self._rules = [[self._chain(alternative) for alternative in rule] for rule in rules]
        self._memory = Memory()
        self._lock = threading.Lock()  # guards the memory
        budget = Budget(MAKING_STEPS_MAX, "its rules refer to each other in too many ways")
        try:
            for rule in range(len(rules)):
                self._settle([self._place(first, END) for first in self._rules[rule]], budget)
                self._memory.forget()
            self.start = self._state([self._place(first, END) for first in self._rules[root]], budget)
        except FullError:
            raise _too_deep() from None
        if not self.start.places:
            raise bad_grammar("there is no text that follows it")

    @property
    def bytes_kept(self) -> int:
        """About what it takes in memory."""
        return self._memory.used_bytes + PLACE_BYTES * len(self._elements)

    def move(self, state: State, character: str, budget: Budget) -> State | None:
        """After one more character; None: it does not fit. Raises `KithError` (`bad-grammar`)."""
        with self._lock:
            try:
                return self._with_room(lambda: self._move(state, character, budget))
            except FullError:
                raise _too_deep() from None

    def _move(self, state: State, character: str, budget: Budget) -> State | None:
        state = self._memory.renewed(state, budget.spend)
        if character in state.moves:  # the caller's was forgotten, or another thread was quicker
            return state.moves[character]
        budget.spend(len(state.places))
        code_point = ord(character)
        nexts = []
        for place in state.places:
            element = self._elements[place.node]
            if place is not END and isinstance(element, Characters) and element.has(code_point):
                assert place.rest is not None
                nexts.append(self._place(self._after[place.node], place.rest))
        found = self._state(nexts, budget) if nexts else None
        self._memory.moved(state, character, found)
        return found

    def meets(self, state: State, low: int, high: int) -> bool:
        """May a character between these code points come next?"""
        for place in state.places:
            element = self._elements[place.node]
            if isinstance(element, Characters) and element.meets(low, high):
                return True
        return False

    def few(self, state: State) -> list[str] | None:
        """The characters that may come next; None: they are many."""
        found: set[int] = set()
        for place in state.places:
            element = self._elements[place.node]
            if isinstance(element, Characters):
                for low, high in element.ranges:
                    if high - low >= FEW_CHARACTERS:
                        return None
                    found.update(range(low, high + 1))
        return [chr(code_point) for code_point in found] if len(found) <= FEW_CHARACTERS else None

    def keep(self, state: State, allowed: "NDArray[np.int32]") -> None:
        """Remember what tokens may come next, where there is room for it."""

        def kept() -> None:
            self._memory.keep(self._memory.renewed(state, lambda steps: None), allowed)

        with self._lock, contextlib.suppress(FullError):  # then they are worked out again
            self._with_room(kept)

    def _with_room(self, learn: Callable[[], T]) -> T:
        """Where there is no room for what is learned, all else is forgotten. Raises `FullError`, `KithError`."""
        try:
            return learn()
        except FullError:
            self._memory.forget()
        self.start = self._memory.renewed(self.start, lambda steps: None)
        return learn()

    def _chain(self, alternative: gbnf.Alternative) -> int:
        """The first of the alternative's nodes; 0 where it is empty."""
        after = 0
        for element in reversed(alternative):
            self._elements.append(element)
            self._after.append(after)
            after = len(self._elements) - 1
        return after

    def _place(self, node: int, rest: Place) -> Place:
        return rest if node == 0 else self._memory.place(node, rest)

    def _state(self, places: list[Place], budget: Budget) -> State:
        return self._memory.state(self._settle(places, budget))

    def _settle(self, places: list[Place], budget: Budget) -> set[Place]:
        """Replace rules by what they begin with, until only characters are left."""
        seen: set[Place] = set()
        found = set()
        steps, most = len(places), budget.left
        while places and steps <= most:
            place = places.pop()
            if place in seen:
                continue
            seen.add(place)
            if len(seen) > STEPS_MAX:
                raise bad_grammar("it goes round without an end (left recursion), or has too many alternatives")
            element = self._elements[place.node]
            if place.rest is None or isinstance(element, Characters):
                found.add(place)
            else:
                back = self._place(self._after[place.node], place.rest)
                alternatives = self._rules[element]
                steps += len(alternatives)
                places.extend(self._place(first, back) for first in alternatives)
        budget.spend(steps)
        if len(found) > WAYS_MAX:
            raise bad_grammar("it is too ambiguous: the same text can be read in too many ways")
        return found


def _too_deep() -> KithError:
    return bad_grammar("the text nests too deep in it, or in too many ways")


class Matcher:
    """One answer's way through a grammar. All that goes on or asks raises `KithError` (`bad-grammar`) where the grammar
    turns out too ambiguous."""

    def __init__(self, grammar: Grammar, vocabulary: Vocabulary) -> None:
        vocabulary.prepare()
        self._grammar = grammar
        self._vocabulary = vocabulary
        self._steps_a_token = max(TOKEN_STEPS, len(vocabulary.ordered) // 2)
        self._budget = Budget(TOKENS_SAVED * self._steps_a_token)
        self._state = grammar.start
        self._pending = b""  # the beginning of a character

    @property
    def complete(self) -> bool:
        """The text so far is one of the grammar."""
        return self._state.accepting and not self._pending

    @property
    def over(self) -> bool:
        """It is, and nothing can follow."""
        return self._state.places == (END,) and not self._pending

    def allows(self, token: int) -> bool:
        """May it come next?"""
        if token in self._vocabulary.ends:
            return self.complete
        return self._after(token) is not None

    def accept(self, token: int) -> None:
        """Go on with a token that is allowed and no end."""
        after = self._after(token)
        assert after is not None
        self._state, self._pending = after
        self._refill()

    def resume(self, tokens: Iterable[int]) -> bool:
        """Go on with what was said before; False where that does not follow the grammar."""
        self._budget = Budget(RESUMING_STEPS_MAX)
        for token in tokens:
            after = None if token in self._vocabulary.ends else self._after(token)
            if after is None:
                return False
            self._state, self._pending = after
        self._budget = Budget(TOKENS_SAVED * self._steps_a_token)
        return True

    def _refill(self) -> None:
        self._budget.left = min(self._budget.left + self._steps_a_token, TOKENS_SAVED * self._steps_a_token)

    def accept_text(self, text: str) -> bool:
        """Go on with what was said before; False where it does not fit."""
        state = self._walk(self._state, text)
        if state is None:
            return False
        self._state = state
        return True

    def allowed(self, patient: bool = True) -> "NDArray[np.int32] | None":
        """All tokens that may come next, in ascending order.

        Args:
            patient: False: None where it would take long.
        """
        state = self._state
        known = state.allowed  # another thread may forget it
        if known is not None and not self._pending:
            return known
        if state.wide and not patient and not self._pending:
            return None
        if self._pending:
            found = [token for token in self._vocabulary.continuing if self._after(token) is not None]
        else:
            searched = self._search(patient)
            if searched is None:
                state.wide = True
                return None
            found = searched
        if self.complete:
            found += self._vocabulary.ends
        tokens = np.array(sorted(found), dtype=np.int32)
        if not self._pending:
            self._grammar.keep(state, tokens)
        return tokens

    def _search(self, patient: bool) -> list[int] | None:
        """Through the texts in their order; where one does not fit, all with the same beginning are passed over."""
        vocabulary = self._vocabulary
        few = self._grammar.few(self._state)
        if few is None and not patient:
            return None
        texts = vocabulary.ordered
        found = []
        if few is None or not all(character.isascii() for character in few):
            found = [token for token in vocabulary.cut if self._after(token) is not None]
        steps = 0
        for first in vocabulary.firsts if few is None else few:
            at, end = bisect_left(texts, first), bisect_left(texts, _following(first))
            while at < end:
                steps += 1
                if steps > FEW_STEPS and not patient:
                    return None
                fitting = self._fitting(texts[at])
                if fitting == len(texts[at]):
                    if self._after(vocabulary.ordered_tokens[at]) is not None:
                        found.append(vocabulary.ordered_tokens[at])
                    at += 1
                else:
                    at = bisect_left(texts, _following(texts[at][: fitting + 1]), at + 1, end)
        self._budget.spend(steps // 2)
        return found

    def _fitting(self, text: str) -> int:
        """Characters of its beginning that may come next."""
        state = self._state
        for length, character in enumerate(text):
            after = self._walk(state, character)
            if after is None:
                return length
            state = after
        return len(text)

    def _after(self, token: int) -> tuple[State, bytes] | None:
        if self._pending:
            piece = self._vocabulary.pieces[token]
            decoded = _decode(self._pending + piece) if piece else None
        else:
            decoded = self._vocabulary.texts[token]
        if decoded is None:
            return None
        text, pending = decoded
        state = self._walk(self._state, text)
        if state is None or (pending and not self._grammar.meets(state, *_possible(pending))):
            return None
        return state, pending

    def _walk(self, state: State, text: str) -> State | None:
        for character in text:
            try:
                after = state.moves[character]
            except KeyError:
                after = self._grammar.move(state, character, self._budget)
            if after is None:
                return None
            state = after
        return state


def _following(text: str) -> str:
    """The first text in order that does not begin with this one; what ends in the last code point is its own."""
    return text[:-1] + chr(min(ord(text[-1]) + 1, gbnf.LAST_CODE_POINT))


def _possible(beginning: bytes) -> tuple[int, int]:
    """The first and last code point that begin with these bytes, a cut UTF-8 sequence."""
    lead = beginning[0]
    length = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    value = lead & (0xFF >> (length + 1))
    for byte in beginning[1:]:
        value = value << 6 | byte & 0x3F
    bits = 6 * (length - len(beginning))
    least = {2: 0x80, 3: 0x800, 4: 0x10000}[length]
    return max(value << bits, least), min((value << bits) | ((1 << bits) - 1), gbnf.LAST_CODE_POINT)
