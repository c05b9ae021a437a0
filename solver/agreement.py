"""Which of several open answers a panel stands behind, where their words do not make a majority.

Why: free answers are rarely equal letter by letter, so counting them (panel.py) often ends without a majority.
The idea: who answered judges. A judge's score of an answer is its mean log-probability a token, after the question; the
judge's own mean is subtracted, for scales differ between models, and nobody judges its own answer while there are
others, for everybody likes its own. Without judges the answer that shares most words with the others is taken.
Not guaranteed: that the answer is right, or that judges of one model err independently.
Source: the minimum-Bayes-risk choice over samples, Kumar and Byrne (2004); scoring as in self-consistency work.
"""

import math
from collections.abc import Mapping, Sequence

from solver.text import words


def by_judges(authors: Sequence[frozenset[int]], scores: Mapping[int, Sequence[float]]) -> list[float]:
    """A score for each answer, nats a token above the judges' mean; higher is better.

    Args:
        authors: of each answer: the judges that gave it.
        scores: of each judge: one for every answer, mean log-probability a token.
    """
    centred = {judge: _centred(given) for judge, given in scores.items()}
    totals = []
    for answer, own in enumerate(authors):
        others = [given[answer] for judge, given in centred.items() if judge not in own]
        heard = others or [given[answer] for given in centred.values()]
        totals.append(math.fsum(heard) / len(heard) if heard else 0.0)
    return totals


def by_overlap(answers: Sequence[str]) -> list[float]:
    """A score for each answer: the mean share of words that it has in common with each of the others (Jaccard)."""
    bags = [frozenset(words(answer)) for answer in answers]
    scores = []
    for i, bag in enumerate(bags):
        shares = [_jaccard(bag, other) for j, other in enumerate(bags) if j != i]
        scores.append(math.fsum(shares) / len(shares) if shares else 0.0)
    return scores


def best(scores: Sequence[float]) -> int:
    """The first of the highest."""
    return max(range(len(scores)), key=lambda i: (scores[i], -i))


def _centred(scores: Sequence[float]) -> list[float]:
    usable = [score if math.isfinite(score) else -1e3 for score in scores]
    mean = math.fsum(usable) / max(1, len(usable))
    return [score - mean for score in usable]


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    union = one | other
    return len(one & other) / len(union) if union else 0.0
