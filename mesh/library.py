"""What a node holds and what it reads in it: the journal, its folds, and what becomes of facts that arrive.

Idea: every fact goes one way, whoever wrote it:

    author or push ──▶ journal (staged) ──▶ Persist ──▶ Persisted ──▶ journal (durable) ──▶ folds ──▶ push, receipt

The folds are commutative, so they may also be made anew from all that is stored: that is how facts leave them that a
proven fork or a denial made void (rare; everything else that leaves changes no reading, see retention.py).

Denials are heeded before anything that came with them, and their fold is never made anew: who is denied stays so while
this node runs. Where a fork takes the facts that said so, a few nodes say them again.

Does not: know members or time; replica.py passes in who is live and what time it is.
"""

import hashlib
from collections.abc import Container, Iterable, Mapping, Sequence

from google.protobuf.message import Message

from mesh.denials import DenialError, name_of
from mesh.effects import (
    Author,
    CompareStored,
    CutStreams,
    Effect,
    FactsApplied,
    Log,
    Persist,
    SaveFork,
    SaveProof,
    Send,
)
from mesh.facts import STREAM_OF_KIND, Fact, Place, Retired, StreamId, make
from mesh.gossip import COPIES, PUSH_PEERS, Gossip, Rng
from mesh.identity import NodeId, NodeKey
from mesh.journal import Fork, Journal, Position, Verdict, fork_of, in_stream_order, places_beside, wire_position
from mesh.knowledge import Knowledge
from mesh.ledger import Ledger
from mesh.profiles import Profiles
from mesh.rendezvous import holders
from mesh.retention import Retention
from mesh.wire import facts_pb2, mesh_pb2

#: Against a clock from far ahead, which would drag everybody's along, in the end out of 64 bits: one that is further
#: ahead of our wall clock than this is not followed. It orders nothing, so nothing is lost.
CLOCK_AHEAD_MAX_MS = 86_400_000
#: Peers that a node passes a denial on to as soon as it has it: with the author's push to all, 1,000 nodes are reached.
FORWARD_PEERS = 8
#: Kinds of facts that retention drops on another word of the same stream.
MAY_BE_REPLACED = frozenset({"knowledge_added", "node_profile", "skill_observation"})


