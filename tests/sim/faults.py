"""What goes wrong: a schedule of troubles drawn from the seed, all over by `TROUBLE_UNTIL_S` (some nodes stay dead)."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from mesh import events
from tests.sim.checks import Checks
from tests.sim.clock import Clock
from tests.sim.network import Network

if TYPE_CHECKING:
    from tests.sim.host import Host

#: Virtual seconds in which things break. After that: only healing.
TROUBLE_UNTIL_S = 26.0


class Faults:
    def __init__(self, clock: Clock, network: Network, checks: Checks, rng: random.Random) -> None:
        self.clock = clock
        self.network = network
        self.checks = checks
        self.rng = rng
        self.dead: set[int] = set()  # for good

    def schedule(self) -> None:
        """Plan starts and troubles. Nodes start one after the other within seconds; some come late."""
        rng = self.rng
        for host in self.network.hosts:
            starts_at = rng.uniform(0.0, 15.0) if rng.random() < 0.15 else rng.uniform(0.0, rng.choice([0.2, 3.0]))
            self.clock.after(starts_at, host.start)
        kinds: list[Callable[[], None]] = [
            self._split, self._isolate, self._one_way, self._one_way_pair, self._break_links, self._crash, self._crash,
            self._power_loss, self._pause, self._pause, self._stop, self._slow_disk, self._kill_leader,
        ]  # fmt: skip
        # Few kinds at a time: a run of pauses alone finds what a mixture hides.
        chosen = rng.sample(kinds, rng.randint(1, 6))
        for _ in range(rng.choice([0, 3, 6, 10, 16, 24])):
            self.clock.after(rng.uniform(1.0, TROUBLE_UNTIL_S - 2.0), rng.choice(chosen))

    # Troubles; each ends by itself

    def _split(self) -> None:
        indices = list(range(len(self.network.hosts)))
        part = set(self.rng.sample(indices, self.rng.randint(1, len(indices) - 1)))
        pairs = [(a, b) for a in indices for b in indices if (a in part) != (b in part)]
        self._block(pairs, f"split: {sorted(part)} from the rest")

    def _isolate(self) -> None:
        alone = self._any().index
        others = [host.index for host in self.network.hosts if host.index != alone]
        self._block([pair for other in others for pair in ((alone, other), (other, alone))], f"n{alone} is cut off")

    def _one_way(self) -> None:
        deaf = self._any().index
        others = [host.index for host in self.network.hosts if host.index != deaf]
        if self.rng.random() < 0.5:
            self._block([(other, deaf) for other in others], f"n{deaf} hears nobody")
        else:
            self._block([(deaf, other) for other in others], f"nobody hears n{deaf}")

    def _one_way_pair(self) -> None:
        a, b = self.rng.sample(range(len(self.network.hosts)), 2)
        self._block([(a, b)], f"n{b} does not hear n{a}")

    def _break_links(self) -> None:
        links = list(self.network.links)
        for link in self.rng.sample(links, min(len(links), self.rng.randint(1, 4))):
            self.checks.say(None, f"link {link.ends[0].host.name}-{link.ends[1].host.name} breaks")
            self.network.break_link(link, self.rng.choice([0.05, 3.0]))

    def _crash(self) -> None:
        self._end(self._any(), notice_max_s=0.05)

    def _power_loss(self) -> None:
        self._end(self._any(), notice_max_s=8.0)

    def _kill_leader(self) -> None:
        leader_ids = [host.leader.leader_id for host in self.network.hosts if host.replica and host.leader]
        leaders = [host for host in self.network.hosts if host.key.node_id in leader_ids]
        if leaders:
            self._end(self.rng.choice(leaders), notice_max_s=self.rng.choice([0.05, 8.0]))

    def _pause(self) -> None:
        host = self._any()
        if not host.paused and host.replica is not None:
            host.pause()
            life = host.life
            self._later(self.rng.choice([0.3, 2.0, 6.0, 12.0]), lambda: host.resume() if host.life == life else None)

    def _stop(self) -> None:
        host = self._any()
        if host.replica is None or host.paused or host.index in self.dead:
            return
        self.checks.say(host, "is asked to stop")
        host.handle(events.Stopping("asked to"))
        life = host.life

        def end() -> None:
            if host.life == life:
                self._end(host, notice_max_s=self.rng.choice([0.05, 0.05, 2.0]))

        self.clock.after(self.rng.uniform(0.02, 0.5), end)

    def _slow_disk(self) -> None:
        disk = self._any().disk
        disk.slow = True

        def mend() -> None:
            disk.slow = False

        self._later(10.0, mend)

    # Inside

    def _any(self) -> Host:
        return self.rng.choice(self.network.hosts)

    def _later(self, longest_s: float, mend: Callable[[], None]) -> None:
        left_s = TROUBLE_UNTIL_S - self.clock.now
        self.clock.after(min(left_s, self.rng.uniform(0.2, longest_s)), mend)

    def _block(self, pairs: list[tuple[int, int]], text: str) -> None:
        self.checks.say(None, text)
        self.network.block(pairs)

        def heal() -> None:
            self.checks.say(None, f"healed: {text}")
            self.network.unblock(pairs)

        self._later(12.0, heal)

    def _end(self, host: Host, notice_max_s: float) -> None:
        if host.replica is None:
            return
        host.crash(notice_max_s)
        others_left = len(self.network.hosts) - len(self.dead) > 2
        # n0 is everybody's seed: without it nodes that never met could not meet.
        if others_left and host.index != 0 and self.rng.random() < 0.15:
            self.dead.add(host.index)
            self.checks.say(host, "stays dead")
        else:
            self._later(self.rng.choice([0.3, 2.0, 8.0]), host.start)
