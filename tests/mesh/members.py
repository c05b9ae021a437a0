"""Memberships of several nodes in one process and virtual time, joined by streams that lose, stall, break and end.

A stream is as TCP: in order, nothing lost out of its middle. A lost packet holds up all that follows until it is sent
again, after 0.2 s, then twice as long each time. A stream that is cut holds everything; one whose end died is closed.
"""

import heapq
import itertools
import random
from collections.abc import Iterable, Sequence

from mesh.effects import Effect, MemberChanged, Send
from mesh.identity import NodeId
from mesh.membership import Membership
from mesh.timing import LAN, Timing
from mesh.wire import common_pb2, membership_pb2, mesh_pb2

TICK_S = 0.05
DELAY_S = 0.001
RETRANSMIT_S = 0.2
#: As the shell does: a stuck link is dialled again, and a broken one.
REDIAL_S = 0.1


def named(number: int) -> NodeId:
    return NodeId(f"{number:032x}")


class Mesh:
    """`size` nodes, all linked with all. Node `i` is called `named(i)`."""

    def __init__(self, size: int, seed: int = 1, loss: float = 0.0, timing: Timing = LAN) -> None:
        self.rng = random.Random(seed)
        self.loss = loss
        self.now = 0.0
        self.timing = timing
        self.ids = [named(number) for number in range(size)]
        self.nodes: dict[NodeId, Membership] = {}
        self.frozen: set[NodeId] = set()
        self.blocked: set[tuple[NodeId, NodeId]] = set()  # (from, to)
        self.free_at: dict[tuple[NodeId, NodeId], float] = {}
        self.changes: list[tuple[float, NodeId, NodeId, int]] = []  # (when, who says, of whom, state)
        self.sent = dict.fromkeys(self.ids, 0)
        self._order = itertools.count()
        self._queue: list[tuple[float, int, NodeId, NodeId, mesh_pb2.LinkMessage]] = []
        self._held: list[tuple[NodeId, NodeId, mesh_pb2.LinkMessage]] = []
        for node_id in self.ids:
            self.start(node_id, 1000)
        for a, b in itertools.combinations(self.ids, 2):
            self.link(a, b)

    # What happens

    def start(self, node_id: NodeId, life: int) -> Membership:
        incarnation = self.rng.getrandbits(32)
        self.nodes[node_id] = Membership(node_id, life, random.Random(self.rng.random()), self.timing, incarnation)
        self.nodes[node_id].tick(self.now)
        return self.nodes[node_id]

    def hello(self, node_id: NodeId) -> membership_pb2.Hello:
        machine = self.nodes[node_id]
        return membership_pb2.Hello(
            node_id=node_id,
            incarnation=machine.roster.incarnation,
            life=machine.life,
            protocol_version=3,
            name=f"n{node_id.lstrip('0')[:4]}",
            addresses=[common_pb2.NodeAddress(host="10.0.0.1", port=4000 + int(node_id, 16) % 997)],
        )

    def link(self, a: NodeId, b: NodeId) -> None:
        hellos = {a: self.hello(b), b: self.hello(a)}
        for node_id, hello in hellos.items():
            proved = [(address.host, address.port) for address in hello.addresses]
            self.note(node_id, self.nodes[node_id].link_opened(hello, self.now, proved))

    def unlink(self, a: NodeId, b: NodeId) -> None:
        """The link ends and both hear of it."""
        for one, other in ((a, b), (b, a)):
            self.forget(one, other)
            if one in self.nodes:
                self.note(one, self.nodes[one].link_closed(other, self.now))

    def forget(self, a: NodeId, b: NodeId) -> None:
        """Whatever is on its way from `a` to `b` is lost."""
        self._queue = [entry for entry in self._queue if (entry[2], entry[3]) != (a, b)]
        heapq.heapify(self._queue)
        self._held = [entry for entry in self._held if (entry[0], entry[1]) != (a, b)]
        self.free_at.pop((a, b), None)

    def kill(self, victim: NodeId) -> None:
        """SIGKILL: the machine lives on, closes the links and refuses every redial."""
        del self.nodes[victim]
        for other in list(self.nodes):
            self.unlink(victim, other)
        self.run(REDIAL_S)
        for other, machine in self.nodes.items():
            self.note(other, machine.dial_refused(victim, self.now))

    def cut(self, apart: Iterable[NodeId], rest: Iterable[NodeId] | None = None) -> None:
        """Nothing passes between the two any more, and no link ends."""
        apart = set(apart)
        others = set(self.ids) - apart if rest is None else set(rest)
        self.blocked |= {pair for a in apart for b in others for pair in ((a, b), (b, a))}

    def heal(self) -> None:
        """What was held goes on its way."""
        self.blocked.clear()
        held, self._held = self._held, []
        for source, target, message in held:
            self._transmit(source, target, message)

    def lose_held(self) -> None:
        """What was held never arrives: whoever is quiet after a cut is quiet for good, unless somebody asks."""
        self._held.clear()

    def freeze(self, node_id: NodeId) -> None:
        self.frozen.add(node_id)

    def thaw(self, node_id: NodeId) -> None:
        self.frozen.discard(node_id)
        held, self._held = self._held, []
        for source, target, message in held:
            self._transmit(source, target, message)

    # Time

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        next_tick = self.now + TICK_S
        while self.now < end:
            due = self._queue[0][0] if self._queue else float("inf")
            self.now = min(due, next_tick, end)
            if due <= self.now:
                _, _, source, target, message = heapq.heappop(self._queue)
                self._arrive(source, target, message)
            elif self.now >= next_tick:
                next_tick += TICK_S
                for node_id in self.nodes:
                    if node_id not in self.frozen:
                        self.tick_one(node_id)

    def until(self, condition: "object", longest: float) -> float:
        """Run until `condition()`; how long that took. Fails after `longest` seconds."""
        assert callable(condition)
        began = self.now
        while not condition():
            assert self.now - began < longest, f"not within {longest} s: {self.told()}"
            self.run(TICK_S)
        return self.now - began

    # What is seen

    def state(self, of: NodeId, by: NodeId) -> int:
        return self.nodes[by].members[of].state

    def belief(self, of: NodeId, by: NodeId) -> int:
        return self.nodes[by].members[of].belief

    def all_see(self, of: NodeId, state: int) -> bool:
        return all(self.state(of, by) == state for by in self.nodes if by != of)

    def whole(self) -> bool:
        everyone = frozenset(self.nodes)
        return all(machine.view() == everyone for machine in self.nodes.values())

    def told(self, *states: int) -> list[tuple[float, NodeId, NodeId, int]]:
        return [change for change in self.changes if not states or change[3] in states]

    # Inside

    def tick_one(self, node_id: NodeId) -> None:
        self.note(node_id, self.nodes[node_id].tick(self.now)[0])

    def hand_over(self, source: NodeId, target: NodeId, message: mesh_pb2.LinkMessage) -> None:
        machine = self.nodes[target]
        effects: list[Effect] = []
        if machine.slept(self.now):
            effects += machine.tick(self.now)[0]
        if message.WhichOneof("message") != "leave":
            effects += machine.word_received(source, self.now)
        self.note(target, effects + machine.received(source, message, self.now))

    def note(self, node_id: NodeId, effects: Sequence[Effect]) -> None:
        self.nodes[node_id].validate()
        for effect in effects:
            if isinstance(effect, Send):
                assert effect.peer != node_id
                self.sent[node_id] = self.sent.get(node_id, 0) + 1
                self._transmit(node_id, effect.peer, effect.message)
            elif isinstance(effect, MemberChanged):
                self.changes.append((round(self.now, 2), node_id, effect.node_id, effect.state))

    def _transmit(self, source: NodeId, target: NodeId, message: mesh_pb2.LinkMessage) -> None:
        takes, again = DELAY_S, RETRANSMIT_S
        while self.rng.random() < self.loss:
            takes += again
            again *= 2
        arrives = max(self.now + takes, self.free_at.get((source, target), 0.0))
        self.free_at[source, target] = arrives
        heapq.heappush(self._queue, (arrives, next(self._order), source, target, message))

    def _arrive(self, source: NodeId, target: NodeId, message: mesh_pb2.LinkMessage) -> None:
        if target in self.frozen or (source, target) in self.blocked:
            self._held.append((source, target, message))
        elif target in self.nodes:
            machine = self.nodes[target]
            if not (member := machine.members.get(source)) or not member.linked:
                return
            self.hand_over(source, target, message)
