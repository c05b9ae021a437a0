"""A worker that is lost for good while a task runs on it, late, and not the leader: in some worlds.

Before, a lost machine mostly comes back and says that it runs nothing, or the next change of leaders forgets what it
had; late, nothing but the news of its death sets its task free.

Drawn from randomness of its own, so that the other worlds live as they would without it.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from tests.sim.checks import LARGE, Checks
from tests.sim.clock import Clock
from tests.sim.faults import TROUBLE_UNTIL_S, Faults
from tests.sim.network import Network

if TYPE_CHECKING:
    from tests.sim.host import Host

#: One world in so many has one.
WORLDS = 3
#: From here to the end of trouble somebody at work is looked for, this often.
FROM_S, LOOK_S = TROUBLE_UNTIL_S - 8.0, 0.3
#: Nodes of the mesh that stay.
LEFT_MIN = 3


class Losses:
    def __init__(self, clock: Clock, network: Network, checks: Checks, faults: Faults, seed: int) -> None:
        self.clock = clock
        self.network = network
        self.checks = checks
        self.faults = faults
        self.rng = random.Random(f"losses of {seed}")

    def start(self) -> None:
        if len(self.network.hosts) < LARGE and not self.rng.randrange(WORLDS):
            self.clock.after(FROM_S + self.rng.uniform(0.0, 4.0), self._look)

    def _look(self) -> None:
        staying = [host for host in self.network.hosts if self._stays(host)]
        if self.clock.now > TROUBLE_UNTIL_S or len(staying) <= LEFT_MIN:
            return
        victims = [host for host in staying if _is_at_work(host)]
        if not victims:
            self.clock.after(LOOK_S, self._look)
            return
        victim = self.rng.choice(victims)
        self.checks.fault(victim, "is lost for good, at work")
        self.faults.dead.add(victim.index)
        victim.crash(self.rng.choice([0.05, 8.0]))
        self.checks.jobs.lost(victim, self.faults.dead)  # what it made while it was alone (seed 312)

    def _stays(self, host: Host) -> bool:
        return host.replica is not None and host.index not in self.faults.dead and host.id not in self.checks.revoked


def _is_at_work(host: Host) -> bool:
    """n0 is everybody's seed, so it is never lost for good."""
    if host.replica is None or host.index == 0 or host.leader is None or host.leader.leader_id == host.id:
        return False
    return any(one.uses_engine for one in host.replica.work.intake.running.values())
