"""A forked stream beside retention: every node reads the same, whatever it dropped before it had the proof."""

import random
from collections import defaultdict
from collections.abc import Collection, Sequence

from google.protobuf.message import Message
from hypothesis import example, given
from hypothesis import strategies as st

from mesh import events
from mesh.facts import Fact, StreamId, make
from mesh.gossip import PROOF_EVERY_S
from mesh.journal import Fork, Position, fork_of
from mesh.wire import facts_pb2
from tests.mesh.building import BY_ID, KEYS, Author, B, rng
from tests.mesh.lone import WALL_MS, Lone, to
from tests.mesh.test_ledger import JOBS
from tests.mesh.test_library import Shelf, meet, settle
from tests.mesh.test_retention import finished_job

KEY = KEYS[7]


def reads(shelf: Shelf) -> tuple[list[bytes], dict[str, bytes], dict[str, bytes]]:
    """Items, and which fact says the profile of each node and each skill."""
    library = shelf.library
    return (
        [item.item_id for item in library.knowledge.current()],
        {str(node_id): entry[1] for node_id, entry in library.profiles.latest.items()},
        {key[-1]: entry[1] for key, entry in library.profiles.skills.items()},
    )


def should_read(
    facts: Sequence[Fact], forks: Collection[Fork]
) -> tuple[list[bytes], dict[str, bytes], dict[str, bytes]]:
    """The rule, from facts and proofs alone. In a forked stream the words before the fork count, and of what they may
    take back or replace nothing."""
    ends = {fork.stream_id: fork.sequence for fork in forks}
    words = [fact for fact in facts if fact.sequence < ends.get(fact.stream_id, fact.sequence + 1)]
    taken_back = {
        fact.body.knowledge_retracted.item_id or fact.body.knowledge_superseded.item_id
        for fact in words
        if fact.kind in ("knowledge_retracted", "knowledge_superseded")
    }
    whole = sorted(
        (fact for fact in facts if fact.stream_id not in ends), key=lambda fact: (fact.hybrid_clock, fact.hash)
    )
    return (
        sorted(fact.hash for fact in whole if fact.kind == "knowledge_added" and fact.hash not in taken_back),
        {str(fact.author): fact.hash for fact in whole if fact.kind == "node_profile"},
        {fact.body.skill_observation.task_kind: fact.hash for fact in whole if fact.kind == "skill_observation"},
    )


def fork_of_place(fact: Fact) -> Fork:
    """The proof that the author of `fact` said another thing in its place."""
    stream_id = fact.stream_id
    said: tuple[str, Message] = ("node_profile", facts_pb2.NodeProfile(name="another history"))
    if stream_id.stream == facts_pb2.FACT_STREAM_KNOWLEDGE:
        said = ("knowledge_added", facts_pb2.KnowledgeAdded(title="another history"))
    fork = fork_of(fact, make(KEY, stream_id.incarnation, fact.sequence, fact.predecessor, 1, *said))
    assert fork is not None
    return fork


def retract(author: Author, item: Fact) -> Fact:
    return author.say("knowledge_retracted", facts_pb2.KnowledgeRetracted(item_id=item.hash))


def profile(author: Author, hour: int) -> Fact:
    return author.say("node_profile", facts_pb2.NodeProfile(cores=hour), (hour * 3_600_000) << 16)


def two_that_hold(facts: Sequence[Fact]) -> tuple[Shelf, Shelf]:
    """Both hold the facts; the first has dropped what it may."""
    tidy, other = Shelf(BY_ID[0]), Shelf(BY_ID[1])
    for shelf in (tidy, other):
        shelf.take(facts)
    tidy.forget()
    assert reads(tidy) == reads(other) == should_read(facts, ())
    return tidy, other


def test_what_was_dropped_on_words_of_its_stream_that_are_void_now_is_read_by_nobody() -> None:
    author = Author(KEY)
    items = author.notes(3)
    facts = [*items, retract(author, items[0]), retract(author, items[1]), *author.notes(1)]
    tidy, other = two_that_hold(facts)
    assert len(tidy.stored) == len(other.stored) - 2
    later = Author(KEY, 2).note("the author's next life counts")
    for shelf in (tidy, other):
        shelf.do(shelf.library.fork_proven(fork_of_place(facts[3])))
        shelf.take([later])
        assert reads(shelf)[0] == [later.hash]
        before = reads(shelf)
        shelf.restart()
        assert reads(shelf) == before


