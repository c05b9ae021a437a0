"""What must hold in every run: after each event but idle ticks, on each message that leaves, and once all is quiet.

About elections it is *not* true that a term has one leader: two groups that can not reach each other may elect one each
in the same term, by design. What holds, and is checked here:

- a node grants its vote in a term to one candidate only, crashes included, and only once the vote is synced;
- a leader's term is synced before it says that it leads, except where it stood alone: then nobody's vote is counted
  on, and its first beats may overtake the sync;
- a leader of a term holds the votes of a majority of the live view that it stood with (its electorate), each really
  granted to it; so two elections of one term by the same electorate have the same winner;
- terms never go back, on disk or in a process.

About facts: what a node tells of itself (vectors, receipts, pushes) is synced there; what it folded is synced there.
Once quiet, all live nodes hold and read the same, follow one leader, and nothing flaps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mesh import events
from mesh.election import Role
from mesh.facts import Fact
from mesh.identity import NodeId
from mesh.journal import read_position
from mesh.knowledge import Knowledge
from mesh.ledger import Ledger
from mesh.profiles import Profiles
from mesh.wire import common_pb2, facts_pb2, mesh_pb2
from tests.sim.clock import Clock

if TYPE_CHECKING:
    from tests.sim.host import Host


class Checks:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.story: list[str] = []
        self.events = 0
        self.votes: dict[tuple[int, NodeId], NodeId] = {}  # (term, voter) → candidate, as told to others
        self.electorates: dict[tuple[int, frozenset[NodeId]], NodeId] = {}  # (term, electorate) → winner
        self.terms: dict[NodeId, int] = {}  # of the life that runs
        self.leader_changes = 0
        self.last_change_at = 0.0
        self._signed: set[bytes] = set()

    # The story

    def say(self, host: Host | None, text: str) -> None:
        self.story.append(f"{self.clock.now:8.3f}  {host.name if host else '--':4}{text}")

    def logged(self, host: Host, level: str, text: str) -> None:
        self.say(host, f"{level}: {text}")
        assert level != "error", f"{host.name} logged an error: {text}"

    # After events

    def started(self, host: Host) -> None:
        assert host.replica is not None
        self.say(host, f"starts, term {host.disk.term}, {len(host.disk.order)} facts, id {host.key.node_id[:8]}")
        self.terms[host.key.node_id] = host.disk.term
        told = max((term for term, voter in self.votes if voter == host.key.node_id), default=0)
        assert host.disk.term >= told, f"{host.name} forgot its vote in term {told}"
        host.replica.validate()
        assert host.replica.ledger.fingerprint() == _folded(host.disk.order)[0]

    def handled(self, host: Host, event: events.Event) -> None:
        replica = host.replica
        assert replica is not None
        self.events += 1
        replica.validate()
        election = replica.election
        assert election.term >= self.terms[host.key.node_id], "a term went back"
        self.terms[host.key.node_id] = election.term
        if isinstance(event, events.Persisted):
            for fact in event.facts:
                assert replica.journal.durable[fact.stream_id].sequence <= host.disk.holds(fact.stream_id)
        if election.role is Role.LEADER:
            self._check_leader(host)

    def leader_changed(self, host: Host, token: common_pb2.FencingToken | None) -> None:
        self.leader_changes += 1
        self.last_change_at = self.clock.now
        self.say(host, f"leader: {token.leader_id[:8]} in term {token.term}" if token else "leader: none")

    def applied(self, host: Host, facts: Sequence[Fact]) -> None:
        for fact in facts:
            assert host.disk.facts[fact.stream_id][fact.sequence - 1].hash == fact.hash, "folded before it was synced"

    # On messages that leave

    def sent(self, host: Host, peer: NodeId, message: mesh_pb2.LinkMessage) -> None:
        me = host.key.node_id
        match message.WhichOneof("message"):
            case "vote_request" if not message.vote_request.pre_vote:
                self._check_vote(host, message.vote_request.term, me)
            case "vote_reply" if message.vote_reply.granted and not message.vote_reply.pre_vote:
                self._check_vote(host, message.vote_reply.term, peer)
            case "leader_beat":
                token = message.leader_beat.token
                assert token.leader_id == me
                assert token.term <= host.disk.term, f"{host.name} leads a term that is not synced"
            case "version_vector":
                self._check_positions(host, message.version_vector.positions)
            case "fact_receipt":
                self._check_positions(host, message.fact_receipt.positions)
            case "fact_push":
                for signed in message.fact_push.facts:
                    assert signed.body in host.disk.bodies, "a fact left before its sync"
            case _:
                pass

    def is_signed(self, fact: Fact) -> bool:
        """As the shell checks it; a fact that was found good once is not computed again."""
        name = fact.hash + fact.signed.signature
        if name not in self._signed and fact.is_signed_by_author():
            self._signed.add(name)
        return name in self._signed

    # Once quiet

    def quiet_problems(self, live: Sequence[Host], quiet_since: float) -> list[str]:
        """What is wrong when all is healed and time enough has passed."""
        problems: list[str] = []
        everyone = frozenset(host.key.node_id for host in live)
        leaders: set[tuple[int, str]] = set()
        contents: list[tuple[object, ...]] = []
        for host in live:
            replica = host.replica
            assert replica is not None
            if replica.membership.view() != everyone:
                seen = sorted(node[:8] for node in replica.membership.view())
                problems.append(f"{host.name} sees {seen} of {len(everyone)} nodes")
            leader = replica.election.leader
            leaders.add((leader.term, leader.leader_id) if leader else (0, ""))
            if leader != host.leader:
                problems.append(f"{host.name}'s shell was told of another leader than its machine follows")
            if replica.journal.durable != replica.journal.staged:
                problems.append(f"{host.name} has staged facts that are not durable")
            positions = {stream: position.sequence for stream, position in replica.journal.durable.items()}
            if positions != {stream: len(facts) for stream, facts in host.disk.facts.items()}:
                problems.append(f"{host.name}'s journal differs from its disk")
            content = (replica.ledger.fingerprint(), *_read(replica.knowledge, replica.profiles))
            if content != _folded(reversed(host.disk.order)):
                problems.append(f"{host.name} reads another thing than its facts say")
            contents.append((sorted(replica.journal.durable.items()), content))
        if len(leaders) != 1 or not all(leader_id in everyone for _, leader_id in leaders):
            problems.append(f"not one live leader: {sorted((term, node[:8]) for term, node in leaders)}")
        if sum(1 for host in live if host.replica and host.replica.election.role is Role.LEADER) != 1:
            problems.append("not exactly one node leads")
        if any(content != contents[0] for content in contents):
            problems.append(f"facts differ: {[len(host.disk.order) for host in live]}")
        if self.last_change_at > quiet_since:
            problems.append(f"the leader changed at {self.last_change_at:.1f}, after {quiet_since:.1f}")
        return problems

    # Inside

    def _check_vote(self, host: Host, term: int, candidate: NodeId) -> None:
        voter = host.key.node_id
        disk = host.disk
        synced = disk.term > term or (disk.term, disk.voted_for) == (term, candidate)
        assert synced, f"{host.name} told its vote in term {term} before it was synced"
        known = self.votes.setdefault((term, voter), candidate)
        assert known == candidate, f"{host.name} voted twice in term {term}: {known[:8]}, {candidate[:8]}"

    def _check_leader(self, host: Host) -> None:
        assert host.replica is not None
        election = host.replica.election
        me = host.key.node_id
        assert len(election.votes) > len(election.electorate) // 2
        for voter in election.votes - {me}:
            assert self.votes.get((election.term, voter)) == me, f"{host.name} counts a vote that was not given"
        winner = self.electorates.setdefault((election.term, election.electorate), me)
        assert winner == me, f"one electorate elected two leaders in term {election.term}"

    def _check_positions(self, host: Host, positions: Iterable[facts_pb2.StreamPosition]) -> None:
        for wire in positions:
            stream_id, position = read_position(wire)
            stream = host.disk.facts.get(stream_id, [])
            assert 1 <= position.sequence <= len(stream), "told of a fact that is not synced"
            assert stream[position.sequence - 1].hash == position.head


def _folded(facts: Iterable[Fact]) -> tuple[object, ...]:
    ledger, knowledge, profiles = Ledger(), Knowledge(), Profiles()
    for fact in facts:
        assert ledger.apply(fact) + knowledge.apply(fact) + profiles.apply(fact) <= 1
    return (ledger.fingerprint(), *_read(knowledge, profiles))


def _read(knowledge: Knowledge, profiles: Profiles) -> tuple[object, ...]:
    items = [item.item_id for item in knowledge.current()]
    return items, sorted((node, entry[:2]) for node, entry in profiles.latest.items())
