"""What must hold in every run: after each event, on each message that leaves, and (quiet.py) once all is quiet.

About elections it is *not* true that a term has one leader: two groups that can not reach each other may elect one each
in the same term, by design. What holds, and is checked here:

- a node grants its vote in a term to one candidate only, crashes included, and only once the vote is synced; only the
  loss of its whole store makes it forget;
- a leader's term is synced before it says that it leads, except where it stood alone: then nobody's vote is counted
  on, and its first beats may overtake the sync;
- a leader of a term holds the votes of a majority of the live view that it stood with (its electorate), each really
  granted to it; so two elections of one term by the same electorate have the same winner;
- terms never go back, on disk or in a process.

About facts: what a node tells of itself (vectors, receipts, pushes) is synced there; what it folded is synced there.

About who is denied: from the moment that a node knows of it, it follows no token of that node.

Checks after an event look at what the event touched; the parts' own `validate`, which looks at everything, runs once in
a while, so that the cost an event does not grow with the mesh.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mesh import events
from mesh.denials import is_genuine
from mesh.election import Role
from mesh.facts import Fact, FactError, Place, StreamId, parse
from mesh.identity import NodeId
from mesh.journal import Fork, read_position
from mesh.wire import common_pb2, facts_pb2, mesh_pb2
from tests.sim.authority import ROOTS
from tests.sim.clock import Clock
from tests.sim.folds import folded, read_of
from tests.sim.job_checks import JobChecks

if TYPE_CHECKING:
    from tests.sim.host import Host

#: Events of one node between two looks at everything, in a mesh of up to ten nodes; in a larger one in proportion.
LOOK_EVERY = 20
#: Kinds of messages that promise something.
LOOKED_AT = frozenset({"leader_beat", "vote_request", "vote_reply", "version_vector", "fact_receipt", "fact_push"})
#: From this size on the first starts, all of the same few facts, are not looked at.
LARGE = 100


class Checks:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.story: list[str] = []
        self.events = 0
        self.faults = 0
        self.nodes = 0
        self.votes: dict[tuple[int, NodeId], NodeId] = {}  # (term, voter) → candidate, as told to others
        self.electorates: dict[tuple[int, frozenset[NodeId]], NodeId] = {}  # (term, electorate) → winner
        self.forgot: set[NodeId] = set()  # who lost its votes with its store
        self.terms: dict[NodeId, int] = {}  # of the life that runs
        self.leader_changes = 0
        self.changed_at: dict[NodeId, float] = {}  # when each node's leader changed last
        self.jobs = JobChecks(self)
        self.forged: set[StreamId] = set()  # in which an accident wrote two histories
        self.revoked: set[NodeId] = set()  # somebody began to cut it off
        self.denials: list[facts_pb2.Deny] = []  # all that was ever said of it
        self._facts: dict[tuple[bytes, bytes], Fact] = {}
        self._until_look = LOOK_EVERY

    # The story

    def say(self, host: Host | None, text: str) -> None:
        self.story.append(f"{self.clock.now:8.3f}  {host.name if host else '--':4}{text}")

    def fault(self, host: Host | None, text: str) -> None:
        """Something goes wrong in the world now."""
        self.faults += 1
        self.say(host, f"FAULT: {text}")

    def logged(self, host: Host, level: str, text: str) -> None:
        self.say(host, f"{level}: {text}")
        assert level != "error" or self.forged, f"{host.name} logged an error: {text}"

    def fork_found(self, host: Host, fork: Fork) -> None:
        self.say(host, f"has the proof that {fork.stream_id.author[:8]} wrote two histories")
        assert fork.stream_id in self.forged, f"{host.name} finds a fork where none was made"

    # Lives

    def started(self, host: Host) -> None:
        replica, content = host.replica, host.disk.content
        assert replica is not None
        self.say(host, f"starts, term {content.term}, {len(content.facts)} facts, id {host.id[:8]}")
        self.terms[host.id] = content.term
        if host.id not in self.forgot:
            told = max((term for term, voter in self.votes if voter == host.id), default=0)
            assert content.term >= told, f"{host.name} forgot its vote in term {told}"
        replica.validate()
        if self.clock.now or self.nodes < LARGE:
            said = folded(content.facts.values(), content.forks)
            assert read_of(replica) == said, f"{host.name} reads its store otherwise than it was written"

    def ended(self, host: Host) -> None:
        self.say(host, "is gone")

    def store_lost(self, host: Host) -> None:
        """Its votes are gone with everything else."""
        self.forgot.add(host.id)
        for term, voter in [vote for vote in self.votes if vote[1] == host.id]:
            del self.votes[(term, voter)]

    # After events

    def handled(self, host: Host, event: events.Event) -> None:
        replica = host.replica
        assert replica is not None
        self.events += 1
        self._until_look -= 1
        if self._until_look <= 0:
            self._until_look = max(LOOK_EVERY, self.nodes)
            replica.validate()
        election = replica.election
        assert election.term >= self.terms[host.id], "a term went back"
        self.terms[host.id] = election.term
        if isinstance(event, events.Persisted):
            durable = replica.journal.durable
            for stream_id in {fact.stream_id for fact in event.facts}:
                if stream_id in durable or not self._may_be_void(stream_id):
                    synced = host.disk.content.end_of(stream_id)
                    assert durable[stream_id].sequence <= synced, "counts as durable what is not synced"
        if election.role is Role.LEADER:
            self._check_leader(host)
        if replica.denials.nodes and not replica.denied:
            for token in (election.leader, election.highest, replica.work.intake.highest, replica.work.intake.leader):
                obeyed = token is not None and NodeId(token.leader_id) in replica.denials.nodes
                assert not obeyed, f"{host.name} heeds the token of one that is denied"

    def leader_changed(self, host: Host, token: common_pb2.FencingToken | None) -> None:
        self.leader_changes += 1
        self.changed_at[host.id] = self.clock.now
        self.say(host, f"leader: {token.leader_id[:8]} in term {token.term}" if token else "leader: none")

    def applied(self, host: Host, facts: Sequence[Fact]) -> None:
        stored = host.disk.content.facts
        for fact in facts:
            assert fact.hash in stored or self.forged or fact.author in self.revoked, "folded before it was synced"
        self.jobs.applied(host, facts)

    # On messages that leave

    def sent(self, host: Host, peer: NodeId, message: mesh_pb2.LinkMessage) -> None:
        kind = message.WhichOneof("message")
        if kind not in LOOKED_AT:
            return
        match kind:
            case "leader_beat":
                token = message.leader_beat.token
                assert token.leader_id == host.id
                assert token.term <= host.disk.content.term, f"{host.name} leads a term that is not synced"
            case "vote_request" if not message.vote_request.pre_vote:
                self._check_vote(host, message.vote_request.term, host.id)
            case "vote_reply" if message.vote_reply.granted and not message.vote_reply.pre_vote:
                self._check_vote(host, message.vote_reply.term, peer)
            case "version_vector":
                self._check_positions(host, message.version_vector.positions)
            case "fact_receipt":
                self._check_positions(host, message.fact_receipt.positions)
            case "fact_push":
                for signed in message.fact_push.facts:
                    if signed.body:
                        fact = self.read_fact(signed)
                        stored = fact.hash in host.disk.content.facts or fact.author in self.revoked
                        assert stored or self.forged, "a fact left before its sync"
            case _:
                pass

    def read_fact(self, signed: facts_pb2.SignedFact) -> Fact:
        """As the shell reads and checks it; one that was found good once is not computed again, and is shared."""
        name = (signed.body, signed.signature)
        fact = self._facts.get(name)
        if fact is None:
            try:
                fact = parse(signed)
            except FactError as error:
                raise AssertionError(f"a node pushed what is no fact: {error}") from error
            assert fact.is_signed_by_author(), "a node pushed a fact with a bad signature"
            assert is_genuine(fact, ROOTS.verify_denial), "a node pushed a denial that the CA did not sign"
            self._facts[name] = fact
        return fact

    # Inside

    def _may_be_void(self, stream_id: StreamId) -> bool:
        return stream_id in self.forged or stream_id.author in self.revoked

    def _check_vote(self, host: Host, term: int, candidate: NodeId) -> None:
        content = host.disk.content
        synced = content.term > term or (content.term, content.voted_for) == (term, candidate)
        assert synced, f"{host.name} told its vote in term {term} before it was synced"
        known = self.votes.setdefault((term, host.id), candidate)
        assert known == candidate, f"{host.name} voted twice in term {term}: {known[:8]}, {candidate[:8]}"

    def _check_leader(self, host: Host) -> None:
        assert host.replica is not None
        election = host.replica.election
        assert len(election.votes) > len(election.electorate) // 2
        if self.electorates.get((election.term, election.electorate)) == host.id:
            return  # seen before
        for voter in election.votes - {host.id} - self.forgot:
            assert self.votes.get((election.term, voter)) == host.id, f"{host.name} counts a vote that was not given"
        winner = self.electorates.setdefault((election.term, election.electorate), host.id)
        assert winner == host.id or self.forgot, f"one electorate elected two leaders in term {election.term}"

    def _check_positions(self, host: Host, positions: Iterable[facts_pb2.StreamPosition]) -> None:
        for wire in positions:
            stream_id, position = read_position(wire)
            self._check_position(host, stream_id, position.sequence, position.head)

    def _check_position(self, host: Host, stream_id: StreamId, sequence: int, head: bytes) -> None:
        content = host.disk.content
        known = content.heads.get(Place(stream_id, sequence))
        assert known is not None, "told of a fact that is not synced"
        assert 1 <= sequence <= content.end_of(stream_id), "told of a fact that is not synced"
        assert known == head
