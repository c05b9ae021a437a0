"""What the document says is kept, what it does not say is dropped."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solver.alignment import SUPPORT_MIN, Aligner, content_terms, same_content, stem

PORTO = [
    "The city of Porto opened its new tram line on Monday after four years of construction.",
    "The line is 11 kilometres long and connects the university hospital with the old harbour.",
    "It cost 212 million euros, 30 million more than planned, because workers found Roman walls in 2023.",
    "Mayor Helena Duarte said the line will carry 45,000 passengers a day and remove 9,000 cars from the centre.",
    "Tickets cost 1.40 euros and are free for students until the end of the year.",
    "Shop owners complained that sales fell by a third and the city has not yet paid the compensation it promised.",
    "The transport company does not expect to make a profit before 2031.",
]
VILLAGE = [
    "第一年，来看书的人很少。",
    "周老师没有放弃，她每个周末都到村民家里讲故事。",
    "丢失的书从每年九十本减少到十一本。",
    "农民开始来查果树病虫害的资料，老人来学习使用手机。",
]


@pytest.mark.parametrize("number", range(len(PORTO)))
def test_every_source_sentence_supports_itself_alone(number: int) -> None:
    match = Aligner(PORTO).align(PORTO[number])
    assert match.problem == ""
    assert match.sources == (number,)
    assert match.support == 1.0


@pytest.mark.parametrize(
    ("sentence", "sources"),
    [
        ("Porto opened its new tram line on Monday.", (0,)),
        ("The line connects the university hospital with the old harbour.", (1,)),
        ("The tram line connects the university hospital with the old harbour.", (0, 1)),
        ("Porto opened its new tram line on Monday, which connects the university hospital with the harbour.", (0, 1)),
        ("Tickets are free for students until the end of the year.", (4,)),
        ("The company does not expect a profit before 2031.", (6,)),
    ],
)  # fmt: skip
def test_what_is_said_is_kept_with_its_sources(sentence: str, sources: tuple[int, ...]) -> None:
    match = Aligner(PORTO).align(sentence)
    assert match.problem == ""
    assert match.sources == sources
    assert match.support >= SUPPORT_MIN


@pytest.mark.parametrize(
    ("sentence", "problem"),
    [
        ("The line will carry 35,000 passengers a day.", "number"),
        ("The line connects the hospital of Lisbon with the old harbour.", "name"),
        ("KATHO: Tickets are free for students until the end of the year.", "opening"),  # as a small model labelled it
        ("Lisbon opened its new tram line on Monday.", "opening"),
        ("The transport company expects to make a profit before 2031.", "denied"),
        ("The city has paid the compensation it promised.", "denied"),
        ("The city has not opened its new tram line.", "denied"),
        ("The line will carry eleven students free until the end of the year.", "number"),
        ("The line removes walls and costs sales.", "too little"),
        ("The document describes a modern line of thought.", "too little"),
        ("Bananas grow quickly.", "not in the text"),
        ("", "nothing"),
        ("…", "nothing"),
    ],
)
def test_what_is_not_said_is_rejected(sentence: str, problem: str) -> None:
    assert problem in Aligner(PORTO).align(sentence).problem


def test_true_words_joined_to_a_false_statement_are_rejected() -> None:
    """All words are in the text, but far apart: the commonest error of small models."""
    match = Aligner(PORTO).align("The compensation will be paid to the mayor until the end of the year.")
    assert match.problem
    assert match.support < SUPPORT_MIN


WATER = [
    "Until two years ago the valley took all its water from a single spring above the village.",
    "The spring contains more iron, so a small treatment house with two sand filters was added.",
    "Third, the old spring house needs a new roof.",
    "The engineers advise keeping the spring in use.",
]


@pytest.mark.parametrize(
    "sentence",
    [
        "The valley took all its water from a single spring, so a treatment house with two sand filters was added.",
        "A new spring is needed to keep the spring in use.",
        "The house needs a new roof because the engineers advise keeping the spring in use.",
    ],
)
def test_two_statements_are_not_joined_to_a_third(sentence: str) -> None:
    """All three were, or could have been, written by a small model: every word of them is in the text."""
    assert Aligner(WATER).align(sentence).problem


def test_two_neighbours_may_be_said_one_after_the_other() -> None:
    match = Aligner(WATER).align("The house needs a new roof, and the engineers advise keeping the spring in use.")
    assert (match.sources, match.problem) == ((2, 3), "")


def test_chinese_is_aligned_by_pairs_of_characters() -> None:
    aligner = Aligner(VILLAGE)
    assert aligner.align("农民来查果树病虫害的资料。").sources == (3,)
    assert not aligner.align("农民开始来查果树病虫害的资料。").problem
    assert aligner.align("丢失的书从每年九十本减少到二十本。").problem
    assert aligner.align("周老师放弃了。").problem
    assert aligner.align("The article is about technology.").problem


def test_only_the_candidates_given_are_tried() -> None:
    aligner = Aligner(PORTO)
    assert aligner.align(PORTO[2], [(0,), (1,)]).problem
    assert aligner.align(PORTO[2], [(2,)]).sources == (2,)


@given(st.text(max_size=100), st.lists(st.text(max_size=60), max_size=5))
def test_no_text_raises_and_support_is_a_share(sentence: str, sources: list[str]) -> None:
    match = Aligner(sources).align(sentence)
    assert 0.0 <= match.support <= 1.0 + 1e-9
    assert all(0 <= i < len(sources) for i in match.sources)
    assert match.sources or match.problem


@given(st.lists(st.text(max_size=60), min_size=1, max_size=5))
def test_a_source_is_never_rejected_for_what_it_says_itself(sources: list[str]) -> None:
    aligner = Aligner(sources)
    for source in sources:
        match = aligner.align(source)
        if content_terms(source):
            assert match.support >= 0.5
            assert match.problem in ("", "too little of it is in the text") or "denied" in match.problem


def test_terms_and_stems() -> None:
    assert stem("opened") == stem("opens") == stem("opening")
    assert stem("cities") == "city"
    assert stem("class") == "class"
    assert content_terms("The three cats were not here") == ("3", "cat")
    assert content_terms("山村图书") == ("山村", "村图", "图书")


def test_same_content() -> None:
    assert same_content(PORTO[0], "The city of Porto opened its new tram line.")
    assert not same_content(PORTO[0], PORTO[4])
    assert not same_content("", "")


def test_what_was_looked_at_costs_little_memory() -> None:
    """A node looks at a million sentences in its life, and none is worth more than its next use."""
    tracemalloc.start()
    try:
        for number in range(6_000):
            content_terms(
                f"House {number} of lane {number % 7} keeps {number * 3} lamps, {number + 9} doors and one gate."
            )
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 6 << 20
