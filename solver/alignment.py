"""Is a sentence that a model wrote said by the document, and where?

Why: small models invent, mix up and repeat. Every sentence of a summary is checked against the sentences it was made
from and carries the spans that say it; what is not said there is dropped.
The idea: the sentence is compared with each source sentence and each pair of neighbours. Its content terms (words
without endings; pairs of characters in Chinese and Japanese), weighted by how rare they are in the sources, must occur
there, and so must each two neighbouring terms, in the same order: this catches the commonest error of small models,
true words joined to a false statement. Numbers and names must occur literally; a term that is denied in one place and
not in the other rejects the sentence.
Not guaranteed: truth. The check is lexical: a faithful paraphrase in other words is dropped (a loss of style, not of
truth), and a false sentence made only of neighbouring terms of one source sentence passes.
Source: content overlap with rarity weights as in ROUGE and tf-idf; skip-bigrams from Lin, "ROUGE" (2004); LexRank
(Erkan & Radev, 2004) for centrality.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from solver.lexicon import CJK_NEGATIONS, CJK_NOT_NEGATIONS, LEANING, NEGATIONS, NUMBER_WORDS, STOP
from solver.text import is_cjk, words

#: Share of content that must be found in the sources. Chosen by reading outputs of a 135M model: see docs of `Aligner`.
SUPPORT_MIN = 0.8
#: A pair of source sentences must explain this much more than the best single one.
_PAIR_GAIN_MIN = 0.05
#: Two sentences that share this much of the shorter one's content say the same.
SAME_CONTENT_MIN = 0.6
#: A negation reaches over this many content terms that follow it.
_NEGATION_REACH = 2

_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_CJK_NUMBER = re.compile(r"[〇零一二三四五六七八九十百千万萬亿億两兩几%％]{2,}|百分之[〇零一二三四五六七八九十百千点]+")
_NAME = re.compile(r"[^\W\d_a-z][\w'’-]*")


@dataclass(frozen=True, slots=True)
class Alignment:
    """Where a sentence is said. `problem` is empty when it may be kept, else says why not."""

    sources: tuple[int, ...]  # indices of source sentences, ascending
    support: float  # 0..1: share of the sentence's content found in them
    problem: str = ""


@dataclass(frozen=True)
class _Analysis:
    terms: tuple[str, ...]  # content terms in order
    denied: frozenset[int]  # positions of terms in reach of a negation
    numbers: frozenset[str]
    names: frozenset[str]  # capitalised words that do not open the sentence, case-folded
    all_words: frozenset[str]


def stem(word: str) -> str:
    """`word` without its commonest English ending: enough to match opens, opened and opening."""
    for ending in ("'s", "ies", "ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            word = word[: -len(ending)] + ("y" if ending == "ies" else "")
            break
    return word[:-1] if word.endswith("e") and len(word) > 4 else word


def content_terms(text: str) -> list[str]:
    """The content terms of `text` in order: what similarity and alignment are measured on."""
    return list(_analyse(text).terms)


def _analyse(text: str) -> _Analysis:
    terms: list[str] = []
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
        elif word in STOP:
            continue
        else:
            term = NUMBER_WORDS.get(word) or stem(word)
        if reach:
            denied.add(len(terms))
            reach -= 1
        terms.append(term)
    numbers = {n.replace(",", "") for n in _NUMBER.findall(text)} | set(_CJK_NUMBER.findall(text))
    numbers |= {NUMBER_WORDS[w] for w in all_words if w in NUMBER_WORDS and w != "one"}
    first = re.search(r"\w", text)
    names = {m.group().casefold() for m in _NAME.finditer(text) if first is None or m.start() != first.start()}
    names = {n for n in names if not is_cjk(n[0]) and n not in STOP}
    return _Analysis(tuple(terms), frozenset(denied), frozenset(numbers), frozenset(names), frozenset(all_words))


class Aligner:
    """Aligns sentences with a fixed list of source sentences, in the order of the document.

    Cost: O(terms) for each source sentence. Make one for a piece, not for each sentence.
    """

    def __init__(self, sources: Sequence[str]) -> None:
        self._sources = [_analyse(source) for source in sources]
        counts = Counter(term for source in self._sources for term in set(source.terms))
        total = len(self._sources) + 1
        self._rarity = {term: math.log(1 + total / count) for term, count in counts.items()}
        self._rarity_of_unknown = math.log(1 + total)

    def align(self, sentence: str, candidates: Sequence[tuple[int, ...]] | None = None) -> Alignment:
        """The best supporting source sentences of `sentence` and what speaks against keeping it.

        Args:
            candidates: groups of source indices to try; all single sentences and neighbouring pairs when None.
        """
        analysis = _analyse(sentence)
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
        for group in groups:
            support = self._support(sentence, [term for i in group for term in self._sources[i].terms])
            if support > best[1]:
                best = (group, support)
        return best

    def _weight(self, term: str) -> float:
        return self._rarity.get(term, self._rarity_of_unknown)

    def _support(self, sentence: _Analysis, source: Sequence[str]) -> float:
        places: dict[str, list[int]] = {}
        for at, term in enumerate(source):
            places.setdefault(term, []).append(at)
        single = sum(self._weight(t) for t in sentence.terms if t in places) / sum(map(self._weight, sentence.terms))
        pairs = list(zip(sentence.terms, sentence.terms[1:], strict=False))
        if not pairs or not single:
            return single
        found = total = 0.0
        for left, right in pairs:
            weight = self._weight(left) + self._weight(right)
            total += weight
            if left in places and right in places and places[left][0] < places[right][-1]:
                found += weight
        return (single + found / total) / 2

    def _problem(self, sentence: _Analysis, group: tuple[int, ...], support: float) -> str:
        sources = [self._sources[i] for i in group]
        if not sources:
            return "not in the text"
        if not sentence.numbers <= frozenset().union(*(s.numbers for s in sources)):
            return "a number that is not in its source"
        if not sentence.names <= frozenset().union(*(s.all_words for s in sources)):
            return "a name that is not in its source"
        if support < SUPPORT_MIN:
            return "too little of it is in the text"
        polarity: dict[str, set[bool]] = {}
        for source in sources:
            for at, term in enumerate(source.terms):
                polarity.setdefault(term, set()).add(at in source.denied)
        for at, term in enumerate(sentence.terms):
            if term in polarity and (at in sentence.denied) not in polarity[term]:
                return "denied in one place and not in the other"
        return ""


def same_content(left: str, right: str) -> bool:
    """Whether the shorter of two sentences says little that the other does not."""
    a, b = set(content_terms(left)), set(content_terms(right))
    smaller = min(len(a), len(b))
    return smaller > 0 and len(a & b) >= SAME_CONTENT_MIN * smaller


def centrality(sentences: Sequence[str]) -> list[float]:
    """How much each sentence has in common with the others: LexRank with weighted edges. The scores sum to 1.

    Time and memory are quadratic in the number of sentences; meant for a piece (at most some hundreds).
    """
    if not sentences:
        return []
    bags = [Counter(content_terms(sentence)) for sentence in sentences]
    counts = Counter(term for bag in bags for term in bag)
    total = len(bags)
    vectors = [{t: n * math.log(1 + total / counts[t]) for t, n in bag.items()} for bag in bags]
    norms = [math.sqrt(sum(w * w for w in vector.values())) or 1.0 for vector in vectors]
    edges = [[0.0] * total for _ in bags]
    for i in range(total):
        for j in range(i):
            small, large = (vectors[i], vectors[j]) if len(vectors[i]) < len(vectors[j]) else (vectors[j], vectors[i])
            edges[i][j] = edges[j][i] = sum(w * large.get(t, 0.0) for t, w in small.items()) / (norms[i] * norms[j])
    outward = [sum(row) for row in edges]
    scores = [1 / total] * total
    for _ in range(30):
        loose = sum(score for score, weight in zip(scores, outward, strict=True) if not weight)
        base = 0.15 / total + 0.85 * loose / total
        scores = [
            base + 0.85 * sum(edges[j][i] / outward[j] * scores[j] for j in range(total) if outward[j])
            for i in range(total)
        ]
    return scores


def selection_weights(sentences: Sequence[str]) -> list[float]:
    """Centrality, less for sentences that lean on their neighbours, are scraps, or are too long to be read."""
    weights = []
    for sentence, score in zip(sentences, centrality(sentences), strict=True):
        parts = words(sentence)
        if parts and parts[0] in LEANING:
            score *= 0.5
        if len(parts) < 5 or sentence.rstrip()[-1:] in ":：?？":
            score *= 0.3
        elif len(parts) > 60:
            score *= 0.6
        weights.append(score)
    return weights


def select_central(sentences: Sequence[str], count: int, taken: Sequence[str] = ()) -> list[int]:
    """Indices, ascending, of at most `count` central sentences that repeat neither each other nor `taken`."""
    weights = selection_weights(sentences)
    chosen: list[int] = []
    kept = list(taken)
    for index in sorted(range(len(sentences)), key=lambda i: (-weights[i], i)):
        if len(chosen) >= count:
            break
        if content_terms(sentences[index]) and not any(same_content(sentences[index], other) for other in kept):
            chosen.append(index)
            kept.append(sentences[index])
    return sorted(chosen)
