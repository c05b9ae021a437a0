"""How a panel's answers become one: grouping and counting.

Why: agents answer independently; what most of them say is taken, and the others are shown, never dropped.
The idea: an answer is reduced to a form in which case, punctuation, articles, width, spacing and number words do not
count; equal forms are one vote. A majority is strictly more than half of the ballots; anything less is "no majority".
Not guaranteed: that different words for one thing are one vote, or that a majority is right. Agents of one model err
together, so the result says when they are (`correlated`).
Source: May (1952) on majority rule; the normalisation follows the SQuAD evaluation script's rules.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from solver.lexicon import NUMBER_WORDS
from solver.text import normalise, words

_ARTICLES = frozenset(("a", "an", "the"))
_COPULAS = frozenset(("is", "are", "was", "were"))
_OPENINGS = re.compile(
    r"^\W*(?:(?:the |my )?(?:final |correct |short )?answer(?: is)?|it is|it's|this is|答案是|答)\s*[:：]?\s+", re.I
)


@dataclass(frozen=True)
class Tally:
    """`groups` holds every group once with its votes, most first, equal ones in alphabetical order."""

    winner: str  # the group with a majority; empty when there is none
    votes_for: int  # of the winner, or of the largest group
    groups: tuple[tuple[str, int], ...]

    @property
    def majority(self) -> bool:
        return bool(self.winner)


def answer_group(answer: str, question: str = "") -> str:
    """The form of an open answer in which equal answers are equal; empty when nothing was answered.

    "The capital of France is Paris." counts as "Paris" when all before the copula is in the question. A question that
    offers alternatives ("or") is left alone, for there the part before the copula is the answer.
    """
    answered = words(_OPENINGS.sub("", answer, count=1)) or words(answer)
    asked = frozenset(words(question))
    copula = next((at for at, word in enumerate(answered) if word in _COPULAS), None)
    if copula and "or" not in asked and all(word in asked | _ARTICLES for word in answered[:copula]):
        rest = answered[copula + 1 :]
        if any(word not in asked for word in rest):
            answered = rest
    kept = [NUMBER_WORDS.get(word, word) for word in answered if word not in _ARTICLES]
    return " ".join(kept or answered)


def option_group(option: str) -> str:
    """The form of a closed answer."""
    return normalise(option) or option.strip()


def best_option(log_probabilities: Sequence[float]) -> int:
    """The ballot of a closed question; the first of equal ones."""
    return max(range(len(log_probabilities)), key=lambda i: (log_probabilities[i], -i))


def tally(groups: Sequence[str]) -> Tally:
    """Count one vote a ballot. An empty group is a ballot that votes for nothing."""
    counts = Counter(group for group in groups if group)
    ranked = tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    if not ranked:
        return Tally("", 0, ())
    winner, votes = ranked[0]
    return Tally(winner if 2 * votes > len(groups) else "", votes, ranked)


def spokesman(answers: Sequence[str]) -> str:
    """The wording that stands for a group: the commonest, then the shortest, then the first in alphabetical order."""
    counts = Counter(answer.strip() for answer in answers)
    return min(counts, key=lambda answer: (-counts[answer], len(answer), answer)) if counts else ""
