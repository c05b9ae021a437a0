"""What the machines of work read of the rest of the replica: who is here, what is known, who holds which facts.

Idea: one protocol instead of five references, looked up at every use, because a fold may be rebuilt.

Does not: change anything.
"""

import itertools
from collections.abc import Iterable
from typing import Protocol

from mesh.gossip import COPIES, Gossip
from mesh.identity import NodeId
from mesh.ledger import Ledger
from mesh.membership import Membership
from mesh.profiles import Profiles
from mesh.wire import engine_pb2, facts_pb2

#: What a task of a job needs of its agent, whatever its kind. A choice is scored, or generated and matched where scores
#: lack. An agent that only embeds lacks it.
TASK_ABILITY = "chat"


class Surroundings(Protocol):
    """The replica, as the machines of work see it."""

    me: NodeId
    ledger: Ledger
    profiles: Profiles
    membership: Membership
    gossip: Gossip


def stores(around: Surroundings, node_id: NodeId) -> bool:
    """Whether a node holds copies for others. One that has not said so yet is asked."""
    profile = around.profiles.of(node_id)
    return profile is None or profile.stores


def able_to_store(around: Surroundings, nodes: Iterable[NodeId]) -> set[NodeId]:
    return {node_id for node_id in nodes if stores(around, node_id)}


def does_tasks(agent: facts_pb2.AgentProfile | engine_pb2.EngineLoaded) -> bool:
    return TASK_ABILITY in agent.abilities


def task_agents(around: Surroundings, node_id: NodeId) -> list[facts_pb2.AgentProfile]:
    """The node's agents that can do tasks of jobs."""
    profile = around.profiles.of(node_id)
    return [agent for agent in profile.agents if does_tasks(agent)] if profile is not None else []


def copies_wanted(around: Surroundings) -> int:
    """Nodes that should hold a fact and its blobs now, this one included: as many as there are, three at most."""
    peers = (peer for peer in around.membership.live_peers() if stores(around, peer))
    return 1 + sum(1 for _ in itertools.islice(peers, COPIES - 1))


def is_lost(around: Surroundings, node_id: NodeId) -> bool:
    """Dead, left, or never seen here: what runs there is not waited for."""
    if node_id == around.me:
        return False
    return node_id not in around.membership.members or around.membership.absent_since(node_id) is not None
