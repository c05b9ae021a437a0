"""What each node said last of itself and of agents: models, measured rates, observed skill.

Idea: of two profiles of one node, or two observations by one node of one agent, model and kind of task, the one with
the later hybrid clock wins, ties by the greater hash: a total order of fact content, so every node reads the same. What
one of the same stream replaced is read by nobody (`replaced`). One of another stream may turn out to be void, and then
the one before it counts again.
"""

from dataclasses import dataclass, field
from typing import TypeVar

from mesh.facts import Fact, Place, StreamId
from mesh.identity import NodeId
from mesh.wire import facts_pb2

#: Observer, node and agent observed, model, kind of task.
SkillKey = tuple[NodeId, str, str, str, str]
Key = TypeVar("Key", bound=NodeId | SkillKey)
Content = TypeVar("Content")


@dataclass
class Profiles:
    latest: dict[NodeId, tuple[int, bytes, facts_pb2.NodeProfile]] = field(default_factory=dict)
    skills: dict[SkillKey, tuple[int, bytes, facts_pb2.SkillObservation]] = field(default_factory=dict)
    replaced: set[Place] = field(default_factory=set)
    #: The latest of each stream: clock, hash, place.
    _of_stream: dict[tuple[StreamId, NodeId | SkillKey], tuple[int, bytes, Place]] = field(default_factory=dict)

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
        for part in (self.latest, self.skills, self.replaced, self._of_stream):
            part.clear()

    def _keep_later(self, kept: dict[Key, tuple[int, bytes, Content]], key: Key, fact: Fact, content: Content) -> None:
        clock, name = fact.hybrid_clock, fact.hash
        if key not in kept or (clock, name) > kept[key][:2]:
            kept[key] = (clock, name, content)
        said = (clock, name, Place(fact.stream_id, fact.sequence))
        before = self._of_stream.get((fact.stream_id, key), said)
        self._of_stream[fact.stream_id, key] = max(before, said)
        if before != said:
            self.replaced.add(min(before, said)[2])
