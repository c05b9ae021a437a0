"""Jobs handed in on both sides of a cut, in some worlds: each side plans and works on its own until they meet, halfway
through or after the end.

Drawn from randomness of its own, so that the other worlds live as they would without it.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from tests.sim.clients import Clients, Order

if TYPE_CHECKING:
    from tests.sim.host import Host

#: One world in so many has them.
WORLDS = 3
#: A cut is felt after this: then the sides are asked.
FELT_S = 3.0
SHAPES = ("6,1", "8,2,1", "12,1", "4,4,1")
FIRST_NUMBER = 1_000


class Twins:
    def __init__(self, clients: Clients, seed: int, until_s: float) -> None:
        self.clients = clients
        self.clock, self.network, self.checks = clients.clock, clients.network, clients.checks
        self.rng = random.Random(f"twins of {seed}")
        self.until_s = until_s

    def start(self) -> None:
        if self.rng.randrange(WORLDS):
            return
        for number in range(self.rng.choice([1, 2, 3])):
            at = self.rng.uniform(5.0, self.until_s - 25.0)
            self.clock.after(at, lambda number=number: self._cut(FIRST_NUMBER + number))  # type: ignore[misc]

    def _cut(self, number: int) -> None:
        rng, hosts = self.rng, self.network.hosts
        indices = list(range(len(hosts)))
        part = set(rng.sample(indices, rng.randint(1, len(indices) - 1)))
        pairs = [(a, b) for a in indices for b in indices if (a in part) != (b in part)]
        self.checks.fault(None, f"split: {sorted(part)[:20]} from the rest, and both are asked for one job")
        self.network.block(pairs)
        words = rng.choice(["", "", "flaky"])
        order = self.clients.draw(rng, number, rng.choice(SHAPES), words, rng.choice([1, 1, 3]))
        for side in (part, set(indices) - part):
            self.clock.after(FELT_S, lambda side=side: self._ask(order, side))  # type: ignore[misc]

        def heal() -> None:
            self.checks.say(None, f"healed: the split of job {order.job_id.hex()[:12]}")
            self.network.unblock(pairs)

        self.clock.after(FELT_S + rng.uniform(1.0, 15.0), heal)

    def _ask(self, order: Order, side: set[int]) -> None:
        open_doors: list[Host] = [host for host in self.clients.open_doors() if host.index in side]
        if open_doors:
            self.clients.ask(self.rng.choice(open_doors), order)