def test_an_item_is_not_dropped_on_a_word_of_another_life_and_is_back_without_it() -> None:
    early, late = Author(KEY, 1), Author(KEY, 2)
    items = early.notes(2)
    words = [*late.notes(1), retract(late, items[0])]
    tidy, other = two_that_hold([*items, *words])
    assert [item for item in items if item.hash in reads(tidy)[0]] == items[1:]
    for shelf in (tidy, other):
        shelf.do(shelf.library.fork_proven(fork_of_place(words[1])))
        assert reads(shelf)[0] == sorted(item.hash for item in items)


def test_a_profile_that_one_of_another_life_replaced_is_there_when_that_life_is_void() -> None:
    early, late = Author(KEY, 1), Author(KEY, 2)
    first = [profile(early, 1), profile(early, 2), profile(early, 0)]
    second = [profile(late, 3), profile(late, 4)]
    tidy, other = two_that_hold([*first, *second])
    assert len(tidy.stored) < len(other.stored)
    for shelf in (tidy, other):
        shelf.do(shelf.library.fork_proven(fork_of_place(second[1])))
        assert reads(shelf)[1] == {str(KEY.node_id): first[1].hash}


def test_a_node_whose_stream_of_profiles_is_void_says_its_profile_again() -> None:
    shelf = Shelf(KEY, incarnation=5)
    shelf.do(shelf.library.author("node_profile", facts_pb2.NodeProfile(name="one", cores=4), 0)[1])
    (first,) = shelf.stored.values()
    shelf.do(shelf.library.fork_proven(fork_of_place(first)))
    said = shelf.library.profiles.of(KEY.node_id)
    assert said is not None
    assert said.cores == 4
    assert [fact.stream_id.incarnation for fact in shelf.stored.values()] == [shelf.library.writing_as]
    assert shelf.library.writing_as != 5


def test_a_node_says_its_profile_again_also_where_another_stream_of_its_life_was_void_before() -> None:
    """That one made it write as another life already; the profile still stands in the life before."""
    shelf = Shelf(KEY, incarnation=5)
    shelf.do(shelf.library.author("node_profile", facts_pb2.NodeProfile(name="one", cores=4), 0)[1])
    shelf.do(shelf.library.author("knowledge_added", facts_pb2.KnowledgeAdded(title="two"), 0)[1])
    said, added = sorted(shelf.stored.values(), key=lambda fact: fact.kind, reverse=True)
    for fact in (added, said):
        shelf.do(shelf.library.fork_proven(fork_of_place(fact)))
    again = shelf.library.profiles.of(KEY.node_id)
    assert again is not None
    assert again.cores == 4


KINDS = ["knowledge_added", "knowledge_retracted", "knowledge_superseded", "node_profile", "skill_observation"]
steps = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(1, 2), st.integers(0, 9)), min_size=1, max_size=20)


def written(what: Sequence[tuple[str, int, int]]) -> list[Fact]:
    """What one author says in two lives: (kind, life, number)."""
    lives = {life: Author(KEY, life) for life in (1, 2)}
    facts: list[Fact] = []
    for kind, life, number in what:
        items = [fact.hash for fact in facts if fact.kind == "knowledge_added"]
        item_id = items[number % len(items)] if items else b"?"
        contents: dict[str, Message] = {
            "knowledge_added": facts_pb2.KnowledgeAdded(title=str(number)),
            "knowledge_retracted": facts_pb2.KnowledgeRetracted(item_id=item_id),
            "knowledge_superseded": facts_pb2.KnowledgeSuperseded(item_id=item_id),
            "node_profile": facts_pb2.NodeProfile(cores=number),
            "skill_observation": facts_pb2.SkillObservation(task_kind=str(number % 2), trials=number),
        }
        facts.append(lives[life].say(kind, contents[kind], (number * 3_600_000) << 16))
    return facts


