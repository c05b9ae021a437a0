"""The library: two histories of one stream end everywhere at the same place; unknown facts are kept and passed on."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.effects import Author as Say
from mesh.effects import (
    CompareStored,
    CutStreams,
    Effect,
    Log,
    Persist,
    PushStored,
    RetireFacts,
    SaveFork,
    SaveProof,
    Send,
)
from mesh.facts import Fact, FactRange, Place, Retired, StreamId, parse, parse_retired
from mesh.identity import NodeId, NodeKey
from mesh.journal import Fork, fork_of, places_beside
from mesh.library import Library
from mesh.retention import EVERY_S
from mesh.wire import facts_pb2, mesh_pb2
from tests.mesh.building import BY_ID, KEYS, Author, rng

PUSH_MAX = 3
#: Days after all that the tests' facts say of the time.
WALL_MS = 30 * 86_400_000


class Shelf:
    """A library with a disk that syncs at once, and mailboxes instead of links."""

    def __init__(self, key: NodeKey, incarnation: int = 9) -> None:
        self.key = key
        self.stored: dict[Place, Fact] = {}
        self.retired: list[Retired] = []
        self.forks: dict[StreamId, Fork] = {}
        self.logged: list[str] = []
        self.folds = 0  # how often all was read anew
        self.others: dict[NodeId, Shelf] = {}
        self.sent: deque[tuple[NodeId, mesh_pb2.LinkMessage]] = deque()
        self.now = 0.0
        self.library = Library(key, incarnation, rng())

    def restart(self) -> None:
        self.library = Library(self.key, self.library.writing_as + 1, rng())
        self.library.restore(self.stored.values(), self.retired, self.forks.values())

    def do(self, effects: Iterable[Effect]) -> None:
        library = self.library
        for effect in effects:
            match effect:
                case Send(peer, message) if peer in self.others:
                    self.sent.append((peer, message))
                case Persist(facts, source, retired):
                    self.stored |= {Place(fact.stream_id, fact.sequence): fact for fact in facts}
                    self.retired += retired
                    self.do(library.persisted(facts, source, retired, sorted(self.others)))
                case PushStored(peer, ranges):
                    self.push(peer, ranges)
                case CompareStored(peer, facts):
                    stored = tuple(self.stored[place] for place in places_beside(facts) if place in self.stored)
                    self.do(library.compared(peer, facts, stored))
                case SaveFork(fork):
                    self.forks[fork.stream_id] = fork
                    for place in list(self.stored):
                        if place.stream_id == fork.stream_id and place.sequence >= fork.sequence:
                            del self.stored[place]
                    self._cut_retired(fork)
                    facts = tuple(self.stored.values())
                    others = sorted(self.others)
                    self.folds += 1
                    self.do(library.fork_saved(fork.stream_id, facts, others, others))
                case SaveProof(fork):
                    self.forks[fork.stream_id] = fork
                case CutStreams(ends):
                    for stream_id, end in ends:
                        for place in [place for place in self.stored if place.stream_id == stream_id]:
                            if place.sequence > end.sequence:
                                del self.stored[place]
                    self.do(library.streams_cut([stream_id for stream_id, _ in ends], tuple(self.stored.values())))
                case RetireFacts(ranges):
                    self._retire(ranges)
                case Say(kind, content):
                    self.do(library.author(kind, content, 0)[1])
                case Log(level, text):
                    assert level == "error"
                    self.logged.append(text)
        library.journal.validate()

    def forget(self) -> None:
        """A pass of retention under pressure."""
        retention = self.library.retention
        retention.disk_measured(95, 100)
        retention.tick(self.now, WALL_MS, 0)  # the first after a start only waits
        self.now += EVERY_S
        self.do(retention.tick(self.now, WALL_MS, 0))

    def _retire(self, ranges: Iterable[FactRange]) -> None:
        """As the store does it: a range is joined with those beside it."""
        for gone in ranges:
            first, last, head = gone.first, gone.last, self.stored[Place(gone.stream_id, gone.last)].hash
            for sequence in range(first, last + 1):
                del self.stored[Place(gone.stream_id, sequence)]
            for beside in [one for one in self.retired if one.stream_id == gone.stream_id]:
                if beside.last + 1 == first:
                    first = beside.first
                elif beside.first == last + 1:
                    last, head = beside.last, beside.head
                else:
                    continue
                self.retired.remove(beside)
            self.retired.append(Retired(gone.stream_id, first, last, head))

    def _cut_retired(self, fork: Fork) -> None:
        for gone in [one for one in self.retired if one.stream_id == fork.stream_id and one.last >= fork.sequence]:
            self.retired.remove(gone)
            if gone.first < fork.sequence:
                self.retired.append(Retired(gone.stream_id, gone.first, fork.sequence - 1, fork.one.predecessor))

    def push(self, peer: NodeId, ranges: Iterable[FactRange]) -> None:
        """As the store reads them: a retired range only before the fact after it, and cut to what is wanted."""
        push: list[facts_pb2.SignedFact] = []
        for wanted in ranges:
            sequence = wanted.first
            while sequence <= wanted.last:
                fact = self.stored.get(Place(wanted.stream_id, sequence))
                if fact is None:
                    (gone,) = [r for r in self.retired if r[0] == wanted.stream_id and r.first <= sequence <= r.last]
                    if gone.last >= wanted.last:
                        break
                    push.append(Retired(wanted.stream_id, sequence, gone.last, gone.head).wire())
                    sequence = gone.last + 1
                    fact = self.stored[Place(wanted.stream_id, sequence)]
                push.append(fact.signed)
                sequence += 1
        places = [place for place, signed in enumerate(push) if not signed.HasField("retired")]
        push = push[: places[:PUSH_MAX][-1] + 1] if places else []
        self.sent.append((peer, mesh_pb2.LinkMessage(fact_push=facts_pb2.FactPush(facts=push))))

    def receive(self, peer: NodeId, message: mesh_pb2.LinkMessage) -> None:
        library = self.library
        match message.WhichOneof("message"):
            case "fact_push":
                push = message.fact_push.facts
                retired = [parse_retired(signed.retired) for signed in push if signed.HasField("retired")]
                self.do(library.offered(peer, [parse(s) for s in push if not s.HasField("retired")], retired))
            case "version_vector":
                self.do(library.gossip.vector_received(peer, message.version_vector))
            case "vector_digest":
                self.do(library.gossip.digest_received(peer, message.vector_digest))
            case "fork_proof":
                fork = fork_of(parse(message.fork_proof.one), parse(message.fork_proof.other))
                assert fork is not None
                self.do(library.fork_proven(fork))
            case "fact_receipt":
                library.gossip.note_positions(peer, message.fact_receipt.positions)

    def take(self, facts: Iterable[Fact]) -> None:
        """From an author who is not here."""
        self.do(self.library.offered(NodeId("f" * 32), list(facts), ()))

    def reading(self) -> object:
        items = sorted(item.content.title for item in self.library.knowledge.current())
        return items, self.library.journal.durable, set(self.stored)


def meet(shelves: list[Shelf]) -> None:
    for shelf in shelves:
        shelf.others = {other.key.node_id: other for other in shelves if other is not shelf}


def settle(shelves: list[Shelf], order: random.Random, rounds: int = 12) -> int:
    """Rounds of anti-entropy between all; returns how many messages the last one took."""
    taken = 0
    for _ in range(rounds):
        taken = 0
        for shelf in shelves:
            shelf.do(shelf.library.gossip.compare_with(peer) for peer in sorted(shelf.others))
        while waiting := [shelf for shelf in shelves if shelf.sent]:
            sender = order.choice(waiting)
            peer, message = sender.sent.popleft()
            sender.others[peer].receive(sender.key.node_id, message)
            taken += 1
            assert taken < 3000, "it never ends"
    return taken


def two_histories(shared: int, one: int, other: int) -> tuple[list[Fact], list[Fact]]:
    """Streams that agree on the first `shared` facts."""
    left, right = Author(KEYS[7]), Author(KEYS[7])
    return (
        [left.note(f"same {number}") for number in range(shared)] + [left.note(f"this {n}") for n in range(one)],
        [right.note(f"same {number}") for number in range(shared)] + [right.note(f"that {n}") for n in range(other)],
    )


@settings(max_examples=25)
@given(st.integers(0, 7), st.integers(1, 6), st.integers(1, 6), st.integers(0, 2), st.integers(0, 99))
def test_two_histories_end_everywhere_before_the_place_where_they_part(
    shared: int, one: int, other: int, bystander: int, seed: int
) -> None:
    order = random.Random(seed)
    this, that = two_histories(shared, one, other)
    shelves = [Shelf(key) for key in BY_ID[:3]]
    shelves[0].take(this)
    shelves[1].take(that)
    shelves[2].take([[], this, that][bystander])
    shelves[2].take(Author(KEYS[6]).notes(2))
    meet(shelves)
    last = settle(shelves, order)
    for shelf in shelves:
        assert shelf.library.journal.forks[this[0].stream_id].sequence == shared + 1
        assert shelf.reading()[0] == ["note 0", "note 1"], "nothing of the forked stream"  # type: ignore[index]
        assert len([text for text in shelf.logged if "two histories" in text]) == 1
        assert shelf.reading() == shelves[0].reading()
        assert not shelf.library.gossip.suspects
    assert last == 6, "once settled, digests are all that is sent"


def test_a_fork_survives_a_restart_and_reaches_who_comes_later() -> None:
    this, that = two_histories(2, 3, 3)
    shelves = [Shelf(key) for key in BY_ID[:3]]
    shelves[0].take(this)
    shelves[1].take(that)
    shelves[2].take(this)
    meet(shelves[:2])
    settle(shelves[:2], random.Random(1))
    before = shelves[0].reading()
    shelves[0].restart()
    assert shelves[0].reading() == before
    shelves[0].take(this)
    assert shelves[0].reading() == before, "what is void stays void"
    meet(shelves)
    shelves[0].do(shelves[0].library.proofs_to(shelves[2].key.node_id))
    settle(shelves, random.Random(2))
    assert shelves[2].reading() == before


def test_proofs_go_to_who_pushes_what_is_void() -> None:
    this, that = two_histories(0, 2, 2)
    shelf, other = Shelf(BY_ID[0]), BY_ID[1].node_id
    shelf.take(this)
    fork = fork_of(this[0], that[0])
    assert fork is not None
    shelf.do(shelf.library.fork_proven(fork))
    assert shelf.library.offered(other, that, ()) == [
        Send(other, mesh_pb2.LinkMessage(fork_proof=facts_pb2.ForkProof(one=fork.one.signed, other=fork.other.signed)))
    ]


def test_facts_of_one_place_that_are_the_same_prove_nothing() -> None:
    this, that = two_histories(1, 2, 2)
    assert fork_of(this[0], that[0]) is None
    assert fork_of(this[1], this[2]) is None
    assert fork_of(this[0], that[1]) is None
    assert fork_of(this[0], that[2]) is None
    one, two = fork_of(this[1], that[1]), fork_of(that[1], this[1])
    assert one is not None
    assert one == two


def test_a_fact_that_follows_another_history_proves_a_fork_in_the_place_before_it() -> None:
    this, that = two_histories(1, 2, 2)
    fork = fork_of(that[2], this[1])
    assert fork == fork_of(this[1], that[2])
    assert fork is not None
    assert (fork.sequence, fork.one, fork.other) == (2, this[1], that[2])


def test_a_head_that_is_a_lie_is_looked_into_once() -> None:
    honest, liar = Shelf(BY_ID[0]), Shelf(BY_ID[1])
    facts = Author(KEYS[7]).notes(4)
    for shelf in (honest, liar):
        shelf.take(facts)
    meet([honest, liar])
    stream_id = facts[0].stream_id
    position = facts_pb2.StreamPosition(
        author_id=stream_id.author, incarnation=1, stream=facts_pb2.FACT_STREAM_KNOWLEDGE, sequence=4, head=b"?" * 32
    )
    asked = []
    for _ in range(5):
        vector = facts_pb2.VersionVector(positions=[position], reply_wanted=True)
        honest.do(honest.library.gossip.vector_received(liar.key.node_id, vector))
        asked.append(len(honest.sent))
        settle([honest, liar], random.Random(1), rounds=1)
    assert (asked[0], asked[-1]) == (1, 0)
    assert not honest.library.gossip.suspects
    assert not honest.library.journal.forks


def test_a_node_whose_memory_was_copied_goes_on_in_a_life_of_its_own() -> None:
    """A virtual machine resumed twice: both write as one life, and each has to part from it differently."""
    clones = [Shelf(BY_ID[0], incarnation=5), Shelf(BY_ID[0], incarnation=5)]
    for number, clone in enumerate(clones):
        clone.do(clone.library.author("knowledge_added", facts_pb2.KnowledgeAdded(title=f"{number}"), 0)[1])
    facts = [next(iter(clone.stored.values())) for clone in clones]
    fork = fork_of(*facts)
    assert fork is not None
    for clone in clones:
        clone.do(clone.library.fork_proven(fork))
        clone.do(clone.library.author("knowledge_added", facts_pb2.KnowledgeAdded(title="later"), 0)[1])
    lives = {clone.library.writing_as for clone in clones}
    assert len(lives) == 2
    assert 5 not in lives
    assert [clone.reading()[0] for clone in clones] == [["later"], ["later"]]  # type: ignore[index]


def newer_fact(author: Author) -> Fact:
    """A fact of a kind that this release does not know: a field of FactBody that a later one will have."""
    known = author.note("known")
    body = facts_pb2.FactBody.FromString(known.signed.body)
    body.ClearField("knowledge_added")
    raw = body.SerializeToString() + bytes([0x9A, 0x06, 3]) + b"new"  # field 99, length-delimited
    return parse(facts_pb2.SignedFact(body=raw, signature=author.key.sign(raw)))


def test_a_fact_of_unknown_kind_is_kept_passed_on_unchanged_and_survives_a_restart() -> None:
    fact = newer_fact(Author(KEYS[7]))
    assert (fact.kind, fact.is_signed_by_author()) == ("", True)
    shelves = [Shelf(key) for key in BY_ID[:3]]
    shelves[0].take([fact])
    shelves[0].restart()
    meet(shelves)
    settle(shelves, random.Random(3))
    for shelf in shelves:
        assert [stored.signed for stored in shelf.stored.values()] == [fact.signed]


def retired_range(facts: list[Fact], first: int, last: int) -> Retired:
    return Retired(facts[0].stream_id, first, last, facts[last - 1].hash)


def test_a_retired_range_is_taken_with_the_fact_after_it_and_restored_with_it() -> None:
    facts = Author(KEYS[7]).notes(5)
    shelf = Shelf(BY_ID[0])
    gone = [retired_range(facts, 1, 2), retired_range(facts, 4, 4)]
    shelf.do(shelf.library.offered(BY_ID[1].node_id, [facts[2], facts[4]], gone))
    assert shelf.library.journal.durable[facts[0].stream_id].sequence == 5
    assert shelf.reading()[0] == ["note 2", "note 4"]  # type: ignore[index]
    before = shelf.reading()
    shelf.restart()
    assert shelf.reading() == before


@pytest.mark.parametrize(
    ("gone", "pushed"),
    [
        ((1, 2), []),  # without the fact after it
        ((1, 2), [3]),  # with another
        ((2, 3), [3]),  # not the next
    ],
)
def test_a_retired_range_that_nothing_proves_is_not_taken(gone: tuple[int, int], pushed: list[int]) -> None:
    facts = Author(KEYS[7]).notes(5)
    shelf = Shelf(BY_ID[0])
    shelf.do(shelf.library.offered(BY_ID[1].node_id, [facts[n] for n in pushed], [retired_range(facts, *gone)]))
    assert not shelf.library.journal.staged
    false = Retired(facts[0].stream_id, 1, 2, b"?" * 32)
    shelf.do(shelf.library.offered(BY_ID[1].node_id, [facts[2]], [false]))
    assert not shelf.library.journal.staged


@pytest.mark.parametrize("backup", [0, 2], ids=["lost", "restored backup"])
def test_a_lost_or_restored_store_is_a_new_life_that_gets_its_own_old_facts_back(backup: int) -> None:
    old, other = Shelf(BY_ID[0], incarnation=5), Shelf(BY_ID[1])
    meet([old, other])
    for number in range(4):
        old.do(old.library.author("knowledge_added", facts_pb2.KnowledgeAdded(title=f"before {number}"), 0)[1])
    settle([old, other], random.Random(1))
    new = Shelf(BY_ID[0], incarnation=6)
    new.stored = dict(list(old.stored.items())[:backup])
    new.library.restore(new.stored.values(), (), ())
    meet([new, other])
    # It writes before it has heard of what it wrote: no place is written twice.
    new.do(new.library.author("knowledge_added", facts_pb2.KnowledgeAdded(title="after"), 0)[1])
    settle([new, other], random.Random(1))
    assert new.reading() == other.reading()
    assert new.reading()[0] == ["after", *(f"before {number}" for number in range(4))]  # type: ignore[index]
    assert not new.library.journal.forks
