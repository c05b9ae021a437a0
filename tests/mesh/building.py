"""Small builders that the tests of the machines share: keys, facts, messages. Everything real, nothing random."""

import random
from collections.abc import Sequence

from google.protobuf.message import Message

from mesh.effects import Effect, Send
from mesh.facts import STREAM_OF_KIND, Fact, make
from mesh.identity import NodeId, NodeKey
from mesh.wire import common_pb2, facts_pb2, membership_pb2, mesh_pb2

KEYS = [NodeKey.from_scalar(7919 * (number + 1)) for number in range(8)]
#: Keys in order of node id, because ids decide ties.
BY_ID = sorted(KEYS, key=lambda key: key.node_id)
A, B, C, D, E = (key.node_id for key in BY_ID[:5])


def rng(seed: int = 1) -> random.Random:
    return random.Random(seed)


class Author:
    """Writes facts into the streams of one life of one key."""

    def __init__(self, key: NodeKey = KEYS[0], incarnation: int = 1) -> None:
        self.key = key
        self.incarnation = incarnation
        self._last: dict[int, tuple[int, bytes]] = {}

    def say(self, kind: str, content: Message, hybrid_clock: int = 0) -> Fact:
        stream = STREAM_OF_KIND[kind]
        sequence, head = self._last.get(stream, (0, b""))
        fact = make(self.key, self.incarnation, sequence + 1, head, hybrid_clock, kind, content)
        self._last[stream] = (fact.sequence, fact.hash)
        return fact

    def note(self, title: str, text: str = "", tags: Sequence[str] = ()) -> Fact:
        return self.say("knowledge_added", facts_pb2.KnowledgeAdded(title=title, text=text, tags=tags))

    def notes(self, count: int) -> list[Fact]:
        return [self.note(f"note {number}") for number in range(count)]


def hello(
    node_id: NodeId, name: str = "", port: int = 4000, incarnation: int = 1, life: int = 1
) -> membership_pb2.Hello:
    address = common_pb2.NodeAddress(host="10.0.0.9", port=port)
    return membership_pb2.Hello(
        node_id=node_id,
        incarnation=incarnation,
        name=name,
        addresses=[address],
        protocol_version=3,
        life=life,
    )


def sent(effects: Sequence[Effect], kind: str) -> list[tuple[NodeId, mesh_pb2.LinkMessage]]:
    """Messages of one kind that the effects send at once (not those that wait for a vote)."""
    return [
        (effect.peer, effect.message)
        for effect in effects
        if isinstance(effect, Send) and effect.message.WhichOneof("message") == kind
    ]