@example([("knowledge_added", 1, 0), ("knowledge_retracted", 1, 0), ("node_profile", 1, 1)], [1], 1)
@given(steps, st.lists(st.integers(0, 19), max_size=3), st.integers(0, 2**32))
def test_no_order_of_facts_proofs_and_retention_changes_what_is_read(
    what: list[tuple[str, int, int]], forked: list[int], seed: int
) -> None:
    facts = written(what)
    proofs = [fork_of_place(facts[place % len(facts)]) for place in forked]
    order = random.Random(seed)
    for key in BY_ID[:3]:
        shelf = Shelf(key)
        waiting: dict[StreamId, list[Fact]] = defaultdict(list)
        for fact in facts:
            waiting[fact.stream_id].append(fact)
        todo: list[object] = [*(stream_id for stream_id in waiting for _ in waiting[stream_id]), *proofs]
        todo += ["forget", "forget", "restart"]
        order.shuffle(todo)
        for step in todo:
            if isinstance(step, Fork):
                shelf.do(shelf.library.fork_proven(step))
            elif isinstance(step, StreamId):
                shelf.take([waiting[step].pop(0)])
            elif step == "forget":
                shelf.forget()
            else:
                shelf.restart()
        assert reads(shelf) == should_read(facts, shelf.library.journal.forks.values())


def test_a_job_whose_end_turns_out_to_be_void_reads_the_same_again_when_it_is_closed_anew() -> None:
    """Its details were dropped on the word of another author: until then it is open for who holds them, and unknown
    to who does not (docs/guarantees.md)."""
    leader, other_leader, worker = Author(KEY), Author(KEYS[0]), Author(KEYS[1])
    contents = [(fact.kind, getattr(fact.body, fact.kind)) for fact in finished_job(Author(), JOBS[0], 0)]
    details = [worker.say(*content) for content in contents[:-1]]
    last = worker.say("job_assigned", facts_pb2.JobAssigned(job_id=JOBS[1]))
    end = leader.say(*contents[-1])
    tidy, other = Shelf(BY_ID[0]), Shelf(BY_ID[1])
    for shelf in (tidy, other):
        shelf.take([*details, last, end])
    tidy.forget()
    assert len(tidy.stored) == len(other.stored) - len(details)
    fork = fork_of(end, make(KEY, 1, 1, b"", 1, "job_cancelled", facts_pb2.JobCancelled(job_id=JOBS[0])))
    assert fork is not None
    for shelf in (tidy, other):
        shelf.do(shelf.library.fork_proven(fork))
    assert [JOBS[0] in shelf.library.ledger.jobs for shelf in (tidy, other)] == [False, True]
    assert not other.library.ledger.jobs[JOBS[0]].closed
    again = other_leader.say(*contents[-1])
    for shelf in (tidy, other):
        shelf.take([again])
        assert shelf.library.ledger.jobs[JOBS[0]].closed
    assert tidy.library.ledger.fingerprint() == other.library.ledger.fingerprint()


def test_who_missed_a_proof_hears_it_again_though_the_streams_are_the_same() -> None:
    """A full queue or a broken link took the message."""
    facts = Author(KEY).notes(3)
    knows, missed = Shelf(BY_ID[0]), Shelf(BY_ID[1])
    knows.take(facts)
    missed.take(facts[:2])
    knows.do(knows.library.fork_proven(fork_of_place(facts[2])))
    meet([knows, missed])
    settle([knows, missed], rng())
    assert knows.library.journal.durable == missed.library.journal.durable
    assert reads(knows) != reads(missed)
    for number in range(3):
        knows.do(knows.library.gossip.tick(number * PROOF_EVERY_S, sorted(knows.others)))
    settle([knows, missed], rng())
    assert reads(knows) == reads(missed) == should_read(facts, knows.library.journal.forks.values())


@given(st.integers(1, 6), st.integers(1, 3), st.integers(0, 99))
def test_two_histories_are_found_out_though_one_has_retired_the_places_that_differ(
    lie: int, gone: int, seed: int
) -> None:
    """The fact after them names what they held: its author can not have followed the other history."""
    author = Author(KEY)
    items = author.notes(gone)
    true = [*items, *(retract(author, item) for item in items)]
    tidy, lied_to = Shelf(BY_ID[0]), Shelf(BY_ID[1])
    tidy.take(true)
    tidy.forget()
    assert [(range_.first, range_.last) for range_ in tidy.retired] == [(1, gone)]
    other_author = Author(KEY)
    lied_to.take([other_author.note(f"another history {number}") for number in range(gone - 1 + lie)])
    meet([tidy, lied_to])
    settle([tidy, lied_to], random.Random(seed))
    assert list(tidy.library.journal.forks) == [true[0].stream_id]
    assert tidy.library.journal.forks == lied_to.library.journal.forks
    assert tidy.library.journal.durable == lied_to.library.journal.durable
    assert reads(tidy) == reads(lied_to) == ([], {}, {})
    assert not tidy.library.gossip.suspects
    assert not lied_to.library.gossip.suspects


