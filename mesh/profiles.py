"""What each node said last of itself: its agents, their models and measured rates.

Idea: of two profiles of one node the one with the later hybrid clock wins, ties by the greater hash: a total order of
fact content, so every node reads the same.
"""

from dataclasses import dataclass, field

from mesh.facts import Fact
from mesh.identity import NodeId
from mesh.wire import facts_pb2


@dataclass
class Profiles:
    latest: dict[NodeId, tuple[int, bytes, facts_pb2.NodeProfile]] = field(default_factory=dict)

    def apply(self, fact: Fact) -> bool:
        if fact.kind != "node_profile":
            return False
        offered = (fact.hybrid_clock, fact.hash, fact.body.node_profile)
        known = self.latest.get(fact.author)
        if known is None or offered[:2] > known[:2]:
            self.latest[fact.author] = offered
        return True

    def clear(self) -> None:
        self.latest.clear()

    def of(self, node_id: NodeId) -> facts_pb2.NodeProfile | None:
        entry = self.latest.get(node_id)
        return entry[2] if entry else None
