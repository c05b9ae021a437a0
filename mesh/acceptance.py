"""Accepting jobs: say it once, and answer when enough nodes hold the job and all that it reads.

Idea: the job is authored at once and its blobs are pushed at once; the answer waits for receipts of both. It comes at
the deadline in any case, with the true number: a frozen peer makes it "on 1 of 3", never a hang. A job that this node
said is not said again; one that another said is, for what a node acknowledges must not hang on the word of another,
which a denial may make void.

After a pause of this node the view is old: the answer waits for one probe round (DESIGN section 3 rule 8).

Does not: check requests (the shell does), or promise that holders stay (copies.py repairs).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from mesh.copies import Copies
from mesh.effects import AnswerSubmit, Author, Effect
from mesh.events import SubmitRequested
from mesh.facts import Fact, StreamId
from mesh.identity import NodeId
from mesh.ledger import TERMINAL_KINDS
from mesh.surroundings import Surroundings, copies_wanted
from mesh.wire import common_pb2

#: One probe interval of membership: after it, who does not answer is not counted any more.
PROBE_ROUND_S = 1.0
#: Longest wait for copies, whatever a client asks.
DEADLINE_MAX_S = 60.0
#: Submissions that wait at a time; one more answers the oldest as it stands.
PENDING_MAX = 1_000
#: Jobs whose `submitted` facts' places are remembered, the newest.
PLACES_MAX = 20_000


@dataclass(frozen=True)
class _Pending:
    ticket: int
    job_id: bytes
    blobs: tuple[common_pb2.BlobRef, ...]
    deadline: float
    wanted: int
    known: bool


@dataclass
class Acceptance:
    """Invariant: each ticket is answered once."""

    around: Surroundings
    copies: Copies
    pending: dict[int, _Pending] = field(default_factory=dict)
    #: Where the `submitted` facts of an open job stand. Several nodes may have said the same job.
    _places: dict[bytes, dict[tuple[StreamId, int], None]] = field(default_factory=dict)
    _authored: set[bytes] = field(default_factory=set)
    _not_before: float = 0.0

    def requested(self, event: SubmitRequested, now: float) -> list[Effect]:
        job_id = event.submitted.job_id
        job = self.around.ledger.jobs.get(job_id)
        known = job_id in self._authored or (job is not None and (job.closed or job.submitted is not None))
        effects: list[Effect] = []
        if len(self.pending) >= PENDING_MAX:
            effects.append(self._answer(next(iter(self.pending))))
        blobs = tuple(event.submitted.blobs)
        deadline = now + min(max(0.0, event.deadline_s), DEADLINE_MAX_S)
        self.pending[event.ticket] = _Pending(event.ticket, job_id, blobs, deadline, copies_wanted(self.around), known)
        if not (known and (job_id in self._authored or self._ended(job_id) or self._own_places(job_id))):
            self._authored.add(job_id)
            effects.append(Author("job_submitted", event.submitted))
        effects += self.copies.push(blobs, deadline, now)
        return [*effects, *self.look(now)]

    def fact_seen(self, fact: Fact) -> None:
        """A durable fact, new or restored."""
        if fact.kind in TERMINAL_KINDS:
            self._forget(getattr(fact.body, fact.kind).job_id)
        if fact.kind != "job_submitted":
            return
        job_id = fact.body.job_submitted.job_id
        self._authored.discard(job_id)
        if self._ended(job_id):
            return
        self._places.setdefault(job_id, {})[fact.stream_id, fact.sequence] = None
        if len(self._places) > PLACES_MAX:
            del self._places[next(iter(self._places))]

    def withdraw(self) -> list[Effect]:
        """This node itself is denied: nobody counts what it accepts."""
        return [
            AnswerSubmit(one.ticket, one.job_id, 0, max(1, one.wanted), one.known)
            for one in [self.pending.pop(ticket) for ticket in list(self.pending)]
        ]

    def awaits(self, sha256: bytes) -> bool:
        return any(blob.sha256 == sha256 for pending in self.pending.values() for blob in pending.blobs)

    def paused(self, now: float) -> None:
        """This node itself was away: whom it believes to be here may not be."""
        self._not_before = now + PROBE_ROUND_S

    def look(self, now: float) -> list[Effect]:
        """Answer what can be answered now."""
        if not self.pending or now < self._not_before:
            return []
        due = [
            pending.ticket
            for pending in self.pending.values()
            if now >= pending.deadline or self._settled(pending) or self._ended(pending.job_id)
        ]
        return [self._answer(ticket) for ticket in due]

    def holders(self, job_id: bytes, blobs: Iterable[common_pb2.BlobRef]) -> set[NodeId]:
        """Nodes known to hold the job's `submitted` fact and all of `blobs` durably; of a closed job: that fact or an
        end, for what it read may be gone already."""
        job = self.around.ledger.jobs.get(job_id)
        ends = job.ends_at if job is not None else ()
        places = [*ends, *(self._own_places(job_id) or self._places.get(job_id, []))]
        nodes = {self.around.me} if places else set()
        for stream_id, sequence in places:
            nodes |= self.around.gossip.holders(stream_id, sequence)
        with_blobs = self.copies.holders(blobs)
        return nodes if with_blobs is None or ends else nodes & with_blobs

    def _own_places(self, job_id: bytes) -> list[tuple[StreamId, int]]:
        return [place for place in self._places.get(job_id, ()) if place[0].author == self.around.me]

    def _settled(self, pending: _Pending) -> bool:
        return bool(self._own_places(pending.job_id)) and len(
            self.holders(pending.job_id, pending.blobs)
        ) >= copies_wanted(self.around)

    def _forget(self, job_id: bytes) -> None:
        """The job is closed: its ends say where it is held."""
        if not any(pending.job_id == job_id for pending in self.pending.values()):
            self._places.pop(job_id, None)

    def _ended(self, job_id: bytes) -> bool:
        job = self.around.ledger.jobs.get(job_id)
        return job is not None and job.closed

    def _answer(self, ticket: int) -> Effect:
        pending = self.pending.pop(ticket)
        copies = len(self.holders(pending.job_id, pending.blobs))
        # Who fell silent meanwhile is not waited for, but was wanted.
        wanted = max(pending.wanted, copies_wanted(self.around))
        if self._ended(pending.job_id):
            self._forget(pending.job_id)
        return AnswerSubmit(ticket, pending.job_id, copies, wanted, pending.known)
