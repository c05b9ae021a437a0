"""Gossip: how fast and at what cost a fact reaches everybody, in simulated meshes of 10, 100 and 1,000 nodes.

Nothing breaks here. Rounds are the seconds from a fact's sync at its author until 99.9 % of the nodes hold it durably,
in gossip intervals; with the eager push, and without it (anti-entropy alone, to compare with push-pull's yardstick).
Bytes and messages are what links carry, of all kinds, a node and second while nothing is said, and a node and fact.
The facts come one after the other, `GAP_S` apart, each from a node of its own; those on their way overlap.

KITH_BENCH_NODES_MAX leaves out the larger meshes: a thousand nodes take five minutes of CPU and 2.6 GB.
"""

import math
import random
import statistics
import sys
from collections import Counter
from functools import partial

from mesh import events, library
from mesh.gossip import INTERVAL_S
from mesh.wire import facts_pb2
from scripts.benches import size
from tests.sim.disk import Write
from tests.sim.formed import form, introduce
from tests.sim.host import Host
from tests.sim.world import World

SIZES = (10, 100, 1000)
FACTS = 20
GAP_S = 0.5
#: From a formed start until there is a leader and its first beats are answered.
SETTLE_S = 4.0
IDLE_S = 5.0
SPREAD_S = 30.0
#: After the last fact is everywhere, what the last exchanges still cost.
AFTER_S = 2.0
SHARE = 0.999


def figures() -> dict[str, float]:
    sizes = [nodes for nodes in SIZES if nodes <= size("nodes_max", SIZES[-1])]
    measured: dict[str, float] = {}
    for nodes in sizes:
        measured |= {f"{name}_{nodes}": value for name, value in measure(nodes).items()}
        print(f"  {nodes} nodes: {measured}", file=sys.stderr, flush=True)
    for nodes in sizes:
        rounds = measure(nodes, push=False)
        measured[f"pull_rounds_p50_{nodes}"] = rounds["rounds_p50"]
        measured[f"pull_rounds_max_{nodes}"] = rounds["rounds_max"]
    return measured


def measure(nodes: int, *, push: bool = True) -> dict[str, float]:
    world = calm_world(nodes)
    settings = vars(library)
    eager = settings["PUSH_PEERS"]
    try:
        if not push:
            settings["PUSH_PEERS"] = 0
        idle = world.network.messages, world.network.bytes
        world.clock.run_until(SETTLE_S + IDLE_S)
        messages = (world.network.messages - idle[0]) / nodes / IDLE_S
        idle_bytes = (world.network.bytes - idle[1]) / nodes / IDLE_S
        before, since = world.network.bytes, world.clock.now
        took = spread(world, random.Random(nodes))
        fact_bytes = ((world.network.bytes - before) / nodes - idle_bytes * (world.clock.now - since)) / FACTS
    finally:
        settings["PUSH_PEERS"] = eager
    return {
        "rounds_p50": round(statistics.median(took) / INTERVAL_S, 2),
        "rounds_max": round(max(took) / INTERVAL_S, 2),
        "bytes_per_fact_per_node": round(fact_bytes),
        "messages_per_node_per_s": round(messages, 1),
        "bytes_per_node_per_s": round(idle_bytes),
    }


def calm_world(nodes: int) -> World:
    """A formed mesh with a leader, in which nothing breaks and nothing is asked."""
    world = World(1, nodes)
    world.network.latency_max_s = 0.002
    for host in world.hosts:
        host.stores, host.has_agent = True, False
    introduce(world.hosts)
    for host in world.hosts:
        host.start()
    form(world.network, world.hosts)
    rng = random.Random(0)
    for host in world.hosts:
        assert host.replica is not None
        # Formed long ago: the next full exchange of members is as far as in any other minute.
        every_s = host.replica.membership.timing.exchange_every_s(nodes)
        host.replica.membership.next_exchange_at = host.now() + every_s * rng.random()
    world.clock.run_until(SETTLE_S)
    return world


def spread(world: World, rng: random.Random) -> list[float]:
    """`FACTS` nodes say something, one after the other. Seconds until `SHARE` of all hold each; infinite: never."""
    wanted = math.ceil(SHARE * len(world.hosts))
    holding: Counter[bytes] = Counter()
    began: dict[bytes, float] = {}
    took: dict[bytes, float] = {}

    def synced(write: Write) -> None:
        for fact in write.facts:
            if fact.kind == "knowledge_added":
                began.setdefault(fact.hash, world.clock.now)
                holding[fact.hash] += 1
                if holding[fact.hash] == wanted:
                    took[fact.hash] = world.clock.now - began[fact.hash]

    for host in world.hosts:
        host.disk.on_synced = synced
    for number in range(FACTS):
        world.clock.after(number * GAP_S, partial(say, rng.choice(world.hosts), number))
    world.clock.run_until(world.clock.now + FACTS * GAP_S)
    until = world.clock.now + SPREAD_S
    while len(took) < FACTS and world.clock.now < until:
        world.clock.run_until(world.clock.now + 0.1)
    world.clock.run_until(world.clock.now + AFTER_S)
    return [took.get(name, math.inf) for name in began]


def say(author: Host, number: int) -> None:
    said = facts_pb2.KnowledgeAdded(title=f"news {number}", text="words " * 20)
    author.handle(events.FactAuthored("knowledge_added", said, author.wall_clock_ms()))
