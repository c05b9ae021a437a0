"""Copies of blobs: who holds what, who is asked to hold what is missing, and what this node fetches for others.

Idea: holders are the highest-ranked nodes by rendezvous hash among the members able to store, so all agree whom to ask.
A holder offers; the offered node fetches what it lacks, syncs, and answers with a receipt. Of several holders the
highest-ranked live one repairs. Repair is patient: an absent holder counts for `PATIENCE_S`, because lids open again,
unless this node would hold the only copy. What must be safe before something is said (a result, a plan, a submission)
is *pushed*: its own node offers it at once, asks one node more with every try, and waits for nobody's rank.

A receipt counts while its node keeps the incarnation in which it gave it: a store may be lost between two starts. Who
gives one keeps the blob for `PROMISED_S`, whatever retention says: the fact that names it is on its way.

Does not: read or write content (FetchBlob does), or decide what is kept (retention.py).
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mesh.effects import Effect, FetchBlob, Send
from mesh.gossip import COPIES
from mesh.identity import NodeId
from mesh.rendezvous import holders as ranked
from mesh.surroundings import Surroundings, able_to_store, copies_wanted, stores
from mesh.wire import common_pb2, facts_pb2, mesh_pb2

#: An absent holder counts for so long: longer than a lid is closed on the way to the next room.
PATIENCE_S = 600.0
#: What was stored or asked for is looked at after this, so that receipts on their way come first.
SETTLE_S = 2.0
#: Waits after an offer without an answer: doubled up to the second. The first of a push is short.
RETRY_S, RETRY_MAX_S = 5.0, 300.0
PUSH_RETRY_S = 0.5
#: What a node said to hold it keeps for so long: the other announces within less what its receipts stand for.
PROMISED_S = 60.0
#: Every blob is looked at again so often, against whatever was missed.
AUDIT_S = 60.0
#: A node that refused a blob is not asked for it again for so long.
REFUSED_S = 600.0
#: Blobs looked at in one tick, refs in one offer, fetches at a time, and fetches that wait: bounds of work and memory.
CHECKS_PER_TICK = 64
OFFER_REFS_MAX = 64
FETCHES_MAX = 8
FETCH_QUEUE_MAX = 1_000
#: The same of one offering peer: what it floods waits, and the others' offers are fetched meanwhile.
FETCHES_OF_ONE_MAX = 4
FETCH_QUEUE_OF_ONE_MAX = 250
#: Largest blob that is held for others.
BLOB_BYTES_MAX = 64 << 20
#: Blobs whose holders are remembered beyond those held here: against peers that send receipts for what nobody has.
RECEIPTS_MAX = 20_000


@dataclass
class _Fetch:
    ref: common_pb2.BlobRef
    waiting: dict[NodeId, None]  # offerers that want a receipt; the first is fetched from
    started: bool = False


@dataclass
class Copies:
    """Invariant: a blob that is being fetched is not held."""

    around: Surroundings
    held: dict[bytes, int] = field(default_factory=dict)  # with their sizes, bytes: a message each costs more
    #: Peers that said they hold a blob, each with the incarnation in which it said so.
    held_by: dict[bytes, dict[NodeId, int]] = field(default_factory=dict)
    _owners: dict[bytes, tuple[bytes, ...]] = field(default_factory=dict)  # owner (a job) → what it wants held
    _wanted: dict[bytes, int] = field(default_factory=dict)  # by how many owners
    _pushed: dict[bytes, float] = field(default_factory=dict)  # until when
    _promised: dict[bytes, float] = field(default_factory=dict)  # until when
    _refused: dict[tuple[bytes, NodeId], float] = field(default_factory=dict)
    _tries: dict[bytes, int] = field(default_factory=dict)
    _due: dict[bytes, float] = field(default_factory=dict)
    _queue: list[tuple[float, bytes]] = field(default_factory=list)
    _fetches: dict[bytes, _Fetch] = field(default_factory=dict)
    _next_audit: float = AUDIT_S

    def restore(self, blobs: Iterable[common_pb2.BlobRef]) -> None:
        """What this node's disk holds, at start."""
        for ref in blobs:
            self.held[ref.sha256] = ref.size_bytes
            self._look_at(ref.sha256, SETTLE_S)

    # What others ask

    def holders(self, refs: Iterable[common_pb2.BlobRef]) -> set[NodeId] | None:
        """Nodes known to hold all of `refs`, this one included; None where there is nothing to hold."""
        sets = [self._holders(ref.sha256) for ref in refs]
        return set.intersection(*sets) if sets else None

    def enough(self, refs: Sequence[common_pb2.BlobRef]) -> bool:
        """Whether as many nodes hold all of `refs` as there should be now."""
        held = self.holders(refs)
        return held is None or len(held) >= copies_wanted(self.around)

    def owners(self) -> list[bytes]:
        """Who wants something held."""
        return list(self._owners)

    def want(self, owner: bytes, refs: Iterable[common_pb2.BlobRef], now: float) -> None:
        """Keep copies of exactly these for `owner` from now on; nothing: it needs none any more."""
        before = self._owners.pop(owner, ())
        after = tuple({ref.sha256: None for ref in refs})
        for sha256 in before:
            self._wanted[sha256] -= 1
            if not self._wanted[sha256]:
                del self._wanted[sha256]
        for sha256 in after:
            self._wanted[sha256] = self._wanted.get(sha256, 0) + 1
            if sha256 not in before:
                self._look_at(sha256, now + SETTLE_S)
        if after:
            self._owners[owner] = after
        for sha256 in before:
            if sha256 not in self._wanted:
                self.held_by.pop(sha256, None)  # the others may drop it now; the same content may come again

    def push(self, refs: Iterable[common_pb2.BlobRef], until: float, now: float) -> list[Effect]:
        """Have as many nodes hold these as there should be, now. Goes on by `tick` until they do or `until`."""
        offers: dict[NodeId, list[common_pb2.BlobRef]] = {}
        for ref in refs:
            if ref.sha256 not in self._wanted:
                # Whoever held it for another's sake may have dropped it. Equal results of tasks at once ask again.
                self.held_by.pop(ref.sha256, None)
            self._pushed[ref.sha256] = max(until, self._pushed.get(ref.sha256, 0.0))
            self._tries.pop(ref.sha256, None)
            self._check(ref.sha256, now, offers)
        return _offers(offers)

    # Events

    def stored(self, ref: common_pb2.BlobRef, source: NodeId | None, now: float) -> list[Effect]:
        """A blob is durable here."""
        self.held[ref.sha256] = ref.size_bytes
        self._look_at(ref.sha256, now + SETTLE_S)
        if source is not None:
            self._note(source, ref.sha256)
        fetch = self._fetches.pop(ref.sha256, None)
        if fetch is not None:
            self._promised[ref.sha256] = now + PROMISED_S
        receipt = facts_pb2.BlobReceipt(sha256=[ref.sha256])
        return [_receipt(peer, receipt) for peer in (fetch.waiting if fetch else ())] + self._start_fetches()

    def not_stored(self, ref: common_pb2.BlobRef, peer: NodeId, *, refused: bool) -> list[Effect]:
        """A fetch came to nothing: tell that there is no room, or try the next who offered it."""
        fetch = self._fetches.get(ref.sha256)
        if fetch is None:
            return []
        if refused:
            del self._fetches[ref.sha256]
            receipt = facts_pb2.BlobReceipt(refused=[ref.sha256])
            return [_receipt(waiting, receipt) for waiting in fetch.waiting] + self._start_fetches()
        fetch.started = False
        fetch.waiting.pop(peer, None)
        if not fetch.waiting:
            del self._fetches[ref.sha256]
        return self._start_fetches()

    def offer_received(self, peer: NodeId, offer: facts_pb2.BlobOffer, now: float) -> list[Effect]:
        """ "Hold this for me." Answered at once for what is here or never will be, else after the fetch."""
        receipt = facts_pb2.BlobReceipt()
        of_peer = sum(peer in fetch.waiting for fetch in self._fetches.values())
        for ref in offer.blobs[:OFFER_REFS_MAX]:
            self._note(peer, ref.sha256)
            if ref.sha256 in self.held:
                receipt.sha256.append(ref.sha256)
                self._promised[ref.sha256] = now + PROMISED_S
            elif ref.size_bytes > BLOB_BYTES_MAX or not stores(self.around, self.around.me):
                receipt.refused.append(ref.sha256)
            elif ref.sha256 in self._fetches:
                self._fetches[ref.sha256].waiting[peer] = None
            elif len(self._fetches) < FETCH_QUEUE_MAX and of_peer < FETCH_QUEUE_OF_ONE_MAX:
                of_peer += 1
                self._fetches[ref.sha256] = _Fetch(ref, {peer: None})
        answer = [_receipt(peer, receipt)] if receipt.sha256 or receipt.refused else []
        return answer + self._start_fetches()

    def receipt_received(self, peer: NodeId, receipt: facts_pb2.BlobReceipt, now: float) -> None:
        for sha256 in receipt.sha256[:OFFER_REFS_MAX]:
            self._note(peer, sha256)
        for sha256 in receipt.refused[:OFFER_REFS_MAX]:
            self.held_by.get(sha256, {}).pop(peer, None)
            if sha256 in self.held:
                self._refused[sha256, peer] = now + REFUSED_S
                self._look_at(sha256, now)

    def is_promised(self, sha256: bytes, now: float) -> bool:
        """Whether another node may count on this one to hold it."""
        return self._promised.get(sha256, 0.0) > now

    def dropped(self, sha256s: Iterable[bytes]) -> None:
        """This node holds these no more."""
        for sha256 in sha256s:
            self.held.pop(sha256, None)
            self._promised.pop(sha256, None)
            self._forget(sha256)

    def members_changed(self, now: float) -> None:
        """Somebody came or went: copies may be missing, or may find a place now."""
        for sha256 in self.held:
            self._look_at(sha256, now + (0.0 if sha256 in self._pushed else SETTLE_S))

    def tick(self, now: float) -> list[Effect]:
        if now >= self._next_audit:
            self._next_audit = now + AUDIT_S
            self._refused = {entry: until for entry, until in self._refused.items() if until > now}
            self._promised = {sha256: until for sha256, until in self._promised.items() if until > now}
            for sha256 in self.held:
                self._look_at(sha256, now)
        offers: dict[NodeId, list[common_pb2.BlobRef]] = {}
        checked = 0
        while self._queue and self._queue[0][0] <= now and checked < CHECKS_PER_TICK:
            due, sha256 = heapq.heappop(self._queue)
            if self._due.get(sha256) == due:
                del self._due[sha256]
                checked += 1
                self._check(sha256, now, offers)
        return _offers(offers)

    def validate(self) -> None:
        assert not self.held.keys() & self._fetches.keys()
        assert sum(fetch.started for fetch in self._fetches.values()) <= FETCHES_MAX
        assert all(count > 0 for count in self._wanted.values())
        assert self._promised.keys() <= self.held.keys()

    # Inside

    def _check(self, sha256: bytes, now: float, offers: dict[NodeId, list[common_pb2.BlobRef]]) -> None:
        """Offer one blob to whom it is missing at, if that is this node's part. Sets when it is looked at again."""
        size_bytes = self.held.get(sha256)
        pushed = self._pushed.get(sha256, 0.0) > now
        if not pushed:
            self._pushed.pop(sha256, None)
        if size_bytes is None or not (pushed or sha256 in self._wanted):
            self._forget(sha256)
            return
        able = able_to_store(self.around, self.around.membership.view()) | {self.around.me}
        present = self._holders(sha256) & able
        absent = {} if pushed or len(present) == 1 else self._absent(sha256, able, now)
        if absent:
            self._look_at(sha256, min(absent.values()))
        missing = min(COPIES - len(present) - len(absent), len(able) - len(present))
        if missing <= 0:
            self._tries.pop(sha256, None)
            return
        if not pushed and ranked(sha256, present, 1) != [self.around.me]:
            return  # a higher-ranked holder is here: it repairs
        tries = self._tries.get(sha256, 0)
        self._tries[sha256] = min(tries + 1, 16)
        candidates = [
            peer for peer in able - present if self._refused.get((sha256, peer), 0.0) <= now and peer != self.around.me
        ]
        for peer in ranked(sha256, candidates, missing + tries):
            offers.setdefault(peer, []).append(common_pb2.BlobRef(sha256=sha256, size_bytes=size_bytes))
        wait = PUSH_RETRY_S * 2**tries if pushed else min(RETRY_MAX_S, RETRY_S * 2**tries)
        self._look_at(sha256, now + wait)

    def _holders(self, sha256: bytes) -> set[NodeId]:
        members = self.around.membership.members
        said = self.held_by.get(sha256, {})
        found = {peer for peer, life in said.items() if peer in members and members[peer].incarnation == life}
        return found | {self.around.me} if sha256 in self.held else found

    def _absent(self, sha256: bytes, able: set[NodeId], now: float) -> dict[NodeId, float]:
        """Holders that are away but not for long, with the time from which they do not count any more."""
        absent = {}
        for peer in self._holders(sha256) - able - {self.around.me}:
            since = self.around.membership.absent_since(peer)
            until = (now if since is None else since) + PATIENCE_S
            if stores(self.around, peer) and until > now:
                absent[peer] = until
        return absent

    def _note(self, peer: NodeId, sha256: bytes) -> None:
        member = self.around.membership.members.get(peer)
        if member is None:
            return
        if sha256 not in self.held_by and len(self.held_by) >= RECEIPTS_MAX + len(self.held):
            del self.held_by[next(iter(self.held_by))]
        self.held_by.setdefault(sha256, {})[peer] = member.incarnation

    def _look_at(self, sha256: bytes, when: float) -> None:
        """Check this blob then, or earlier if that was planned."""
        planned = self._due.get(sha256)
        if planned is None or when < planned:
            self._due[sha256] = when
            heapq.heappush(self._queue, (when, sha256))

    def _forget(self, sha256: bytes) -> None:
        self._tries.pop(sha256, None)
        self._due.pop(sha256, None)
        self._pushed.pop(sha256, None)
        if sha256 not in self.held:
            self.held_by.pop(sha256, None)

    def _start_fetches(self) -> list[Effect]:
        running = [next(iter(fetch.waiting)) for fetch in self._fetches.values() if fetch.started]
        effects: list[Effect] = []
        for fetch in self._fetches.values():
            if len(running) >= FETCHES_MAX:
                break
            offerer = next(iter(fetch.waiting))
            if not fetch.started and running.count(offerer) < FETCHES_OF_ONE_MAX:
                fetch.started = True
                running.append(offerer)
                effects.append(FetchBlob(offerer, fetch.ref))
        return effects


def _receipt(peer: NodeId, receipt: facts_pb2.BlobReceipt) -> Effect:
    return Send(peer, mesh_pb2.LinkMessage(blob_receipt=receipt))


def _offers(offers: dict[NodeId, list[common_pb2.BlobRef]]) -> list[Effect]:
    return [
        Send(peer, mesh_pb2.LinkMessage(blob_offer=facts_pb2.BlobOffer(blobs=refs[start : start + OFFER_REFS_MAX])))
        for peer, refs in sorted(offers.items())
        for start in range(0, len(refs), OFFER_REFS_MAX)
    ]
