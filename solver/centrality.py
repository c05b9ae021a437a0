"""Which sentences of a text say most of it: the choice when a model's own words can not be kept.

The idea: a sentence is central when it has content in common with other central ones (LexRank). Four things that
centrality does not see change its weight: what the whole document is about (a piece is central to its document when it
has the document's frequent terms), where it stands (openings of documents and sections tell what follows), what a model
wrote about the text (even where its sentences are not true, its words point at what it read), and whether it can stand
alone (not one that leans on its neighbours, a scrap, or too long to be read).
Not guaranteed: a summary that flows, or that says the most important thing.
Source: Erkan & Radev, "LexRank" (2004), with weighted edges; Carbonell & Goldstein, "The use of MMR" (1998).
"""

import math
from collections import Counter
from collections.abc import Sequence

from solver.alignment import content_terms, same_content
from solver.lexicon import CJK_LEANING, LEANING
from solver.text import words

_DAMPING = 0.85
_ITERATIONS = 30
#: Weight of the opening of a document over a sentence far from it, falling off over this share of its length.
_LEAD_GAIN, _LEAD_SHARE = 2.0, 0.03
#: What a document is about is told from this much of it. Threat: the time that a long one costs in every task.
_TOPIC_CHARS_MAX = 200_000


def centrality(sentences: Sequence[str]) -> list[float]:
    """How much each sentence has in common with the others. The scores sum to 1.

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
    for _ in range(_ITERATIONS):
        loose = sum(score for score, weight in zip(scores, outward, strict=True) if not weight)
        base = (1 - _DAMPING + _DAMPING * loose) / total
        scores = [
            base + _DAMPING * sum(edges[j][i] / outward[j] * scores[j] for j in range(total) if outward[j])
            for i in range(total)
        ]
    return scores


def lead(begin: int, length: int) -> float:
    """The factor of a sentence that begins at code point `begin` of a document of `length`."""
    return 1.0 + _LEAD_GAIN * math.exp(-begin / max(1.0, _LEAD_SHARE * length))


def topic_of(document: str) -> Counter[str]:
    """How often the document has each content term."""
    return Counter(content_terms(document[:_TOPIC_CHARS_MAX]))


def _topicality(sentences: Sequence[str], topic: Counter[str]) -> list[float]:
    """How much of what the document is about is in each sentence: 0.5 to 1.5, relative to the best one."""
    scores = []
    for sentence in sentences:
        terms = set(content_terms(sentence))
        scores.append(sum(math.log(1 + topic[term]) for term in terms) / (len(terms) + 3))
    most = max(scores, default=0.0)
    return [0.5 + score / most if most else 1.0 for score in scores]


def _leans(parts: Sequence[str]) -> bool:
    if not parts:
        return True
    first = parts[1] if parts[0] in ("the", "a", "an") and len(parts) > 1 else parts[0]
    return first in LEANING or "".join(parts[:2]).startswith(CJK_LEANING)


def selection_weights(
    sentences: Sequence[str], places: Sequence[float], topic: Counter[str], pointers: str = ""
) -> list[float]:
    """Centrality, changed as the header of this file says.

    Args:
        places: a factor for where each sentence stands.
        topic: of the whole document.
        pointers: what a model wrote about the text.
    """
    pointed = set(content_terms(pointers))
    about = _topicality(sentences, topic)
    weights = []
    for number, (sentence, score) in enumerate(zip(sentences, centrality(sentences), strict=True)):
        score *= places[number] * about[number]
        parts = words(sentence)
        if terms := set(content_terms(sentence)):
            score *= 1.0 + len(terms & pointed) / len(terms)
        if _leans(parts):
            score *= 0.5
        if len(parts) < 5 or sentence.rstrip()[-1:] in ":：?？":
            score *= 0.3
        elif len(parts) > 60:
            score *= 0.4
        elif len(parts) > 35:
            score *= 0.7
        weights.append(score)
    return weights


def select_central(
    sentences: Sequence[str], weights: Sequence[float], count: int, taken: Sequence[str] = ()
) -> list[int]:
    """Indices, ascending, of at most `count` sentences of most weight that repeat neither each other nor `taken`."""
    chosen: list[int] = []
    kept = list(taken)
    for index in sorted(range(len(sentences)), key=lambda i: (-weights[i], i)):
        if len(chosen) >= count:
            break
        if content_terms(sentences[index]) and not any(same_content(sentences[index], other) for other in kept):
            chosen.append(index)
            kept.append(sentences[index])
    return sorted(chosen)
