"""One real replica whose peers are played by the test: links, profiles, goodbyes, and what it sends them."""

import hashlib
from collections.abc import Sequence

from mesh import events
from mesh.effects import Effect, Persist, SaveVote, Send
from mesh.facts import Fact
from mesh.identity import NodeId
from mesh.replica import Replica
from mesh.wire import common_pb2, facts_pb2, membership_pb2, mesh_pb2
from tests.mesh.building import BY_ID, Author, rng

WALL_MS = 1_790_000_000_000
#: How long nobody leads after a start: time in which a test of other machines is not disturbed.
QUIET_S = 0.5


def ref(name: str, size: int = 10) -> common_pb2.BlobRef:
    return common_pb2.BlobRef(sha256=hashlib.sha256(name.encode()).digest(), size_bytes=size)


class Lone:
    """The node with the lowest id. Its disk syncs at once. Time stands still unless the test moves it."""

    def __init__(self, peers: int = 2, slots: int = 1) -> None:
        self.replica = Replica(BY_ID[0], 7, 100, rng(), slots=slots)
        self.me = self.replica.me
        self.now = 0.0
        self.peers = [key.node_id for key in BY_ID[1 : 1 + peers]]
        self.authors = {key.node_id: Author(key) for key in BY_ID}
        self.stored: list[Fact] = []
        self.do(events.Ticked(WALL_MS))
        for peer in self.peers:
            self.link(peer)

    def do(self, event: events.Event) -> list[Effect]:
        effects = self.replica.handle(event, self.now)
        self.replica.validate()
        done: list[Effect] = []
        for effect in effects:
            done.append(effect)
            if isinstance(effect, Persist):
                self.stored += effect.facts
                done += self.do(events.Persisted(effect.facts, effect.source))
            elif isinstance(effect, SaveVote):
                done += effect.then
                done += self.do(events.VoteSaved(effect.term, effect.voted_for))
        return done

    def link(self, peer: NodeId, life: int = 1) -> list[Effect]:
        hello = membership_pb2.Hello(
            node_id=peer, incarnation=life, life=life, name=peer[:4], protocol_version=3, protocol_version_min=3
        )
        return self.do(events.LinkOpened(hello))

    def leaves(self, peer: NodeId, life: int = 1) -> list[Effect]:
        done = self.receive(peer, leave=membership_pb2.Leave(life=life))
        return done + self.do(events.LinkClosed(peer))

    def receive(self, peer: NodeId, **message: object) -> list[Effect]:
        return self.do(events.Received(peer, mesh_pb2.LinkMessage(**message)))  # type: ignore[arg-type]

    def says(self, author: NodeId, kind: str, content: object) -> list[Effect]:
        """A fact of `author` arrives."""
        fact = self.authors[author].say(kind, content, len(self.stored) + 1)  # type: ignore[arg-type]
        return self.do(events.FactsVerified(author, (fact,)))

    def profile(
        self, of: NodeId, *, stores: bool = True, slots: int = 0, abilities: Sequence[str] = ("generate", "chat")
    ) -> list[Effect]:
        profile = facts_pb2.NodeProfile(name=of[:4], stores=stores)
        if slots:
            profile.agents.add(agent="default", slots=slots, prefill_tokens_per_s=1000.0, abilities=abilities)
        if of == self.me:
            return self.do(events.FactAuthored("node_profile", profile, WALL_MS))
        return self.says(of, "node_profile", profile)

    def leads(self, leader: NodeId, term: int = 5) -> list[Effect]:
        """This node follows `leader` now."""
        return self.receive(leader, leader_beat=membership_pb2.LeaderBeat(token=token(term, leader), group_size=3))


def token(term: int, leader: NodeId) -> common_pb2.FencingToken:
    return common_pb2.FencingToken(term=term, leader_id=leader)


def to(effects: list[Effect], kind: str) -> list[NodeId]:
    """Whom a message of this kind is sent to."""
    return [
        effect.peer for effect in effects if isinstance(effect, Send) and effect.message.WhichOneof("message") == kind
    ]
