"""What each node said last of itself and of agents: models, measured rates, observed skill.

Idea: of two profiles of one node, or two observations by one node of one agent, model and kind of task, the one with
the later hybrid clock wins, ties by the greater hash: a total order of fact content, so every node reads the same. What
was replaced is read by nobody (`replaced`).
"""

from dataclasses import dataclass, field
from typing import TypeVar

from mesh.facts import Fact, Place
from mesh.identity import NodeId
from mesh.wire import facts_pb2

Key = TypeVar("Key")
Content = TypeVar("Content")
#: Observer, node and agent observed, model, kind of task.
SkillKey = tuple[NodeId, str, str, str, str]


@dataclass
class Profiles:
    latest: dict[NodeId, tuple[int, bytes, facts_pb2.NodeProfile]] = field(default_factory=dict)
    skills: dict[SkillKey, tuple[int, bytes, facts_pb2.SkillObservation]] = field(default_factory=dict)
    replaced: set[Place] = field(default_factory=set)
    _at: dict[bytes, Place] = field(default_factory=dict)  # of the latest, by fact hash

    def apply(self, fact: Fact) -> bool:
        if fact.kind == "node_profile":
            self._keep_later(self.latest, fact.author, fact, fact.body.node_profile)
        elif fact.kind == "skill_observation":
            seen = fact.body.skill_observation
            key = (fact.author, seen.agent.node_id, seen.agent.agent, seen.model, seen.task_kind)
            self._keep_later(self.skills, key, fact, seen)
        else:
            return False
        return True

    def of(self, node_id: NodeId) -> facts_pb2.NodeProfile | None:
        entry = self.latest.get(node_id)
        return entry[2] if entry else None

    def clear(self) -> None:
        for part in (self.latest, self.skills, self.replaced, self._at):
            part.clear()

    def _keep_later(self, kept: dict[Key, tuple[int, bytes, Content]], key: Key, fact: Fact, content: Content) -> None:
        place = Place(fact.stream_id, fact.sequence)
        known = kept.get(key)
        if known is None or (fact.hybrid_clock, fact.hash) > known[:2]:
            kept[key] = (fact.hybrid_clock, fact.hash, content)
            self._at[fact.hash] = place
            if known is not None:
                self.replaced.add(self._at.pop(known[1]))
        elif fact.hash != known[1]:
            self.replaced.add(place)