def invented(place: int) -> Fork:
    """A proof of a place that no fact leads to, in a life that its author never had."""
    note = facts_pb2.KnowledgeAdded(title="one history")
    return fork_of_place(make(KEY, 999, place, b"no such fact", 1, "knowledge_added", note))


def test_proofs_of_an_invented_life_make_nothing_be_read_anew() -> None:
    """Its author signs as many as it likes, each of a place before the last one's."""
    shelf, other = Shelf(BY_ID[0]), Shelf(BY_ID[1])
    shelf.take(Author(KEY).notes(3))
    meet([shelf, other])
    shelf.do(shelf.library.fork_proven(invented(10**6)))
    before, folds = reads(shelf), shelf.folds
    shelf.sent.clear()
    for number in range(1, 21):
        shelf.do(shelf.library.fork_proven(invented(10**6 - number)))
    assert shelf.folds == folds
    assert not shelf.sent, "nobody who reads the same needs to hear of it at once"
    shelf.restart()
    last = invented(10**6 - 20)
    assert shelf.library.journal.forks == {last.stream_id: last}
    assert reads(shelf) == before


def test_a_proof_beyond_what_is_held_changes_nothing_and_one_within_cuts() -> None:
    author = Author(KEY)
    facts, beyond = author.notes(3), author.notes(7)[-1]
    lie = make(KEY, 1, 4, b"no such fact", 1, "knowledge_added", facts_pb2.KnowledgeAdded(title="one history"))
    shelf = Shelf(BY_ID[0])
    shelf.take(facts)
    shelf.do(shelf.library.fork_proven(fork_of_place(beyond)))
    before = shelf.folds, reads(shelf), shelf.reading()
    shelf.do(shelf.library.fork_proven(fork_of_place(lie)))
    assert (shelf.folds, reads(shelf), shelf.reading()) == before
    stream_id = lie.stream_id
    assert shelf.library.journal.durable[stream_id] == Position(3, facts[2].hash)
    shelf.do(shelf.library.fork_proven(fork_of_place(facts[2])))
    assert shelf.folds == before[0] + 1
    assert shelf.library.journal.durable[stream_id] == Position(2, facts[1].hash)
    assert list(shelf.stored.values()) == facts[:2]
    assert reads(shelf) == should_read(facts, shelf.forks.values())


def test_who_holds_beyond_a_proof_that_was_not_told_on_hears_it_when_streams_are_compared() -> None:
    facts = Author(KEY).notes(5)
    few, more = Shelf(BY_ID[0]), Shelf(BY_ID[1])
    few.take(facts[:2])
    more.take(facts[:4])
    for shelf in (few, more):
        shelf.do(shelf.library.fork_proven(fork_of_place(facts[4])))
    few.do(few.library.fork_proven(fork_of_place(facts[3])))
    meet([few, more])
    settle([few, more], rng())
    assert [shelf.library.journal.durable[facts[0].stream_id] for shelf in (few, more)] == [
        Position(3, facts[2].hash)
    ] * 2
    assert few.reading() == more.reading()


def test_a_proof_goes_to_who_is_suspect_too() -> None:
    """It does not hear of it when it is trusted again: its link does not open anew."""
    node = Lone(peers=1)
    facts = Author(KEY).notes(1)
    while node.replica.membership.live_peers():
        node.now += 0.1
        assert node.now < 60.0
        node.do(events.Ticked(WALL_MS))
    assert node.replica.membership.linked_peers() == [B]
    fork = fork_of_place(facts[0])
    node.do(events.ForkProven(B, fork.one, fork.other))
    assert to(node.do(events.ForkSaved(fork.stream_id, ())), "fork_proof") == [B]
