"""What goes wrong: a schedule of troubles drawn from the seed, all over by `TROUBLE_UNTIL_S` (some nodes stay dead).

At least `FAULTS_MIN` troubles really happen in every seed: one that finds nothing to break is drawn again.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from mesh import events
from mesh.facts import StreamId, make
from mesh.wire import facts_pb2, mesh_pb2
from tests.sim.checks import Checks
from tests.sim.clock import Clock
from tests.sim.network import Network

if TYPE_CHECKING:
    from tests.sim.host import Host

#: Virtual seconds in which things break. After that: only healing.
TROUBLE_UNTIL_S = 72.0
FAULTS_MIN = 10
#: Draws for one trouble before it is left out.
TRIES = 20


class Faults:
    def __init__(self, clock: Clock, network: Network, checks: Checks, rng: random.Random) -> None:
        self.clock = clock
        self.network = network
        self.checks = checks
        self.rng = rng
        self.dead: set[int] = set()  # for good
        self._addresses_given = 0
        always: list[Callable[[], bool]] = [
            self._split, self._isolate, self._one_way, self._one_way_pair, self._break_links, self._crash, self._crash,
            self._power_loss, self._pause, self._pause, self._stop, self._kill_leader, self._slow_disk, self._full_disk,
            self._lose_store, self._old_backup, self._clock_jump, self._losses, self._twice, self._move,
            self._freeze_engine, self._freeze_engine, self._crash_engine, self._press, self._two_histories,
        ]  # fmt: skip
        # Few kinds at a time: a run of pauses alone finds what a mixture hides.
        self._kinds = rng.sample(always, rng.choice([2, 3, 4, 6, 10, len(always)]))

    def lets_forget(self) -> bool:
        """Whether nodes may drop details of closed jobs in this world, for want of room or by a clock far ahead."""
        return self._press in self._kinds or self._clock_jump in self._kinds

    def schedule(self, together: bool) -> None:
        """Plan starts and troubles. Nodes start one after the other within seconds; some come late (churn)."""
        rng = self.rng
        late = 0.0 if together else rng.choice([0.0, 0.15, 0.4])
        for host in self.network.hosts:
            if together:
                host.start()
                continue
            is_late = host.index > 0 and rng.random() < late
            starts_at = rng.uniform(5.0, TROUBLE_UNTIL_S) if is_late else rng.uniform(0.0, rng.choice([0.2, 3.0]))
            self.clock.after(starts_at, host.start)
        count = rng.choice([FAULTS_MIN, 12, 16, 24, 40])
        if rng.random() < 0.3:  # all within a short time: they overlap
            begin = rng.uniform(3.0, TROUBLE_UNTIL_S - 15.0)
            times = [rng.uniform(begin, begin + 12.0) for _ in range(count)]
        else:
            times = [rng.uniform(3.0, TROUBLE_UNTIL_S - 2.0) for _ in range(count)]
        for at in times:
            self.clock.after(at, self._strike)
        self.clock.after(TROUBLE_UNTIL_S - 1.5, self._make_up)

    def _strike(self) -> None:
        for _ in range(TRIES):
            if self.rng.choice(self._kinds)():
                return

    def _make_up(self) -> None:
        """The chosen kinds found too little to break: break links until it is enough."""
        while self.checks.faults < FAULTS_MIN:
            self._isolate()

    # Troubles; each ends by itself, and says whether it happened

    def _split(self) -> bool:
        indices = list(range(len(self.network.hosts)))
        part = set(self.rng.sample(indices, self.rng.randint(1, len(indices) - 1)))
        pairs = [(a, b) for a in indices for b in indices if (a in part) != (b in part)]
        return self._block(pairs, f"split: {sorted(part)[:20]} from the rest")

    def _isolate(self) -> bool:
        alone = self._any().index
        others = [host.index for host in self.network.hosts if host.index != alone]
        return self._block(
            [pair for other in others for pair in ((alone, other), (other, alone))], f"n{alone} is cut off"
        )

    def _one_way(self) -> bool:
        deaf = self._any().index
        others = [host.index for host in self.network.hosts if host.index != deaf]
        if self.rng.random() < 0.5:
            return self._block([(other, deaf) for other in others], f"n{deaf} hears nobody")
        return self._block([(deaf, other) for other in others], f"nobody hears n{deaf}")

    def _one_way_pair(self) -> bool:
        a, b = self.rng.sample(range(len(self.network.hosts)), 2)
        return self._block([(a, b)], f"n{b} does not hear n{a}")

    def _break_links(self) -> bool:
        links = list(self.network.links)
        if not links:
            return False
        for link in self.rng.sample(links, min(len(links), self.rng.randint(1, 4))):
            self.checks.fault(None, f"link {link.ends[0].host.name}-{link.ends[1].host.name} breaks")
            self.network.break_link(link, self.rng.choice([0.05, 3.0]))
        return True

    def _losses(self) -> bool:
        if self.network.loss:
            return False
        self.network.loss = self.rng.choice([0.02, 0.1, 0.3])
        self.checks.fault(None, f"{self.network.loss:.0%} of all segments are lost")

        def mend() -> None:
            self.network.loss = 0.0
            self.checks.say(None, "healed: losses")

        self._later(20.0, mend)
        return True

    def _twice(self) -> bool:
        if self.network.twice:
            return False
        self.network.twice = self.rng.choice([0.02, 0.2])
        self.checks.fault(None, f"{self.network.twice:.0%} of all messages come twice, the second time late")

        def mend() -> None:
            self.network.twice = 0.0
            self.checks.say(None, "healed: messages come once")

        self._later(20.0, mend)
        return True

    def _crash(self) -> bool:
        return self._end(self._running(), 0.05, "the process is killed")

    def _power_loss(self) -> bool:
        return self._end(self._running(), 8.0, "loses power")

    def _kill_leader(self) -> bool:
        leader_ids = [host.leader.leader_id for host in self.network.hosts if host.replica and host.leader]
        leaders = [host for host in self.network.hosts if host.id in leader_ids and host.replica]
        return bool(leaders) and self._end(
            self.rng.choice(leaders), self.rng.choice([0.05, 8.0]), "the leader is killed"
        )

    def _pause(self) -> bool:
        host = self._running()
        if host is None or host.paused:
            return False
        self.checks.fault(host, "stands still")
        host.pause()
        life = host.life
        self._later(self.rng.choice([0.3, 2.0, 6.0, 12.0, 30.0]), lambda: host.resume() if host.life == life else None)
        return True

    def _stop(self) -> bool:
        host = self._running()
        if host is None or host.paused or host.index in self.dead:
            return False
        self.checks.fault(host, "is asked to stop")
        host.drain()
        life = host.life

        def stop() -> None:
            if host.life == life:
                host.run(lambda: host.handle(events.Stopping("asked to")), life)
                self.clock.after(self.rng.uniform(0.02, 0.5), end)

        def end() -> None:
            if host.life == life:
                self._end(host, self.rng.choice([0.05, 0.05, 2.0]), "ends")

        self.clock.after(self.rng.choice([0.0, 0.5, 3.0]), stop)
        return True

    def _two_histories(self) -> bool:
        """A copied machine: the same life of the same node says two things in one place, one of them to one peer."""
        host = self._running()
        peers = sorted(host.links) if host is not None and host.replica is not None and not host.paused else []
        if host is None or host.replica is None or not peers:
            return False
        library = host.replica.library
        stream_id = StreamId(host.id, library.writing_as, facts_pb2.FACT_STREAM_KNOWLEDGE)
        if stream_id in library.journal.forks:
            return False
        self.checks.fault(host, "says two things in one place")
        self.checks.forged.add(stream_id)
        sequence, predecessor = library.journal.next_of(stream_id)
        other = facts_pb2.KnowledgeAdded(title="another history")
        forged = make(host.key, library.writing_as, sequence, predecessor, 1, "knowledge_added", other)
        push = mesh_pb2.LinkMessage(fact_push=facts_pb2.FactPush(facts=[forged.signed]))
        self.network.send(host.links[self.rng.choice(peers)][-1], push.SerializeToString())
        own = facts_pb2.KnowledgeAdded(title="one history")
        host.handle(events.FactAuthored("knowledge_added", own, host.wall_clock_ms()))
        return True

    def _press(self) -> bool:
        """Its disk budget is nearly used up: details of closed jobs go at once."""
        host = self._running()
        if host is None or host.disk_used:
            return False
        self.checks.fault(host, "its disk budget is nearly used up")
        host.disk_used = 95

        def mend() -> None:
            host.disk_used = 0

        self._later(40.0, mend)
        return True

    def _freeze_engine(self) -> bool:
        host = self._running()
        if host is None or not host.has_agent or not host.labour.engine.moves:
            return False
        seconds = self.rng.choice([0.5, 3.0, 8.0, 25.0])
        self.checks.fault(host, f"its engine does not move for {seconds} s")
        host.labour.engine.freeze(seconds)
        return True

    def _crash_engine(self) -> bool:
        host = self._running()
        if host is None or not host.has_agent or not host.labour.engine.ready:
            return False
        self.checks.fault(host, "its engine dies")
        host.labour.engine.crash()
        return True

    def _slow_disk(self) -> bool:
        host = self._any()
        if host.disk.slow:
            return False
        host.disk.slow = True
        self.checks.fault(host, "its disk is slow")

        def mend() -> None:
            host.disk.slow = False

        self._later(15.0, mend)
        return True

    def _full_disk(self) -> bool:
        """Blobs are refused, and the first fact or vote to write stops the node; it starts again once there is room."""
        host = self._running()
        if host is None or host.disk.full:
            return False
        host.disk.full = host.disk.full_ever = True
        self.checks.fault(host, "its disk is full")

        def mend() -> None:
            host.disk.full = False
            if host.index not in self.dead:
                host.start()

        self._later(12.0, mend)
        return True

    def _lose_store(self) -> bool:
        """A node comes back with an empty store: the same key, nothing else."""
        host = self._running()
        if host is None or not self._may_lose(host):
            return False
        self._end(host, 0.05, "loses its whole store", for_good=False)
        self.checks.store_lost(host)
        host.disk.lose()
        return True

    def _old_backup(self) -> bool:
        """A node comes back with its store of some seconds ago."""
        host = self._running()
        if host is None or not self._may_lose(host):
            return False
        self.checks.fault(host, "a backup of its store is made")
        host.disk.back_up()

        def go_back() -> None:
            if host.replica is not None and self._may_lose(host):
                self._end(host, 0.05, "gets its old backup back", for_good=False)
                self.checks.store_lost(host)
                host.disk.restore_backup()

        self._later(30.0, go_back)
        return True

    def _clock_jump(self) -> bool:
        host = self._any()
        host.wall_skew_ms += int(self.rng.choice([-1, 1]) * self.rng.choice([3e3, 6e4, 3.6e6, 1e9]))
        self.checks.fault(host, f"its wall clock jumps and is off by {host.wall_skew_ms / 1000:.0f} s now")
        return True

    def _move(self) -> bool:
        host = self._any()
        if host.index == 0:
            return False  # it is everybody's seed
        self._addresses_given += 1
        given = self._addresses_given
        self.checks.fault(host, "gets another address")
        self.network.moved(host, (f"10.9.{given // 250}.{given % 250 + 1}", 4000 + host.index))
        return True

    # Inside

    def _any(self) -> Host:
        return self.rng.choice(self.network.hosts)

    def _running(self) -> Host | None:
        running = [host for host in self.network.hosts if host.replica is not None]
        return self.rng.choice(running) if running else None

    def _may_lose(self, host: Host) -> bool:
        """Not of one that stays dead. Several may be lost at a time: what has no copy left then is nobody's fault."""
        return host.index not in self.dead

    def _later(self, longest_s: float, mend: Callable[[], None]) -> None:
        left_s = TROUBLE_UNTIL_S - self.clock.now
        self.clock.after(max(0.0, min(left_s, self.rng.uniform(0.2, longest_s))), mend)

    def _block(self, pairs: list[tuple[int, int]], text: str) -> bool:
        self.checks.fault(None, text)
        self.network.block(pairs)

        def heal() -> None:
            self.checks.say(None, f"healed: {text}")
            self.network.unblock(pairs)

        self._later(self.rng.choice([4.0, 15.0, 30.0]), heal)
        return True

    def _end(self, host: Host | None, notice_max_s: float, text: str, *, for_good: bool = True) -> bool:
        if host is None or host.replica is None:
            return False
        self.checks.fault(host, text)
        host.crash(notice_max_s)
        revoked = {one.index for one in self.network.hosts if one.id in self.checks.revoked}
        others_left = len(self.network.hosts) - len(self.dead | revoked) > 2
        # n0 is everybody's seed: without it nodes that never met could not meet.
        if for_good and others_left and host.index != 0 and self.rng.random() < 0.12:
            self.dead.add(host.index)
            self.checks.say(host, "stays dead")
            self.checks.jobs.lost(host, self.dead)  # what it made while it was alone (seed 1255)
        else:
            self._later(self.rng.choice([0.3, 2.0, 8.0, 20.0]), host.start)
        return True
