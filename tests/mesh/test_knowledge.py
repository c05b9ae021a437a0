"""Knowledge: the same facts read the same in any order; search finds Chinese too; authors rule their own."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.facts import Fact
from mesh.knowledge import Knowledge, words_of
from mesh.wire import common_pb2, facts_pb2
from tests.mesh.building import KEYS, Author


def folded(facts: list[Fact]) -> Knowledge:
    knowledge = Knowledge()
    for fact in facts:
        assert knowledge.apply(fact)
    return knowledge


def retract(author: Author, item: Fact) -> Fact:
    return author.say("knowledge_retracted", facts_pb2.KnowledgeRetracted(item_id=item.hash))


def supersede(author: Author, item: Fact) -> Fact:
    return author.say("knowledge_superseded", facts_pb2.KnowledgeSuperseded(item_id=item.hash))


def titles(knowledge: Knowledge, query: str, limit: int = 10) -> list[str]:
    return [item.content.title for _, item in knowledge.search(query, limit)]


_steps = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["add", "retract", "supersede"]), st.integers(0, 9)), max_size=20
)


@given(_steps, st.randoms(use_true_random=False))
def test_any_order_and_any_repetition_reads_the_same(
    steps: list[tuple[int, str, int]], shuffler: random.Random
) -> None:
    authors = [Author(KEYS[number]) for number in range(3)]
    facts: list[Fact] = []
    added: list[Fact] = []
    gone: set[bytes] = set()
    for who, what, which in steps:
        if what == "add":
            added.append(authors[who].note(f"note {which}", "the same words"))
            facts.append(added[-1])
        elif added:
            item = added[which % len(added)]
            facts.append((retract if what == "retract" else supersede)(authors[who], item))
            if item.author == authors[who].key.node_id:
                gone.add(item.hash)
    expected = sorted(fact.hash for fact in added if fact.hash not in gone)
    hits = folded(facts).search("words", 100)
    for _ in range(3):
        again = facts + shuffler.choices(facts, k=len(facts)) if facts else []
        shuffler.shuffle(again)
        knowledge = folded(again)
        assert [item.item_id for item in knowledge.current()] == expected
        assert knowledge.search("words", 100) == hits


def test_only_the_author_retracts_and_supersedes() -> None:
    mine, other = Author(KEYS[0]), Author(KEYS[1])
    item = mine.note("a claim")
    assert folded([item, retract(other, item), supersede(other, item)]).current()
    assert not folded([item, retract(mine, item)]).current()
    assert not folded([item, supersede(mine, item)]).current()


def test_the_author_is_a_node_not_one_life_of_it() -> None:
    item = Author(KEYS[0], incarnation=1).note("a claim")
    assert not folded([item, retract(Author(KEYS[0], incarnation=2), item)]).current()


LIBRARY = [
    ("Bees", "Honey bees dance to tell where flowers are.", ["insects"]),
    ("Bridges", "A suspension bridge hangs from cables. Cables carry tension.", ["engineering"]),
    ("Tea", "Green tea is not fermented.", []),
    ("长城", "长城是中国古代的防御工程，全长两万多公里。", ["历史"]),
    ("茶", "绿茶没有经过发酵。", []),
    ("東京", "東京タワーは高い。", []),
]


@pytest.fixture(scope="module")
def library() -> Knowledge:
    author = Author()
    return folded([author.note(title, text, tags) for title, text, tags in LIBRARY])


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("honey", ["Bees"]),
        ("HONEY BEES", ["Bees"]),
        ("cables", ["Bridges"]),
        ("insects", ["Bees"]),
        ("长城有多长", ["长城"]),
        ("防御", ["长城"]),
        ("绿茶", ["茶"]),
        ("茶", ["茶"]),
        ("タワー", ["東京"]),
        ("ﾀﾜｰ", ["東京"]),  # half-width
        ("zebra", []),
        ("斑马", []),
        ("", []),
        ("!?。", []),
    ],
)
def test_search_finds(library: Knowledge, query: str, expected: list[str]) -> None:
    assert titles(library, query) == expected


def test_search_ranks_rare_and_frequent_words_first_and_keeps_the_limit(library: Knowledge) -> None:
    assert titles(library, "is tea a bridge of cables")[0] == "Bridges"
    assert len(titles(library, "a is the", 1)) <= 1
    scores = [score for score, _ in library.search("tea is green a bees", 10)]
    assert scores == sorted(scores, reverse=True)
    assert all(score > 0 for score in scores)


def test_what_was_retracted_is_not_found() -> None:
    author = Author()
    item = author.note("Bees", "dance")
    assert titles(folded([item, retract(author, item)]), "bees") == []


def test_an_item_whose_text_is_a_blob_is_found_by_title_and_tag() -> None:
    added = facts_pb2.KnowledgeAdded(title="Manual", tags=["pump"], blob=common_pb2.BlobRef(sha256=b"x" * 32))
    knowledge = folded([Author().say("knowledge_added", added)])
    assert titles(knowledge, "manual") == titles(knowledge, "pump") == ["Manual"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello, World-2!", ["hello", "world", "2"]),
        ("Straße", ["strasse"]),
        ("中国长城", ["中国", "国长", "长城"]),
        ("茶", ["茶"]),
        ("用gRPC通信", ["用", "grpc", "通信"]),
        ("", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words


@given(st.text(max_size=60))
def test_words_of_any_text_have_no_spaces_and_repeat(text: str) -> None:
    words = words_of(text)
    assert all(word and not word.isspace() for word in words)
    assert words == words_of(text)
