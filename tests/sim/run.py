"""Run one seed, or many: `python -m tests.sim.run --seed N [--story]`, `python -m tests.sim.run --seeds A-B`.

A seed decides everything: the number of nodes, the network, the disks, what is said, what breaks and when. So a seed
that fails once fails always, and its story can be read.
"""

import argparse
import random
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.sim.checks import Checks
from tests.sim.clock import Clock
from tests.sim.faults import TROUBLE_UNTIL_S, Faults
from tests.sim.host import Host
from tests.sim.network import Network
from tests.sim.workload import Workload

VIRTUAL_S = 60.0
#: From here to the end nothing may change its mind.
QUIET_SINCE_S = 54.0
STORY_LINES_SHOWN = 120


@dataclass
class SimResult:
    """What a run came to. `problems` is empty when all held."""

    seed: int
    nodes: int = 0
    live: int = 0
    events: int = 0
    facts: int = 0
    leader_changes: int = 0
    settled_at_s: float = 0.0  # the last change of a leader anywhere, in virtual seconds
    virtual_s: float = VIRTUAL_S
    wall_s: float = 0.0
    problems: list[str] = field(default_factory=list)
    story: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    def describe(self) -> str:
        """For people: what failed, the end of the story, and how to see it again."""
        lines = [f"seed {self.seed}: {self.nodes} nodes, {self.live} live at the end, {self.events} events"]
        if len(self.story) > STORY_LINES_SHOWN:
            lines.append(f"… {len(self.story) - STORY_LINES_SHOWN} earlier lines: add --story")
        lines += self.story[-STORY_LINES_SHOWN:]
        lines += [f"PROBLEM: {problem}" for problem in self.problems]
        lines.append(f"replay: python -m tests.sim.run --seed {self.seed} --story")
        return "\n".join(lines)


def run_seed(seed: int) -> SimResult:
    """Simulate `VIRTUAL_S` seconds of a mesh of 3 to 7 nodes. Never raises for a broken invariant: it reports it."""
    result = SimResult(seed)
    wall = time.perf_counter()
    clock = Clock()
    checks = Checks(clock)
    result.story = checks.story
    try:
        hosts = _simulate(seed, clock, checks)
        live = [host for host in hosts if host.replica is not None]
        result.problems = checks.quiet_problems(live, QUIET_SINCE_S)
        result.nodes, result.live = len(hosts), len(live)
        result.facts = len(live[0].disk.order)
    except Exception:
        result.problems = [f"at {clock.now:.3f}: {traceback.format_exc()}"]
    result.events = checks.events
    result.leader_changes = checks.leader_changes
    result.settled_at_s = checks.last_change_at
    result.wall_s = time.perf_counter() - wall
    return result


def _simulate(seed: int, clock: Clock, checks: Checks) -> list[Host]:
    rng = random.Random(seed)

    def part() -> random.Random:
        return random.Random(rng.getrandbits(64))

    network = Network(clock, part())
    network.hosts = [Host(index, clock, network, checks, part()) for index in range(rng.randint(3, 7))]
    if rng.random() < 0.5:
        _seed_addresses(network.hosts, rng)
    else:
        _advertise(network, clock, part())
    faults = Faults(clock, network, checks, part())
    faults.schedule()
    workload = Workload(clock, network, part(), until_s=TROUBLE_UNTIL_S + 15.0)
    workload.start()
    clock.run_until(VIRTUAL_S)
    return network.hosts


def _seed_addresses(hosts: Sequence[Host], rng: random.Random) -> None:
    """Static seeds: everyone knows n0, and some also others or an address where nobody lives."""
    for host in hosts[1:]:
        host.seeds = [hosts[0].address]
        if rng.random() < 0.3:
            host.seeds.append(rng.choice(hosts).address)
        if rng.random() < 0.2:
            host.seeds.append(("10.9.9.9", 9))


def _advertise(network: Network, clock: Clock, rng: random.Random) -> None:
    """mDNS: a started node's advert reaches the others within two seconds, where no partition is between them."""
    from mesh import events

    seen: dict[tuple[int, int], tuple[int, int]] = {}  # (advertiser, listener) → the lives that met

    def browse() -> None:
        for advertiser in network.hosts:
            for listener in network.hosts:
                pair = (advertiser.index, listener.index)
                lives = (advertiser.life, listener.life)
                if (
                    advertiser.replica is not None
                    and listener.replica is not None
                    and not listener.paused
                    and seen.get(pair) != lives
                    and rng.random() < 0.3
                    and not network.is_blocked(advertiser, listener)
                ):
                    seen[pair] = lives
                    listener.handle(events.AddressFound(*advertiser.address, "mdns"))
        clock.after(0.3, browse)

    browse()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.run", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, help="run one seed")
    parser.add_argument("--seeds", metavar="A-B", help="run a range of seeds")
    parser.add_argument("--story", action="store_true", help="print all that happened")
    parser.add_argument("--no-rate", action="store_true", help="leave out what differs from run to run: the speed")
    parser.add_argument("--stop", action="store_true", help="stop at the first failure")
    options = parser.parse_args(arguments)
    if options.seeds:
        first, last = (int(part) for part in options.seeds.split("-"))
    else:
        first = last = options.seed if options.seed is not None else 1
    started = time.process_time()
    failed: list[int] = []
    events = 0
    for seed in range(first, last + 1):
        result = run_seed(seed)
        events += result.events
        if options.story:
            print("\n".join(result.story))
        if not result.ok:
            failed.append(seed)
            print(result.describe(), flush=True)
            if options.stop:
                break
    cpu_s = max(time.process_time() - started, 1e-9)
    ran = seed - first + 1
    print(f"{ran} seeds, {len(failed)} failed {failed[:50]}")
    if not options.no_rate:
        print(f"{events} events, {cpu_s:.1f} s of CPU, {ran * VIRTUAL_S / cpu_s:.0f} virtual s a second of CPU")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
