"""Is a sentence that a model wrote said by the document, and where?

Why: small models invent, mix up and repeat. Every sentence of a summary is checked against the sentences it was made
from and carries the spans that say it; what is not said there is dropped.
The idea: the sentence is compared with each source sentence. Its content terms (words without endings; pairs of
characters in Chinese and Japanese), weighted by how rare they are in the sources, must occur there, and so must each
two neighbouring terms, in the same order: this catches the commonest error of small models, true words joined to a
false statement. It may also say two neighbours one after the other: a first part that one supports, then a second that
the next supports, not linked by a word like "so". Numbers, names and links must occur literally; a term that is denied
in one place and not in the other rejects the sentence.
Not guaranteed: truth. The check is lexical: a faithful paraphrase in other words is dropped (a loss of style, not of
truth), and a false sentence made only of neighbouring terms of one source sentence passes.
Source: content overlap with rarity weights as in tf-idf; skip-bigrams from Lin, "ROUGE" (2004).
"""

import itertools
import math
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from solver.lexicon import CJK_NEGATIONS, CJK_NOT_NEGATIONS, LINKS, NEGATIONS, NUMBER_WORDS, STOP
from solver.text import is_cjk, words

#: Share of content that must be found in the sources. Chosen by reading what a 135M model wrote about five documents:
#: below, most sentences say something false; above, the rare flaw is a lost detail.
SUPPORT_MIN = 0.85
#: A pair of source sentences must explain this much more than the best single one.
_PAIR_GAIN_MIN = 0.05
#: Two sentences that share this much of the shorter one's content say the same.
SAME_CONTENT_MIN = 0.6
#: A negation reaches over this many content terms that follow it.
_NEGATION_REACH = 2
#: A part of a sentence that is supported by a source sentence of its own has at least this many content terms.
_PART_TERMS_MIN = 2
#: A longer sentence is not looked at further. Threat: time grows with the square.
_TERMS_MAX = 80

_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_CJK_NUMBER = re.compile(r"[〇零一二三四五六七八九十百千万萬亿億两兩几%％]{2,}|百分之[〇零一二三四五六七八九十百千点]+")
_TOKEN = re.compile(r"\w[\w'’-]*")


@dataclass(frozen=True, slots=True)
class Alignment:
    """Where a sentence is said. `problem` is empty when it may be kept, else says why not."""

    sources: tuple[int, ...]  # indices of source sentences, ascending
    support: float  # 0..1: share of the sentence's content found in them
    problem: str = ""


@dataclass(frozen=True, slots=True)
class _Analysis:
    terms: tuple[str, ...]  # content terms in order
    denied: frozenset[int]  # positions of terms in reach of a negation
    links: frozenset[str]  # words that claim how statements hang together
    numbers: frozenset[str]
    names: frozenset[str]  # capitalised words that do not open the sentence, case-folded
    opening: str  # the content term that opens the sentence, which may be a name or a made-up label; else empty
    tokens: tuple[str, ...]  # all its words as they are written, case-folded, each once


