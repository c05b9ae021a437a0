"""Gossip: how fast and at what cost a fact reaches everybody, in simulated meshes of 10, 100 and 1,000 nodes.

Nothing breaks here. Rounds are the seconds from a fact's sync at its author until 99.9 % of the nodes hold it durably,
in gossip intervals; with the eager push, and without it (anti-entropy alone, to compare with push-pull's yardstick).
Bytes and messages are what links carry, of all kinds, a node and second while nothing is said, and a node and fact.
"""

import math
import random
import statistics

from mesh import events, library
from mesh.gossip import INTERVAL_S
from mesh.wire import facts_pb2
from tests.sim.formed import form, introduce
from tests.sim.world import World

SIZES = (10, 100, 1000)
FACTS = 20
SETTLE_S = 20.0
IDLE_S = 10.0
SPREAD_S = 30.0
SHARE = 0.999


def figures() -> dict[str, float]:
    measured: dict[str, float] = {}
    for nodes in SIZES:
        measured |= {f"{name}_{nodes}": value for name, value in measure(nodes).items()}
    for nodes in SIZES:
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
        before = world.network.bytes
        took = [spread(world, random.Random(number)) for number in range(FACTS)]
        seconds = world.clock.now - SETTLE_S - IDLE_S
        fact_bytes = ((world.network.bytes - before) / nodes - idle_bytes * seconds) / FACTS
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
    world.clock.run_until(SETTLE_S)
    return world


def spread(world: World, rng: random.Random) -> float:
    """One node says something. Seconds until `SHARE` of all hold it."""
    author = rng.choice(world.hosts)
    assert author.replica is not None
    known = set(author.disk.content.facts)
    said = facts_pb2.KnowledgeAdded(title="news", text="words " * 20)
    author.handle(events.FactAuthored("knowledge_added", said, author.wall_clock_ms()))
    while not (new := set(author.disk.content.facts) - known):
        world.clock.run_until(world.clock.now + 0.001)
    (name,) = new
    began = world.clock.now
    wanted = math.ceil(SHARE * len(world.hosts))
    while world.clock.now < began + SPREAD_S:
        if sum(name in host.disk.content.facts for host in world.hosts) >= wanted:
            return world.clock.now - began
        world.clock.run_until(world.clock.now + 0.02)
    return math.inf
