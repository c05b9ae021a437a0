"""One node's whole shared state as one machine: events in, effects out.

Idea: membership, election and the library of facts are small machines of their own; this one wires them. The
shell (node/daemon.py) and the simulator (tests/sim) drive the same object, so what is tested is what runs.

    event ──▶ addressbook ─ dial        FactsVerified ─▶ journal ─ Persist ─▶ Persisted ─▶ folds, receipts, push
              membership  ─ probes
              election    ─ votes, beats     work ─ Author ─▶ staged, persisted; Send to this node itself ─▶ work

What the other machines find out (members, leader, facts) reaches the work of the node on its way out to the shell.

A denial, once it is durable, ends all that there is with its node, in every machine at once. A node that is itself
denied withdraws: it keeps what it has and says so, and does nothing any more.

Does not: know time but as `now` (seconds on a clock that also runs while the machine sleeps), or do anything itself.
"""

from collections import deque
from collections.abc import Iterable

from mesh import events
from mesh.addressbook import AddressBook
from mesh.effects import (
    AnswerSubmit,
    Author,
    CutOff,
    Deliver,
    DropBlobs,
    Effect,
    FactsApplied,
    LeaderChanged,
    Log,
    MemberChanged,
    Send,
)
from mesh.election import Election
from mesh.facts import Fact, Retired
from mesh.gossip import Rng
from mesh.identity import NodeId, NodeKey
from mesh.journal import Fork, fork_of
from mesh.library import Library
from mesh.member import LEFT
from mesh.membership import Membership
from mesh.timing import LAN, Timing
from mesh.wire import common_pb2, mesh_pb2
from mesh.work import MESSAGES, Work

#: What other parts cause and the replica itself carries out, or shows to the work of the node.
SETTLED_HERE = (Author, MemberChanged, LeaderChanged, FactsApplied, DropBlobs)