def stem(word: str) -> str:
    """`word` without its commonest English ending: enough to match opens, opened and opening."""
    for ending in ("'s", "ies", "ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            word = word[: -len(ending)] + ("y" if ending == "ies" else "")
            break
    return word[:-1] if word.endswith("e") and len(word) > 4 else word


def content_terms(text: str) -> tuple[str, ...]:
    """The content terms of `text` in order: what similarity and alignment are measured on."""
    return _analysis_of(text).terms


def _analysis_of(text: str) -> _Analysis:
    return _analyse_sentence(text) if len(text) <= _CACHED_CHARS_MAX else _analyse(text)


def _analyse(text: str) -> _Analysis:
    terms: list[str] = []
    opening = ""
    denied: set[int] = set()
    reach = 0
    all_words = words(text)
    for at, word in enumerate(all_words):
        if is_cjk(word):
            following = all_words[at + 1] if at + 1 < len(all_words) else ""
            if word in CJK_NEGATIONS and word + following not in CJK_NOT_NEGATIONS:
                reach = _NEGATION_REACH
                continue
            if not is_cjk(following):
                if not (at and is_cjk(all_words[at - 1])):
                    terms.append(word)
                continue
            if following in CJK_NEGATIONS:
                continue
            term = word + following
        elif word in NEGATIONS or word.endswith("n't"):
            reach = _NEGATION_REACH
            continue
        elif word in LINKS or word in STOP:
            continue
        else:
            term = NUMBER_WORDS.get(word) or stem(word)
            opening = term if at == 0 else opening
        if reach:
            denied.add(len(terms))
            reach -= 1
        terms.append(term)
    numbers = {n.replace(",", "") for n in _NUMBER.findall(text)} | set(_CJK_NUMBER.findall(text))
    numbers |= {NUMBER_WORDS[w] for w in all_words if w in NUMBER_WORDS and w != "one"}
    tokens = [match.group() for match in _TOKEN.finditer(text)]
    names = {token.casefold() for token in tokens[1:] if token[0].isupper()} - STOP
    return _Analysis(
        terms=tuple(map(sys.intern, terms)),
        denied=frozenset(denied),
        links=LINKS.intersection(all_words),
        numbers=frozenset(numbers),
        names=frozenset(names),
        opening=opening,
        tokens=tuple({sys.intern(token.casefold()): None for token in tokens}),
    )


#: The same sentences are looked at many times over, in one task and in the next ones. About 1.5 KB each.
_CACHED_CHARS_MAX = 1_000
_CACHED_SENTENCES_MAX = 2048
_analyse_sentence = lru_cache(maxsize=_CACHED_SENTENCES_MAX)(_analyse)


class Aligner:
    """Aligns sentences with a fixed list of source sentences, in the order of the document.

    Cost: O(terms) for each source sentence. Make one for a piece, not for each sentence.
    """

    def __init__(self, sources: Sequence[str]) -> None:
        self._sources = [_analysis_of(source) for source in sources]
        counts = Counter(term for source in self._sources for term in set(source.terms))
        total = len(self._sources) + 1
        self._rarity = {term: math.log(1 + total / count) for term, count in counts.items()}
        self._rarity_of_unknown = math.log(1 + total)

    def align(self, sentence: str, candidates: Sequence[tuple[int, ...]] | None = None) -> Alignment:
        """The best supporting source sentences of `sentence` and what speaks against keeping it.

        Args:
            candidates: groups of source indices to try; all single sentences and neighbouring pairs when None.
        """
        analysis = _analysis_of(sentence)
        if not self._sources or not analysis.terms:
            return Alignment((), 0.0, "nothing to check")
        if candidates is None:
            best = self._best(analysis, [(i,) for i in range(len(self._sources))])
            pair = self._best(analysis, [(i, i + 1) for i in range(len(self._sources) - 1)])
            if pair[1] > best[1] + _PAIR_GAIN_MIN:
                best = pair
        else:
            best = self._best(analysis, candidates)
        sources, support = best
        return Alignment(sources, support, self._problem(analysis, sources, support))

    def _best(self, sentence: _Analysis, groups: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], float]:
        best: tuple[tuple[int, ...], float] = ((), 0.0)
        if sentence.links:  # what a link joins must be joined in one source sentence
            groups = [(index,) for group in groups for index in group]
        for group in groups:
            support = self._support_of_group(sentence, group)
            if support > best[1]:
                best = (group, support)
        return best

    def _weight(self, term: str) -> float:
        return self._rarity.get(term, self._rarity_of_unknown)

    def _support_of_group(self, sentence: _Analysis, group: tuple[int, ...]) -> float:
        """The support of the weakest part, when the sentence is cut into parts that its sources support in order."""
        terms = sentence.terms[:_TERMS_MAX]
        best = [0.0] * len(terms)  # of the terms before each position, with the sources so far
        whole = 0.0
        for number, index in enumerate(group):
            places: dict[str, list[int]] = {}
            for at, term in enumerate(self._sources[index].terms):
                places.setdefault(term, []).append(at)
            starts = [0] if number == 0 else [0, *(at for at in range(_PART_TERMS_MIN, len(terms)) if best[at] > 0)]
            after = best.copy()
            for start in starts:
                before = best[start] if start else 1.0
                if before <= whole:
                    continue
                if len(terms) - start >= _PART_TERMS_MIN or not start:
                    whole = max(whole, min(before, self._support(terms[start:], places)))
                if number < len(group) - 1:
                    for end in range(start + _PART_TERMS_MIN, len(terms) - _PART_TERMS_MIN + 1):
                        after[end] = max(after[end], min(before, self._support(terms[start:end], places)))
            best = after
        return whole

    def _support(self, terms: Sequence[str], places: dict[str, list[int]]) -> float:
        """Share of the weight of the terms, and of each two that follow each other, that is in one source sentence."""
        weights = [self._weight(term) for term in terms]
        single = sum(w for t, w in zip(terms, weights, strict=True) if t in places) / sum(weights)
        if len(terms) < 2 or not single:
            return single
        found = total = 0.0
        for (left, left_weight), (right, right_weight) in itertools.pairwise(zip(terms, weights, strict=True)):
            total += left_weight + right_weight
            if left in places and right in places and places[left][0] < places[right][-1]:
                found += left_weight + right_weight
        return (single + found / total) / 2

    def _problem(self, sentence: _Analysis, group: tuple[int, ...], support: float) -> str:
        sources = [self._sources[i] for i in group]
        if not sources:
            return "not in the text"
        if not sentence.numbers <= frozenset().union(*(s.numbers for s in sources)):
            return "a number that is not in its source"
        if not sentence.names <= frozenset().union(*(s.tokens for s in sources)):
            return "a name that is not in its source"
        if sentence.opening and not any(sentence.opening in source.terms for source in sources):
            return "an opening that is not in its source"
        if not sentence.links <= frozenset().union(*(s.links for s in sources)):
            return "a link that is not in its source"
        if support < SUPPORT_MIN:
            return "too little of it is in the text"
        if _denial_differs(sentence, sources):
            return "denied in one place and not in the other"
        return ""


def _denial_differs(sentence: _Analysis, sources: Sequence[_Analysis]) -> bool:
    """Whether a term is denied on one side only, and the two sides have no denied term in common."""
    said, denied = _polarity([sentence])
    source_said, source_denied = _polarity(sources)
    if denied & source_denied:
        return False
    return bool(denied & (source_said - source_denied) or said & (source_denied - source_said))


def _polarity(parts: Sequence[_Analysis]) -> tuple[set[str], set[str]]:
    said: set[str] = set()
    denied: set[str] = set()
    for part in parts:
        for at, term in enumerate(part.terms):
            (denied if at in part.denied else said).add(term)
    return said, denied


def same_content(left: str, right: str) -> bool:
    """Whether the shorter of two sentences says little that the other does not."""
    a, b = set(content_terms(left)), set(content_terms(right))
    smaller = min(len(a), len(b))
    return smaller > 0 and len(a & b) >= SAME_CONTENT_MIN * smaller
