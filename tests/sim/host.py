"""One machine of the simulated world: its key and disk, and a process that may run, hang, crash and start again.

It is the shell: it runs a Replica's effects exactly as mesh/effects.py asks. It shows every message that leaves and
every event that was handled to `Checks`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mesh import effects, events
from mesh.facts import FactError, parse
from mesh.gossip import FactRange
from mesh.identity import NodeId, NodeKey
from mesh.replica import Replica
from mesh.wire import common_pb2, facts_pb2, membership_pb2, mesh_pb2
from tests.sim.clock import Call, Clock
from tests.sim.disk import Disk, Write
from tests.sim.network import End, Network

if TYPE_CHECKING:
    from tests.sim.checks import Checks

TICK_S = 0.1
#: Facts in one push; the rest waits for the next round.
PUSH_FACTS_MAX = 64


class Host:
    def __init__(self, index: int, clock: Clock, network: Network, checks: Checks, rng: random.Random) -> None:
        self.index = index
        self.name = f"n{index}"
        self.clock = clock
        self.network = network
        self.checks = checks
        self.rng = rng
        self.key = NodeKey.from_scalar(rng.getrandbits(255) + 1)
        self.address = (f"10.0.0.{index + 1}", 4000 + index)
        self.disk = Disk(clock, rng)
        self.seeds: list[tuple[str, int]] = []
        self.cache: set[tuple[str, int]] = set()  # addresses where a peer answered: kept over restarts
        self.wall_skew_ms = rng.randint(-5000, 5000)
        self.life = 0  # starts so far
        self.replica: Replica | None = None
        self.paused = False
        self.leader: common_pb2.FencingToken | None = None  # as the machine told its shell last
        self.links: dict[NodeId, list[End]] = {}
        self._deferred: list[Call] = []

    # Life

    def start(self) -> None:
        if self.replica is not None:
            return
        self.life += 1
        self.paused = False
        self.leader = None
        self.links = {}
        self._deferred = []
        life_s = 1_700_000_000 + int(self.clock.now * 10) + self.life
        self.replica = Replica(self.key, self.rng.getrandbits(64), life_s, random.Random(self.rng.getrandbits(64)))
        self.replica.restore(self.disk.order, self.disk.term, self.disk.voted_for)
        self.checks.started(self)
        for found_by, addresses in (("seed", self.seeds), ("cache", sorted(self.cache))):
            for host, port in addresses:
                self.handle(events.AddressFound(host, port, found_by))
        self._tick(self.life)

    def crash(self, notice_max_s: float) -> None:
        """The process is gone at once; peers hear of it within `notice_max_s`."""
        if self.replica is None:
            return
        self.replica = None
        self.life += 1  # whatever is under way belongs to nobody
        self.paused = False
        self.disk.crash()
        self.network.host_died(self, notice_max_s)
        self.checks.say(self, "is gone")

    def pause(self) -> None:
        if self.replica is not None:
            self.paused = True
            self.checks.say(self, "is paused")

    def resume(self) -> None:
        """Goes on: what came meanwhile is read before or after the timers fire."""
        if not self.paused:
            return
        self.paused = False
        self.checks.say(self, "goes on")
        deferred, self._deferred = self._deferred, []
        life = self.life
        if self.rng.random() < 0.5:
            self.handle(events.Ticked())
        for call in deferred:
            self._run(call, life)
        self._tick(life)

    # What arrives

    def deliver(self, event: events.Event, life: int) -> None:
        if isinstance(event, events.DialSucceeded) and event.node_id != self.key.node_id:
            self.cache.add((event.host, event.port))
        self._run(lambda: self.handle(event), life)

    def handle(self, event: events.Event) -> None:
        if self.replica is None:
            return
        caused = self.replica.handle(event, self.clock.now)
        if caused or not isinstance(event, events.Ticked):
            self.checks.handled(self, event)
        self._perform(caused)

    def receive(self, end: End, data: bytes) -> None:
        self._run(lambda: self._read(end, data), end.life)

    def link_up(self, end: End, hello: membership_pb2.Hello) -> None:
        def up() -> None:
            if not end.link.alive:
                return  # it broke before it was known here
            peer = NodeId(hello.node_id)
            ends = self.links.setdefault(peer, [])
            ends.append(end)
            if len(ends) == 1:
                self.handle(events.LinkOpened(hello))
            self._drop_twin(peer)

        self._run(up, end.life)

    def link_lost(self, end: End) -> None:
        def down() -> None:
            peer = end.other.host.key.node_id
            ends = self.links.get(peer, [])
            if end in ends:
                ends.remove(end)
                if not ends:
                    self.handle(events.LinkClosed(peer))

        self._run(down, end.life)

    def hello(self) -> membership_pb2.Hello:
        assert self.replica is not None
        return membership_pb2.Hello(
            node_id=self.key.node_id,
            incarnation=self.replica.incarnation,
            public_key=self.key.public_key,
            name=self.name,
            addresses=[common_pb2.NodeAddress(host=self.address[0], port=self.address[1])],
        )

    def wall_clock_ms(self) -> int:
        return 1_790_000_000_000 + int(self.clock.now * 1000) + self.wall_skew_ms

    # Inside

    def _run(self, call: Call, life: int) -> None:
        """Run now, or when the process goes on; never in another life."""
        if self.life != life or self.replica is None:
            return
        if self.paused:
            self._deferred.append(call)
        else:
            call()

    def _tick(self, life: int) -> None:
        if self.life != life or self.replica is None or self.paused:
            return
        self.handle(events.Ticked())
        self.clock.after(self.rng.uniform(0.08, TICK_S), lambda: self._tick(life))

    def _drop_twin(self, peer: NodeId) -> None:
        """As node/links.py: of two links the node with the higher id closes the one that it dialled."""
        ends = self.links.get(peer, [])
        if self.key.node_id > peer and any(not end.dialled for end in ends):
            for end in ends:
                if end.dialled:
                    self.network.break_link(end.link, 0.05)

    def _read(self, end: End, data: bytes) -> None:
        peer = end.other.host.key.node_id
        if end not in self.links.get(peer, ()):
            return
        message = mesh_pb2.LinkMessage.FromString(data)
        if message.WhichOneof("message") != "fact_push":
            self.handle(events.Received(peer, message))
            return
        try:
            facts = tuple(parse(signed) for signed in message.fact_push.facts)
        except FactError as error:
            raise AssertionError(f"a node pushed what is no fact: {error}") from error
        assert all(self.checks.is_signed(fact) for fact in facts)
        # Signatures are checked off the loop, so other messages may overtake facts.
        life = self.life
        self.clock.after(self.rng.uniform(0.0005, 0.005), lambda: self.deliver(events.FactsVerified(peer, facts), life))

    def _perform(self, caused: Sequence[effects.Effect]) -> None:
        for effect in caused:
            if self.replica is None:
                return
            self._perform_one(effect)

    def _perform_one(self, effect: effects.Effect) -> None:
        life = self.life
        match effect:
            case effects.Send(peer, message):
                self._send(peer, message)
            case effects.Dial():
                self.network.dial(self, effect)
            case effects.Persist(facts, source):
                persisted = events.Persisted(facts, source)
                self.disk.write(Write(facts, None, lambda: self.deliver(persisted, life)))
            case effects.PushStored(peer, ranges):
                self._push_stored(peer, ranges)
            case effects.SaveVote(term, voted_for, then):
                saved = events.VoteSaved(term, voted_for)

                def told() -> None:
                    self._run(lambda: self._perform(then), life)
                    self.deliver(saved, life)

                self.disk.write(Write((), (term, voted_for), told))
            case effects.LeaderChanged(token):
                self.leader = token
                self.checks.leader_changed(self, token)
            case effects.FactsApplied(facts):
                self.checks.applied(self, facts)
            case effects.Log(level, text):
                self.checks.logged(self, level, text)
            case effects.Deliver() | effects.MemberChanged():
                pass

    def _send(self, peer: NodeId, message: mesh_pb2.LinkMessage) -> None:
        assert peer != self.key.node_id, "a node writes to itself"
        ends = self.links.get(peer)
        if ends:
            self.checks.sent(self, peer, message)
            self.network.send(ends[0], message.SerializeToString())

    def _push_stored(self, peer: NodeId, ranges: Sequence[FactRange]) -> None:
        facts: list[facts_pb2.SignedFact] = []
        for wanted in ranges:
            stored = self.disk.facts.get(wanted.stream_id, [])
            assert 1 <= wanted.first <= wanted.last <= len(stored), "a push of facts that are not stored"
            facts += [fact.signed for fact in stored[wanted.first - 1 : wanted.last]]
        push = facts_pb2.FactPush(facts=facts[:PUSH_FACTS_MAX])
        self._send(peer, mesh_pb2.LinkMessage(fact_push=push))