class Library:
    """Args: `incarnation` is random at every start."""

    def __init__(self, key: NodeKey, incarnation: int, rng: Rng) -> None:
        self.key = key
        self.me = key.node_id
        #: The life that this node's facts are written in; a new one where its own stream turns out to be forked.
        self.writing_as = incarnation
        self.journal = Journal()
        self.denials = self.journal.denials
        self.ledger = Ledger()
        self.knowledge = Knowledge()
        self.profiles = Profiles()
        self.gossip = Gossip(self.journal, rng)
        self.retention = Retention(self.journal, self.ledger, self.knowledge, self.profiles)
        self.own_hybrid_clock = 0
        self.seen_hybrid_clock = 0
        self._cuts_being_saved = 0
        self._folded_meanwhile: list[Fact] = []
        self._denials_read: list[Fact] = []
        self._cuts_due: list[Effect] = []

    def restore(self, facts: Iterable[Fact], retired: Iterable[Retired], forks: Iterable[Fork]) -> None:
        """Take over what the store holds, at start: facts one by one, so that the store may read them one by one.

        What denials make void goes in the end: a crash may have come between a denial and the cut (`tick`). Raises
        `ValueError` where the store has a hole.
        """
        retired = list(retired)
        for fact in self.journal.restore(facts, retired, forks):
            self.fold(fact)
            if fact.kind == "deny":
                self._denials_read.append(fact)
        self._cuts_due = self._heed(self._denials_read)
        self._denials_read = []
        self.journal.restore_ends(retired)

    def tick(self) -> list[Effect]:
        """What was found to be void at start is deleted now."""
        cuts, self._cuts_due = self._cuts_due, []
        return cuts

    # Facts of this node

    def author(self, kind: str, content: Message, wall_clock_ms: int) -> tuple[Fact, list[Effect]]:
        stream_id = StreamId(self.me, self.writing_as, STREAM_OF_KIND[kind])
        sequence, predecessor = self.journal.next_of(stream_id)
        fact = make(self.key, self.writing_as, sequence, predecessor, self._clock(wall_clock_ms), kind, content)
        verdict = self.journal.offer(fact)
        assert verdict is Verdict.STAGED, "an own fact is the next of its stream"
        return fact, [Persist((fact,), None)]

    def _clock(self, wall_clock_ms: int) -> int:
        """Hybrid logical clock (Kulkarni et al., 2014): never behind what was seen, close to wall time."""
        seen = self.seen_hybrid_clock
        if seen >= (wall_clock_ms + CLOCK_AHEAD_MAX_MS) << 16:
            seen = 0
        self.own_hybrid_clock = max(self.own_hybrid_clock + 1, seen + 1, wall_clock_ms << 16)
        return self.own_hybrid_clock

    # Facts of others

    def offered(self, peer: NodeId, facts: Sequence[Fact], retired: Sequence[Retired]) -> list[Effect]:
        effects: list[Effect] = []
        staged: list[Fact] = []
        staged_retired: list[Retired] = []
        doubted: list[Fact] = []
        touched: dict[StreamId, None] = {}
        void: dict[StreamId, None] = {}
        gap_before_denial = False
        items = in_stream_order(facts, retired)
        for index, item in enumerate(items):
            if isinstance(item, Retired):
                after = items[index + 1] if index + 1 < len(items) else None
                if self.journal.offer_retired(item, after if isinstance(after, Fact) else None) is Verdict.STAGED:
                    staged_retired.append(item)
                continue
            match self.journal.offer(item):
                case Verdict.STAGED:
                    staged.append(item)
                case Verdict.DUPLICATE:
                    touched[item.stream_id] = None
                    if (peer, item.stream_id) in self.gossip.suspects:
                        doubted.append(item)
                case Verdict.FORK:
                    doubted.append(item)
                    self.gossip.suspect(peer, item.stream_id, _before(item))
                case Verdict.VOID:
                    void[item.stream_id] = None
                case Verdict.GAP:
                    gap_before_denial = gap_before_denial or item.kind == "deny"
        if staged:
            effects.append(Persist(tuple(staged), peer, tuple(staged_retired)))
        if touched:
            effects.append(self.receipt(peer, touched))
        if doubted:
            effects.append(CompareStored(peer, tuple(doubted)))
        if gap_before_denial:
            effects.append(self.gossip.compare_with(peer))  # a denial does not wait for the next round
        return effects + self.gossip.proofs_to(peer, (stream for stream in void if stream in self.journal.forks))

    def persisted(
        self,
        facts: Sequence[Fact],
        source: NodeId | None,
        retired: Sequence[Retired],
        live_peers: Sequence[NodeId],
        linked_peers: Sequence[NodeId] | None = None,
    ) -> list[Effect]:
        """`linked_peers`: beside the live ones those that are suspect: they hear of a denial too."""
        linked = live_peers if linked_peers is None else linked_peers
        cuts = self._heed([fact for fact in facts if fact.kind == "deny"])
        self.journal.persisted(facts, retired)
        counting = [fact for fact in facts if not self.journal.is_void(fact.stream_id, fact.sequence)]
        for fact in counting:
            self.fold(fact)
        if self._cuts_being_saved:
            self._folded_meanwhile += counting
        effects: list[Effect] = [*cuts, FactsApplied(tuple(counting))]
        denials = [fact for fact in counting if fact.kind == "deny"]
        if source is not None:
            effects.append(self.receipt(source, {fact.stream_id: None for fact in counting}))
            effects += self.gossip.stored(source, facts)
            if denials:
                others = [peer for peer in linked if peer != source]
                effects += _push(denials, holders(denials[0].hash + self.me.encode(), others, FORWARD_PEERS))
        elif denials:
            effects += _push(counting, linked)
        elif counting:
            effects += _push(counting, holders(facts[0].hash, live_peers, PUSH_PEERS))
        return effects

    def receipt(self, peer: NodeId, streams: Iterable[StreamId]) -> Send:
        positions = [
            wire_position(stream_id, self.journal.durable[stream_id])
            for stream_id in streams
            if stream_id in self.journal.durable
        ]
        return Send(peer, mesh_pb2.LinkMessage(fact_receipt=facts_pb2.FactReceipt(positions=positions)))

    def fold(self, fact: Fact) -> None:
        clock = fact.hybrid_clock
        if fact.stream_id.author == self.me:
            if clock > self.own_hybrid_clock:
                self.own_hybrid_clock = clock
        elif clock > self.seen_hybrid_clock:
            self.seen_hybrid_clock = clock
        if is_read(fact, self.journal.forks):
            _ = self.ledger.apply(fact) or self.knowledge.apply(fact) or self.profiles.apply(fact)

    # Two histories of one stream

    def compared(self, peer: NodeId, offered: Sequence[Fact], stored: Sequence[Fact]) -> list[Effect]:
        """What `peer` pushed of suspected streams, beside what is stored in and beside the same places."""
        ours = {Place(fact.stream_id, fact.sequence): fact for fact in stored}
        equal: dict[StreamId, Fact] = {}
        effects: list[Effect] = []
        for fact in offered:
            beside = (ours.get(place) for place in places_beside([fact]))  # the earliest fork first
            fork = next((fork for mine in beside if mine is not None and (fork := fork_of(mine, fact))), None)
            if fork is not None:
                effects += self.fork_proven(fork)
            elif fact.sequence <= self.journal.durable.get(fact.stream_id, Position()).sequence:
                equal[fact.stream_id] = fact  # or retired here, and then beyond comparing
        for stream_id, fact in equal.items():
            if not self.journal.is_void(stream_id, fact.sequence):
                effects += self.gossip.found_equal(peer, fact)
        return effects

    def fork_proven(self, fork: Fork) -> list[Effect]:
        own_end = self.journal.next_of(fork.stream_id)[1]
        known = fork.stream_id in self.journal.forks
        cuts = not self.journal.lacks(fork.one)
        if not self.journal.void(fork):
            return []
        self.gossip.fork_proven(fork.stream_id)
        effects: list[Effect] = []
        if (fork.stream_id.author, fork.stream_id.incarnation) == (self.me, self.writing_as):
            # Two machines run with one memory: they part here, for each had written something else.
            seed = self.writing_as.to_bytes(8, "big") + own_end
            self.writing_as = int.from_bytes(hashlib.sha256(seed).digest()[:8], "big")
        if fork.stream_id.author == self.me and not known:
            effects += self._profile_said_again(fork.stream_id)
        if known and not cuts:
            # One author can sign any number of these. Who holds beyond it is told when streams are compared.
            return [*effects, SaveProof(fork)]
        self._cuts_being_saved += 1
        effects.append(SaveFork(fork))
        if not known:
            text = (
                f"{fork.stream_id.author} wrote two histories (a copied machine?): neither counts from where they part"
            )
            effects.append(Log("error", text))
        return effects

    def fork_saved(
        self,
        stream_id: StreamId,
        facts: Sequence[Fact],
        live_peers: Sequence[NodeId],
        linked_peers: Sequence[NodeId],
    ) -> list[Effect]:
        """Read everything anew, without what is void, and spread the proof. `linked_peers`: as for `persisted`."""
        fork = self.journal.forks[stream_id]
        self._fold_anew(facts, {stream_id: fork.sequence - 1})
        effects: list[Effect] = [FactsApplied(())]
        for fact in facts:
            if (fact.stream_id, fact.sequence) == (stream_id, fork.sequence - 1):
                earlier = fork_of(fact, fork.one) or fork_of(fact, fork.other)
                if earlier is not None:  # the histories part before: what is held is not what the proof follows
                    return effects + self.fork_proven(earlier)
        for peer in linked_peers:
            effects += self.gossip.proofs_to(peer, [stream_id])
        if stream_id.stream == facts_pb2.FACT_STREAM_TRUST:
            effects += self._said_again(facts, live_peers)
        return effects

    def _profile_said_again(self, forked: StreamId) -> list[Effect]:
        """This node's profile, which it said in the stream that does not count any more."""
        own = self.profiles.of(self.me)
        return [Author("node_profile", own)] if own and forked.stream == facts_pb2.FACT_STREAM_PROFILE else []

    def _fold_anew(self, facts: Sequence[Fact], ends: Mapping[StreamId, int]) -> None:
        """Make the folds of all that is stored. `ends`: streams that were cut, with their last places: a proof or a
        denial may name another history's head than the one that is stored here."""
        self._cuts_being_saved -= 1
        for fold in (self.ledger, self.knowledge, self.profiles):
            fold.clear()
        for fact in [*facts, *self._folded_meanwhile]:
            if not self.journal.is_void(fact.stream_id, fact.sequence):
                self.fold(fact)
                if ends.get(fact.stream_id) == fact.sequence:
                    self.journal.end_at(fact.stream_id, Position(fact.sequence, fact.hash))
        if not self._cuts_being_saved:
            self._folded_meanwhile = []

    def proofs_to(self, peer: NodeId) -> list[Effect]:
        """All proven forks, for a peer that came (back)."""
        return self.gossip.proofs_to(peer, sorted(self.journal.forks))

    # Who was cut off

    def denial_of(self, node_id: NodeId, reason: str) -> list[facts_pb2.Deny]:
        """What to have signed by the CA and to author, one after the other, to cut a node off. Raises `DenialError`."""
        if node_id == self.me:
            raise DenialError("a node does not deny itself")
        held = {stream_id: (at.sequence, at.head) for stream_id, at in self.journal.durable.items()}
        return self.denials.draft(node_id, reason, held)

    def _heed(self, denials: Iterable[Fact]) -> list[Effect]:
        """Fold denials in; what they make void ends at once, and is deleted."""
        counting = [fact for fact in denials if not self.journal.is_void(fact.stream_id, fact.sequence)]
        authors = {NodeId(fact.body.deny.node_id) for fact in counting if self.denials.add(fact.body.deny)}
        if not authors or not (ended := self.journal.deny(authors)):
            return []
        self._cuts_being_saved += 1
        return [CutStreams(tuple(sorted(ended.items())))]

    def streams_cut(self, streams: Iterable[StreamId], facts: Sequence[Fact]) -> list[Effect]:
        """Read everything anew, without what is void."""
        self._fold_anew(facts, {stream_id: self.denials.limit(stream_id) or 0 for stream_id in streams})
        return [FactsApplied(())]

    def _said_again(self, facts: Iterable[Fact], live_peers: Sequence[NodeId]) -> list[Effect]:
        """Denials that only a forked stream carried, said by a few nodes in their own: the CA's word is not lost."""
        held = {name_of(fact.body.deny) for fact in [*facts, *self._folded_meanwhile] if fact.kind == "deny"}
        lost = [deny for deny in self.denials.messages() if name_of(deny) not in held]
        return [
            Author("deny", deny) for deny in lost if self.me in holders(name_of(deny), [self.me, *live_peers], COPIES)
        ]


def is_read(fact: Fact, forks: Container[StreamId]) -> bool:
    """Whether the folds read a fact that is held. In a forked stream nothing counts that a later word of the stream may
    take back or replace: what nodes dropped on such words (retention.py) others may still hold when they are void."""
    return fact.kind not in MAY_BE_REPLACED or fact.stream_id not in forks


def _push(facts: Iterable[Fact], peers: Iterable[NodeId]) -> list[Effect]:
    message = mesh_pb2.LinkMessage(fact_push=facts_pb2.FactPush(facts=[fact.signed for fact in facts]))
    return [Send(peer, message) for peer in peers]


def _before(fact: Fact) -> Position:
    return Position(fact.sequence - 1, fact.predecessor)
