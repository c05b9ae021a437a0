"""The words of codes can not be mistaken for each other."""

from itertools import combinations

from node.joining.words import WORDS


def distance(one: str, other: str) -> int:
    """Letters to change, add or leave out."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        last, row = row, [i]
        for j, b in enumerate(other, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (a != b)))
    return row[-1]


def test_there_are_as_many_as_a_byte_can_name() -> None:
    assert len(WORDS) == 256
    assert all(word.isascii() and word.isalpha() and word.islower() and 4 <= len(word) <= 8 for word in WORDS)


def test_no_slip_makes_one_word_of_another() -> None:
    assert min(distance(one, other) for one, other in combinations(WORDS, 2)) >= 3
    assert len({word[:4] for word in WORDS}) == len(WORDS)
