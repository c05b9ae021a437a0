"""One machine of the simulated world: its key, clocks and disk, and a process that may run, hang, crash and restart.

It is the shell: it runs a Replica's effects exactly as mesh/effects.py asks, and shows every message that leaves and
every event that was handled to `Checks`. What takes a worker or a leader time is done by `Labour`.

Each host has clocks of its own: a monotonic one with an offset and a drift, and a wall clock that may be far
off and may jump. No host sees the world's time.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from mesh import effects, events
from mesh.facts import Fact, Retired, StreamId, parse_retired
from mesh.identity import NodeId, NodeKey
from mesh.journal import places_beside
from mesh.replica import Replica
from mesh.wire import common_pb2, facts_pb2, membership_pb2, mesh_pb2
from tests.sim.clock import Call, Clock
from tests.sim.disk import Disk, Write
from tests.sim.labour import Answered, Labour
from tests.sim.network import End, Network

if TYPE_CHECKING:
    from tests.sim.checks import Checks

TICK_S = 0.1
#: From the second link to a peer until one is dropped.
TWIN_GRACE_S = 2.0
#: Ticks between two looks at the disk.
MEASURED_EVERY = 30
#: From a denial until the links of its node end.
FAREWELL_S = 0.1
#: Facts in one push; the rest waits for the next round.
PUSH_FACTS_MAX = 64
#: Effects that only show people something.
FOR_PEOPLE = (effects.MemberChanged, effects.Deliver)
#: The wall clock of the world's first moment.
EPOCH_MS = 1_790_000_000_000
#: Quartz on cheap boards is off by up to so much.
DRIFT_MAX = 1e-4


class Host:
    def __init__(self, index: int, clock: Clock, network: Network, checks: Checks, rng: random.Random) -> None:
        self.index = index
        self.name = f"n{index}"
        self.clock = clock
        self.network = network
        self.checks = checks
        self.rng = rng
        self.key = NodeKey.from_scalar(rng.getrandbits(255) + 1)
        self.id: NodeId = self.key.node_id
        self.address = (f"10.0.{index // 250}.{index % 250 + 1}", 4000 + index)
        network.addresses[self.address] = self
        self.disk = Disk(clock, rng)
        self.disk.on_error = self._disk_failed
        self.disk.on_synced = lambda write: checks.jobs.synced(self, write)
        self.slots = rng.choice([1, 1, 2, 4])
        self.pace = rng.choice([0.1, 0.3, 1.0, 1.0, 3.0])  # a task takes so many times its usual two seconds
        self.stores = True  # holds copies for others
        self.has_agent = True
        self.is_thief = False  # lets no denial of itself in
        self.is_known = False  # everybody's store holds its profile
        self.seeds: list[tuple[str, int]] = []
        self.cache: set[tuple[str, int]] = set()  # addresses where a peer answered: kept over restarts
        self.wall_skew_ms = rng.randint(-5000, 5000)
        self._clock_offset = rng.uniform(0.0, 1e6)
        self._clock_rate = 1.0 + rng.uniform(-DRIFT_MAX, DRIFT_MAX)
        self.life = 0  # starts and ends so far
        self.replica: Replica | None = None
        self.paused = False
        self.leader: common_pb2.FencingToken | None = None  # as the machine told its shell last
        self.links: dict[NodeId, list[End]] = {}
        self._deferred: list[Call] = []
        self.awake_since = 0.0
        self.ended_at = 0.0
        self._ticks = 0
        self._sent: tuple[mesh_pb2.LinkMessage | None, bytes] = (None, b"")  # the last message
        self.draining = False
        self.disk_used = 0  # percent of its budget, as it is told
        self.labour: Labour

    def now(self) -> float:
        """This host's monotonic clock."""
        return self._clock_offset + self.clock.now * self._clock_rate

    def wall_clock_ms(self) -> int:
        return EPOCH_MS + int(self.clock.now * 1000) + self.wall_skew_ms

    # Life

    def start(self) -> None:
        if self.replica is not None:
            return
        self.life += 1
        self.paused = False
        self.leader = None
        self.links = {}
        self._deferred = []
        self.awake_since = self.clock.now
        self.draining = False
        # Seconds since 1970 as the daemon sees them: a wall clock set back makes it start below its past.
        life_s = self.wall_clock_ms() // 1000
        rng = random.Random(self.rng.getrandbits(64))
        self.replica = Replica(self.key, self.rng.getrandbits(64), life_s, rng, slots=self.slots)
        content = self.disk.content
        self.replica.restore(
            content.facts.values(), content.term, content.voted_for,
            retired=content.retired(),
            forks=content.forks.values(),
            blobs=[common_pb2.BlobRef(sha256=sha256, size_bytes=len(blob)) for sha256, blob in content.blobs.items()],
        )  # fmt: skip
        self.labour = Labour(self, random.Random(self.rng.getrandbits(64)))
        self.checks.started(self)
        if not self.is_known:
            self.handle(events.FactAuthored("node_profile", self.profile(), self.wall_clock_ms()))
        for found_by, addresses in (("seed", self.seeds), ("cache", sorted(self.cache))):
            for host, port in addresses:
                self.handle(events.AddressFound(host, port, found_by))
        if self.has_agent:
            self.labour.engine.boot()
        self._tick(self.life)

    def crash(self, notice_max_s: float) -> None:
        """The process is gone at once; peers hear of it within `notice_max_s`."""
        if self.replica is None:
            return
        self.replica = None
        self.life += 1  # whatever is under way belongs to nobody
        self.ended_at = self.clock.now
        self.paused = False
        self.disk.crash()
        self.network.host_died(self, notice_max_s)
        self.checks.ended(self)

    def pause(self) -> None:
        if self.replica is not None:
            self.paused = True
            self.checks.say(self, "is paused")

    def resume(self) -> None:
        """Goes on: what came meanwhile is read before or after the timers fire."""
        if not self.paused:
            return
        self.paused = False
        self.awake_since = self.clock.now
        self.checks.say(self, "goes on")
        deferred, self._deferred = self._deferred, []
        life = self.life
        if self.rng.random() < 0.5:
            self.handle(events.Ticked(self.wall_clock_ms()))
        for call in deferred:
            self.run(call, life)
        self._tick(life)

    def submit(
        self, submitted: facts_pb2.JobSubmitted, documents: Sequence[bytes], deadline_s: float, answered: Answered
    ) -> None:
        """A client hands in a job here."""
        self.labour.submit(submitted, documents, deadline_s, answered)

    def drain(self) -> None:
        """The process will be asked to stop."""
        self.draining = True
        self.handle(events.Draining())

    # What arrives

    def deliver(self, event: events.Event, life: int) -> None:
        if isinstance(event, events.DialSucceeded) and event.node_id != self.id:
            self.cache.add((event.host, event.port))
        self.run(partial(self.handle, event), life)

    def handle(self, event: events.Event) -> None:
        if self.replica is None:
            return
        caused = self.replica.handle(event, self.now())
        if caused or not isinstance(event, events.Ticked):
            self.checks.handled(self, event)
        self.perform(caused)

    def receive(self, end: End, data: bytes) -> None:
        if self.life != end.life or self.replica is None:
            return
        if self.paused:
            self._deferred.append(partial(self._read, end, data))
        else:
            self._read(end, data)

    def link_up(self, end: End, hello: membership_pb2.Hello, stuck: Sequence[End] = ()) -> None:
        """As node/links.py: `stuck` are the links that this one was dialled to replace."""

        def up() -> None:
            if not end.link.alive:
                return  # it broke before it was known here
            peer = NodeId(hello.node_id)
            for old in self.linked(peer):
                if old.other.life != end.other.life:
                    self._cut(old)  # of an earlier life of the peer, whose end was not noticed yet
            if end.dialled and any(old.dialled and old not in stuck for old in self.linked(peer)):
                self.network.break_link(end.link, 0.05)
                return
            first = peer not in self.links
            self.links.setdefault(peer, []).append(end)
            for old in stuck:
                self._cut(old)
            if first:
                self.handle(events.LinkOpened(hello, "" if end.dialled else end.other.host.address[0]))
            elif self.id > peer:
                self.clock.after(TWIN_GRACE_S, lambda: self.run(lambda: self._drop_twin(peer), end.life))

        self.run(up, end.life)

    def linked(self, peer: NodeId | None) -> list[End]:
        """Open links to a peer, as this host knows; the newest last."""
        return list(self.links.get(peer, ())) if peer is not None else []

    def link_lost(self, end: End) -> None:
        def down() -> None:
            peer = end.other.host.id
            if end in self.links.get(peer, ()):
                self._remove(end, peer)

        self.run(down, end.life)

    def hello(self) -> membership_pb2.Hello:
        assert self.replica is not None
        return membership_pb2.Hello(
            node_id=self.id,
            incarnation=self.replica.incarnation,
            public_key=self.key.public_key,
            protocol_version=3,
            protocol_version_min=3,
            life=self.replica.membership.life,
            name=self.name,
            addresses=[common_pb2.NodeAddress(host=self.address[0], port=self.address[1])],
        )

    def profile(self) -> facts_pb2.NodeProfile:
        profile = facts_pb2.NodeProfile(name=self.name, stores=self.stores)
        if self.has_agent:
            profile.agents.add(agent="default", slots=self.slots, abilities=["generate", "chat"])
        return profile

    def run(self, call: Call, life: int) -> None:
        """Run now, or when the process goes on; never in another life."""
        if self.life != life or self.replica is None:
            return
        if self.paused:
            self._deferred.append(call)
        else:
            call()

    # Effects

    def perform(self, caused: Sequence[effects.Effect]) -> None:
        for effect in caused:
            if self.replica is None:
                return
            if isinstance(effect, effects.Send):
                self._send(effect.peer, effect.message)
            elif not isinstance(effect, FOR_PEOPLE):
                self.perform_one(effect)

    def perform_one(self, effect: effects.Effect) -> None:
        life = self.life
        match effect:
            case effects.Dial():
                self.network.dial(self, effect)
            case effects.Persist(facts, source, retired):
                if source is None:
                    self.checks.jobs.authored(self, facts)
                persisted = events.Persisted(facts, source, retired)
                self.disk.write(Write(facts, retired, done=partial(self.deliver, persisted, life)))
            case effects.PushStored():
                self._push_stored(effect)
            case effects.CompareStored(peer, facts):
                self._compare_stored(peer, facts)
            case effects.SaveFork(fork):
                self.checks.fork_found(self, fork)
                self.disk.write(Write(fork=fork, done=lambda: self.run(lambda: self._fork_saved(fork.stream_id), life)))
            case effects.SaveProof(fork):
                self.checks.fork_found(self, fork)
                self.disk.write(Write(fork=fork))
            case effects.CutStreams(ends):
                streams = tuple(stream_id for stream_id, _ in ends)
                self.disk.write(Write(cut=ends, done=lambda: self.run(lambda: self._streams_cut(streams), life)))
            case effects.CutOff(node_id, farewell):
                wait_s = FAREWELL_S if farewell else 0.0
                self.clock.after(wait_s, lambda: self.run(lambda: self._cut_off(node_id), life))
            case effects.RetireFacts(ranges):
                self.disk.write(Write(retire=ranges))
            case effects.DropBlobs(sha256):
                self.disk.write(Write(dropped_blobs=sha256))
            case effects.SaveVote(term, voted_for, then):
                saved = events.VoteSaved(term, voted_for)

                def told() -> None:
                    self.run(lambda: self.perform(then), life)
                    self.deliver(saved, life)

                self.disk.write(Write(vote=(term, voted_for), done=told))
            case effects.LeaderChanged(token):
                self.leader = token
                self.checks.leader_changed(self, token)
            case effects.FactsApplied(facts):
                self.checks.applied(self, facts)
            case effects.Log(level, text):
                self.checks.logged(self, level, text)
            case _:
                self.labour.perform(effect)

    # Inside

    def _tick(self, life: int) -> None:
        if self.life != life or self.replica is None or self.paused:
            return
        self.handle(events.Ticked(self.wall_clock_ms()))
        self._ticks += 1
        if self._ticks % MEASURED_EVERY == 0:
            self.handle(events.DiskMeasured(self.disk_used, 100))
            self.checks.jobs.looked_at(self)
        self.clock.after(self.rng.uniform(0.08, TICK_S), partial(self._tick, life))

    def _disk_failed(self) -> None:
        if self.replica is not None:
            self.checks.say(self, "can not write: it stops")
            self.crash(0.05)

    def _drop_twin(self, peer: NodeId) -> None:
        """Of two links the node with the higher id closes the one that it dialled."""
        ends = self.linked(peer)
        if any(not end.dialled for end in ends):
            for end in ends:
                if end.dialled:
                    self.network.break_link(end.link, 0.05)

    def _cut_off(self, node_id: NodeId) -> None:
        for end in self.linked(node_id):
            self._cut(end)

    def _cut(self, end: End) -> None:
        """End a link at once on this side."""
        peer = end.other.host.id
        if end in self.links.get(peer, ()):
            self._remove(end, peer)
            self.network.break_link(end.link, 1.0)

    def _remove(self, end: End, peer: NodeId) -> None:
        self.links[peer].remove(end)
        if not self.links[peer]:
            del self.links[peer]
            self.handle(events.LinkClosed(peer))

    def _read(self, end: End, data: bytes) -> None:
        peer = end.other.host.id
        if end not in self.links.get(peer, ()):
            return
        message = mesh_pb2.LinkMessage.FromString(data)
        life = self.life
        match message.WhichOneof("message"):
            case "fact_push":
                signed = message.fact_push.facts
                facts = tuple(self.checks.read_fact(one) for one in signed if one.body)
                if self.is_thief:
                    facts = tuple(fact for fact in facts if fact.body.deny.node_id != self.id)
                retired = tuple(parse_retired(one.retired) for one in signed if one.HasField("retired"))
                verified: events.Event = events.FactsVerified(peer, facts, retired)
            case "fork_proof":
                proof = message.fork_proof
                verified = events.ForkProven(peer, self.checks.read_fact(proof.one), self.checks.read_fact(proof.other))
            case _:
                self.handle(events.Received(peer, message))
                return
        # Signatures are checked off the loop, so other messages may overtake facts.
        self.clock.after(self.rng.uniform(0.0005, 0.005), partial(self.deliver, verified, life))

    def _send(self, peer: NodeId, message: mesh_pb2.LinkMessage) -> None:
        assert peer != self.id, "a node writes to itself"
        ends = self.links.get(peer)
        if ends:
            if message is not self._sent[0]:  # one that goes to several is looked at and written once
                self.checks.sent(self, peer, message)
                self._sent = (message, message.SerializeToString())
            self.network.send(ends[-1], self._sent[1])

    # Reading the store

    def _push_stored(self, effect: effects.PushStored) -> None:
        push: list[facts_pb2.SignedFact] = []
        for wanted in effect.ranges:
            items = self.disk.content.streams.get(wanted.stream_id, [])
            assert self.disk.content.end_of(wanted.stream_id) >= wanted.last, "a push of facts that are not stored"
            stored = [item for item in items if item.last >= wanted.first and item.first <= wanted.last]
            stored = stored[: max(0, PUSH_FACTS_MAX - len(push))]
            while stored and isinstance(stored[-1], Retired):
                stored.pop()
            push += [item.signed if isinstance(item, Fact) else _cut_to(item, wanted.first).wire() for item in stored]
        if push:
            self._send(effect.peer, mesh_pb2.LinkMessage(fact_push=facts_pb2.FactPush(facts=push)))

    def _compare_stored(self, peer: NodeId, offered: tuple[Fact, ...]) -> None:
        content = self.disk.content
        hashes = [content.heads.get(place) for place in places_beside(offered)]
        stored = tuple(content.facts[one] for one in hashes if one in content.facts)
        life = self.life
        self.clock.after(0.002, lambda: self.deliver(events.StoredCompared(peer, offered, stored), life))

    def _streams_cut(self, streams: tuple[StreamId, ...]) -> None:
        self.handle(events.StreamsCut(streams, tuple(self.disk.content.facts.values())))

    def _fork_saved(self, stream_id: StreamId) -> None:
        self.handle(events.ForkSaved(stream_id, tuple(self.disk.content.facts.values())))


def _cut_to(gone: Retired, first: int) -> Retired:
    """A retired range that began before what the peer lacks is cut to it."""
    return Retired(gone.stream_id, max(first, gone.first), gone.last, gone.head)