class Replica:
    """Args: `incarnation` is random at every start; `life` exceeds that of every earlier start (seconds since 1970);
    `slots`: tasks that this node's engine runs at a time; `may_lead`: whether it stands for leader."""

    def __init__(
        self,
        key: NodeKey,
        incarnation: int,
        life: int,
        rng: Rng,
        *,
        slots: int = 1,
        timing: Timing = LAN,
        may_lead: bool = True,
    ) -> None:
        self.key = key
        self.me = key.node_id
        self.incarnation = incarnation
        self.library = Library(key, incarnation, rng)
        self.journal = self.library.journal
        self.ledger = self.library.ledger
        self.knowledge = self.library.knowledge
        self.profiles = self.library.profiles
        self.gossip = self.library.gossip
        self.denials = self.library.denials
        self.membership = Membership(self.me, life, rng, timing, incarnation, self.denials)
        self.election = Election(self.me, rng, may_lead, self.denials)
        self.addresses = AddressBook(self.me, rng, denials=self.denials)
        self.work = Work(self, slots)
        self.wall_clock_ms = 0
        self.stopping = False
        self._cut_off: set[NodeId] = set()  # denied, and all is done about it

    @property
    def denied(self) -> bool:
        """Whether this node itself is cut off from the mesh."""
        return self.denials.is_denied(self.me)

    def restore(
        self,
        facts: Iterable[Fact],
        term: int,
        voted_for: str,
        *,
        retired: Iterable[Retired] = (),
        forks: Iterable[Fork] = (),
        blobs: Iterable[common_pb2.BlobRef] = (),
    ) -> None:
        """Take over what the store holds, at start. Raises `ValueError` where it has a hole."""
        self.library.restore(self._shown_to_work(facts), retired, forks)
        held = list(blobs)
        self.work.restored(held)
        self.library.retention.blobs_at_start = {ref.sha256 for ref in held}
        self.election.term = term
        self.election.voted_for = voted_for
        self._cut_off = set(self.denials.nodes)
        if self.denied:
            self.work.withdraw()

    def handle(self, event: events.Event, now: float) -> list[Effect]:
        """Advance. `now` never goes back."""
        if isinstance(event, events.Ticked):
            self.wall_clock_ms = event.wall_clock_ms or self.wall_clock_ms
            return self._advance(now)
        if isinstance(event, events.FactAuthored):
            self.wall_clock_ms = event.wall_clock_ms or self.wall_clock_ms
        if self.membership.slept(now):
            # What lay in the sockets while this node was paused is read before its timers fire; the pause comes first.
            return self._advance(now) + self._settle(self._handle(event, now), now)
        return self._settle(self._handle(event, now), now)

    def _handle(self, event: events.Event, now: float) -> list[Effect]:
        match event:
            case events.Received(peer, message):
                return self._received(peer, message, now)
            case events.FactsVerified(peer) | events.ForkProven(peer) if self.denied or self.denials.is_denied(peer):
                return []  # its link is about to end
            case events.LinkOpened(hello) if self.denied:
                return [CutOff(NodeId(hello.node_id))]
            case events.FactAuthored() if self.denied:
                return [Log("warning", "this node is denied: what it says would count nowhere")]
            case events.SubmitRequested(ticket, submitted) if self.denied:
                return [AnswerSubmit(ticket, submitted.job_id, copies=0, wanted=1, known=False)]
            case events.FactsVerified(peer, facts, retired):
                return self.membership.word_received(peer, now) + self.library.offered(peer, facts, retired)
            case events.ForkProven(_, one, other):
                fork = fork_of(one, other)
                return self.library.fork_proven(fork) if fork is not None else []
            case events.StoredCompared(peer, offered, stored):
                return self.library.compared(peer, offered, stored)
            case events.ForkSaved(stream_id, facts):
                live, linked = self.membership.live_peers(), self.membership.linked_peers()
                return self.library.fork_saved(stream_id, facts, live, linked)
            case events.StreamsCut(streams, facts):
                return self.library.streams_cut(streams, facts)
            case events.DiskMeasured(used_bytes, budget_bytes):
                self.library.retention.disk_measured(used_bytes, budget_bytes)
            case events.FactAuthored(kind, content, wall_clock_ms):
                return self.library.author(kind, content, wall_clock_ms)[1]
            case events.Persisted(facts, source, retired):
                live, linked = self.membership.live_peers(), self.membership.linked_peers()
                folded = self._told_to_leader(self.library.persisted(facts, source, retired, live, linked))
                return folded + self._heed(now)
            case events.VoteSaved(term, voted_for):
                return self.election.vote_saved(term, voted_for, now, self.membership.view())
            case events.LinkOpened(hello, dialled_from):
                peer = NodeId(hello.node_id)
                listens = [(address.host, address.port) for address in hello.addresses]
                self.addresses.link_opened(peer, listens, dialled_from, now)
                opened = self.membership.link_opened(hello, now, self.addresses.answered(peer))
                if peer not in self.membership.members:
                    return opened
                return self._watch_view(opened + self.gossip.peer_linked(peer) + self.library.proofs_to(peer), now)
            case events.LinkClosed(peer):
                self.gossip.peer_gone(peer)
                self.addresses.link_closed(peer, now)
                closed = self.membership.link_closed(peer, now)
                if (member := self.membership.members.get(peer)) and member.belief == LEFT:
                    self.addresses.left(peer)
                return self._watch_view(closed, now)
            case events.AddressFound(host, port, found_by):
                self.addresses.add(host, port, found_by, now)
            case events.DialFailed(host, port, refused):
                lived_there = self.addresses.dial_failed(host, port, now)
                if refused and lived_there is not None:
                    return self._watch_view(self.membership.dial_refused(lived_there, now), now)
            case events.DialSucceeded(host, port, node_id):
                self.addresses.dial_succeeded(host, port, node_id, now)
                return self.membership.address_proved(node_id, host, port, now)
            case events.Stopping(reason):
                self.stopping = True
                resigned = self.election.resign(now, self.membership.view())
                return resigned + self.membership.goodbye(reason)
            case _:
                return self.work.handle(event, now)
        return []

    def validate(self) -> None:
        """Assert the invariants of all parts."""
        self.journal.validate()
        self.membership.validate()
        self.election.validate()
        self.work.validate()

    # Time and membership

    def _tick(self, now: float) -> list[Effect]:
        effects, paused = self.membership.tick(now)
        view = self.membership.view()
        effects += self.election.tick(now, view, paused=paused, lag_s=self.membership.lag_s)
        for peer in self.election.unheard(now):
            effects += self.membership.doubt(peer, now)
        effects += self.gossip.tick(now, self.membership.live_peers())
        effects += self.library.tick()
        effects += self.library.retention.tick(now, self.wall_clock_ms, self.library.seen_hybrid_clock)
        effects += self._dials(now)
        if paused:
            self.work.paused(now)
        return effects

    # Work

    def _advance(self, now: float) -> list[Effect]:
        """Time goes on: first for the other machines, so that the work sees what they found out."""
        if self.stopping or self.denied:
            return []
        effects = self._settle(self._tick(now), now)
        return effects + self._settle(self.work.tick(now), now)

    def _settle(self, effects: list[Effect], now: float) -> list[Effect]:
        """Carry out `Author` and messages to this node itself; let the work see what the other machines found out."""
        for effect in effects:
            if effect.peer == self.me if isinstance(effect, Send) else isinstance(effect, SETTLED_HERE):
                break
        else:
            return effects  # nearly always
        waiting = deque(effects)
        settled: list[Effect] = []
        while waiting:
            effect = waiting.popleft()
            caused: list[Effect] = []
            match effect:
                case Author() if self.denied:
                    continue
                case Author(kind, content):
                    waiting.extendleft(reversed(self.library.author(kind, content, self.wall_clock_ms)[1]))
                    continue
                case Send(peer, message) if peer == self.me:
                    waiting.extendleft(reversed(self.work.received(peer, message, now)))
                    continue
                case MemberChanged(node_id, state):
                    caused = self.work.member_changed(node_id, state, now)
                case LeaderChanged(token):
                    caused = self.work.leader_changed(token, now)
                case FactsApplied(facts):
                    caused = self.work.facts_applied(facts, now)
                case DropBlobs(sha256):
                    # A result that waits to be announced is named by no fact yet, but may be another job's old one.
                    kept = {name for name in sha256 if self.work.needs(name, now)}
                    self.library.retention.blobs_kept |= kept
                    sha256 = tuple(name for name in sha256 if name not in kept)
                    if not sha256:
                        continue
                    effect = DropBlobs(sha256)
                    self.work.blobs_dropped(sha256)
            settled.append(effect)
            waiting.extendleft(reversed(caused))
        return settled

    def _told_to_leader(self, effects: list[Effect]) -> list[Effect]:
        """Of this node's own facts the leader hears at once, whoever else they are pushed to: work waits for them."""
        pushes = [effect for effect in effects if isinstance(effect, Send) and effect.message.HasField("fact_push")]
        leader = self.election.leader.leader_id if self.election.leader is not None else self.me
        if pushes and leader in self.membership.view() - {self.me, *(push.peer for push in pushes)}:
            effects.append(Send(NodeId(leader), pushes[0].message))
        return effects

    def _shown_to_work(self, facts: Iterable[Fact]) -> Iterable[Fact]:
        for fact in facts:
            if fact.kind == "job_submitted":  # the only kind that it looks at; a start reads many
                self.work.fact_seen(fact)
            yield fact

    # Who was cut off

    def _heed(self, now: float) -> list[Effect]:
        """End what there is with nodes that are denied since the last look."""
        effects: list[Effect] = []
        for node_id in sorted(self.denials.nodes.keys() - self._cut_off):
            self._cut_off.add(node_id)
            reason = self.denials.reason(node_id) or "no reason given"
            if node_id == self.me:
                effects.append(Log("warning", f"this node is denied, and withdraws from the mesh: {reason}"))
                effects += self._withdraw(now)
            else:
                effects.append(Log("warning", f"{node_id} is denied, and cut off: {reason}"))
                effects += self._end_with(node_id, now)
        return effects

    def _end_with(self, node_id: NodeId, now: float) -> list[Effect]:
        self.gossip.peer_gone(node_id)
        self.addresses.denied(node_id, now)
        self.work.denied(node_id)
        expelled = self.membership.expel(node_id)
        forgotten = self.election.forget(node_id, now, self.membership.view())
        return self._watch_view([*forgotten, *expelled, CutOff(node_id, farewell=True)], now)

    def _withdraw(self, now: float) -> list[Effect]:
        linked = self.membership.linked_peers()
        effects = self.election.withdraw(now)
        for node_id in sorted(self.membership.members):
            effects += self.membership.expel(node_id)
        return [*effects, *self.work.withdraw(), *[CutOff(peer, farewell=True) for peer in linked]]

    def _dials(self, now: float) -> list[Effect]:
        hints, returned = self.membership.take_hints()
        for host, port, node_id in hints:
            self.addresses.add(host, port, "peer", now, node_id)
        for node_id in returned:
            self.addresses.returned(node_id, now)
        for node_id in self.membership.stuck():
            self.addresses.link_stuck(node_id, now)
        return self.addresses.tick(now, self.membership.reached()) if now >= self.addresses.due_at else []

    def _watch_view(self, effects: list[Effect], now: float) -> list[Effect]:
        """Let the election see at once that a member came or went."""
        for effect in effects:
            if isinstance(effect, MemberChanged) and not self.stopping:
                return effects + self.election.tick(now, self.membership.view())
        return effects

    def _loaded(self, effects: list[Effect]) -> list[Effect]:
        """Let the leader know with each answer to its beat what this node is doing."""
        for effect in effects:
            if isinstance(effect, Send) and effect.message.WhichOneof("message") == "leader_beat_reply":
                effect.message.leader_beat_reply.load.CopyFrom(self.membership.load)
        return effects

    def _received(self, peer: NodeId, message: mesh_pb2.LinkMessage, now: float) -> list[Effect]:
        if peer not in self.membership.members:
            return []  # one too many: it was not taken in, so it has no say
        kind = message.WhichOneof("message")
        effects: list[Effect] = []
        if kind != "leave" and (word := self.membership.word_received(peer, now)):
            effects += self._watch_view(word, now)
        view = self.membership.view()
        match kind:
            case "probe" | "probe_reply" | "member_news" | "leave":
                effects += self._watch_view(self.membership.received(peer, message, now), now)
            case "leader_beat":
                effects += self._loaded(self.election.beat_received(peer, message.leader_beat, now))
            case "leader_beat_reply":
                if message.leader_beat_reply.HasField("load"):
                    self.membership.load_told(peer, message.leader_beat_reply.load)
                effects += self.election.beat_reply_received(peer, message.leader_beat_reply, now)
            case "vote_request":
                effects += self.election.vote_requested(peer, message.vote_request, now, view)
            case "vote_reply":
                effects += self.election.vote_replied(peer, message.vote_reply, now, view)
            case "leader_transfer":
                effects += self.election.transfer_received(peer, message.leader_transfer, now, view)
            case "vector_digest":
                effects += self.gossip.digest_received(peer, message.vector_digest)
                effects += self.work.positions_told(peer, now)
            case "version_vector":
                effects += self.gossip.vector_received(peer, message.version_vector)
                effects += self.work.positions_told(peer, now)
            case "fact_receipt":
                self.gossip.note_positions(peer, message.fact_receipt.positions)
                effects += self.work.positions_told(peer, now)
            case _ if kind in MESSAGES:
                effects += self.work.received(peer, message, now)
            case _:
                effects.append(Deliver(peer, message))
        return effects
