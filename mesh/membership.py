"""Who is here and alive, as this node sees it by its own ears.

Idea: linked nodes send each other a heartbeat every half second. A node not heard for `SUSPECT_AFTER_S`, or whose link
broke, is suspect at once: it is given no work and no vote counts on it. A suspect unheard for `DEAD_AFTER_S` is dead; a
goodbye makes it left. Any word from a node makes it alive again. What others say of third nodes is used for one thing
only: to learn addresses to dial, so that a node that found one member finds all.

After a pause of this node itself (a closed lid) nobody else is at fault: the silence is forgiven.

Does not: probe indirectly or weigh confirmations (SWIM with Lifeguard is what will replace this machine's inside),
elect, or change what is durable.
"""

from dataclasses import dataclass, field

from mesh.effects import Effect, Log, MemberChanged, Send
from mesh.identity import NodeId
from mesh.wire import membership_pb2, mesh_pb2

ALIVE = membership_pb2.MEMBER_STATE_ALIVE
SUSPECT = membership_pb2.MEMBER_STATE_SUSPECT
DEAD = membership_pb2.MEMBER_STATE_DEAD
LEFT = membership_pb2.MEMBER_STATE_LEFT

HEARTBEAT_S = 0.5
#: Four heartbeats: three may be lost or late. Raise it on links that stall, and failover takes longer.
SUSPECT_AFTER_S = 4 * HEARTBEAT_S
#: From suspicion to death; a suspect may come back without anybody having given its place away.
DEAD_AFTER_S = 4.0
#: Dead and left members are forgotten after this; a forgotten one that returns is simply new.
FORGET_AFTER_S = 24 * 3600.0
#: A pause of our own longer than this forgives everybody's silence.
PAUSE_S = 2 * HEARTBEAT_S
#: Every how many heartbeats the whole membership goes along.
MEMBERS_EVERY = 4
#: Against a peer that invents members.
MEMBERS_MAX = 1024


@dataclass
class Member:
    node_id: NodeId
    incarnation: int
    life: int
    name: str
    addresses: tuple[tuple[str, int], ...]
    state: int = ALIVE
    linked: bool = False
    last_heard: float = 0.0
    state_since: float = 0.0
    load: membership_pb2.NodeLoad = field(default_factory=membership_pb2.NodeLoad)


@dataclass
class Membership:
    """Invariant: `me` is not in `members`; a linked member is alive or, while it is silent, suspect."""

    me: NodeId
    life: int
    members: dict[NodeId, Member] = field(default_factory=dict)
    load: membership_pb2.NodeLoad = field(default_factory=membership_pb2.NodeLoad)
    next_heartbeat_at: float = 0.0
    heartbeats: int = 0
    last_tick_at: float | None = None

    def live_peers(self) -> list[NodeId]:
        """Members that are alive and linked, in order of id."""
        return sorted(member.node_id for member in self.members.values() if member.state == ALIVE and member.linked)

    def view(self) -> frozenset[NodeId]:
        """The live view: live peers and this node."""
        return frozenset([self.me, *self.live_peers()])

    def slept(self, now: float) -> bool:
        """Whether this node itself was paused since its last tick: a closed lid, a stopped process."""
        return self.last_tick_at is not None and now - self.last_tick_at > PAUSE_S

    def tick(self, now: float) -> tuple[list[Effect], bool]:
        """Advance time. Returns effects and whether this node itself was paused since the last tick."""
        effects: list[Effect] = []
        paused = self.slept(now)
        if paused and self.last_tick_at is not None:
            gap = now - self.last_tick_at
            effects.append(Log("warning", f"this node was paused for {gap:.1f} s; nobody is suspected for it"))
            for member in self.members.values():
                # A word may have been read before this tick, after the pause.
                member.last_heard = min(now, member.last_heard + gap)
                member.state_since = min(now, member.state_since + gap)
        self.last_tick_at = now
        for member in list(self.members.values()):
            if member.state == ALIVE and now - member.last_heard > SUSPECT_AFTER_S:
                effects += self._change(member, SUSPECT, now, f"silent for {now - member.last_heard:.1f} s")
            elif member.state == SUSPECT and now - member.state_since > DEAD_AFTER_S:
                effects += self._change(member, DEAD, now, "suspected for too long")
            elif member.state in (DEAD, LEFT) and now - member.state_since > FORGET_AFTER_S and not member.linked:
                del self.members[member.node_id]
        if now >= self.next_heartbeat_at:
            self.next_heartbeat_at = now + HEARTBEAT_S
            self.heartbeats += 1
            effects += self._heartbeats()
        return effects, paused

    def link_opened(self, hello: membership_pb2.Hello, now: float) -> list[Effect]:
        node_id = NodeId(hello.node_id)
        assert node_id != self.me
        addresses = tuple((address.host, address.port) for address in hello.addresses)
        member = self.members.get(node_id)
        if member is None:
            if len(self.members) >= MEMBERS_MAX:
                return [Log("warning", f"more than {MEMBERS_MAX} members: {node_id} is not taken in")]
            member = Member(node_id, hello.incarnation, 0, hello.name, addresses, state=DEAD)
            self.members[node_id] = member
        member.incarnation = hello.incarnation
        member.name = hello.name
        member.addresses = addresses
        member.linked = True
        effects = self._heard(member, now, "linked")
        return [*effects, Send(node_id, self._heartbeat(with_members=True))]

    def link_closed(self, node_id: NodeId, now: float) -> list[Effect]:
        member = self.members.get(node_id)
        if member is None:
            return []
        member.linked = False
        if member.state == ALIVE:
            return self._change(member, SUSPECT, now, "the link broke")
        return []

    def heartbeat_received(
        self, node_id: NodeId, heartbeat: membership_pb2.Heartbeat, now: float
    ) -> tuple[list[Effect], list[membership_pb2.MemberRecord]]:
        """Returns effects and the records of nodes that this one has no link to: addresses worth dialling."""
        member = self.members.get(node_id)
        if member is None:
            return [], []
        # A later life is a return, even where the end of the earlier one's link was not noticed here yet.
        returned = heartbeat.life > member.life
        member.load.CopyFrom(heartbeat.load)
        member.life = max(member.life, heartbeat.life)
        effects = self._heard(member, now, "linked" if returned else "heard")
        unlinked = [
            record
            for record in heartbeat.members[:MEMBERS_MAX]
            if record.state == ALIVE
            and record.node_id != self.me
            and not ((known := self.members.get(NodeId(record.node_id))) and known.linked)
        ]
        return effects, unlinked

    def word_received(self, node_id: NodeId, now: float) -> list[Effect]:
        """Any message is a sign of life."""
        member = self.members.get(node_id)
        return self._heard(member, now, "heard") if member else []

    def leave_received(self, node_id: NodeId, leave: membership_pb2.Leave, now: float) -> list[Effect]:
        member = self.members.get(node_id)
        if member is None or leave.life < member.life:
            return []  # the late goodbye of an earlier life
        member.life = leave.life
        return self._change(member, LEFT, now, "said goodbye")

    def goodbye(self, reason: str) -> list[Effect]:
        leave = membership_pb2.Leave(life=self.life, reason=reason)
        return [Send(peer, mesh_pb2.LinkMessage(leave=leave)) for peer in self.linked_peers()]

    def linked_peers(self) -> list[NodeId]:
        return sorted(member.node_id for member in self.members.values() if member.linked)

    def validate(self) -> None:
        assert self.me not in self.members
        assert len(self.members) <= MEMBERS_MAX
        for member in self.members.values():
            assert member.linked or member.state != ALIVE, "an alive member is linked"

    def _heard(self, member: Member, now: float, why: str) -> list[Effect]:
        member.last_heard = now
        # A node that said goodbye is back only with a new link, not with a late word on the old one.
        if member.state == ALIVE or not member.linked or (member.state == LEFT and why != "linked"):
            return []
        return self._change(member, ALIVE, now, why)

    def _change(self, member: Member, state: int, now: float, why: str) -> list[Effect]:
        if member.state == state:
            return []
        member.state = state
        member.state_since = now
        name = membership_pb2.MemberState.Name(membership_pb2.MemberState.ValueType(state))
        word = name.removeprefix("MEMBER_STATE_").lower()
        return [
            Log("info", f"{member.name or member.node_id[:8]} is {word}: {why}"),
            MemberChanged(member.node_id, state),
        ]

    def _heartbeats(self) -> list[Effect]:
        message = self._heartbeat(with_members=self.heartbeats % MEMBERS_EVERY == 0)
        return [Send(peer, message) for peer in self.linked_peers()]

    def _heartbeat(self, *, with_members: bool) -> mesh_pb2.LinkMessage:
        heartbeat = membership_pb2.Heartbeat(sequence=self.heartbeats, life=self.life, load=self.load)
        if with_members:
            for member in self.members.values():
                if member.state == ALIVE:
                    record = heartbeat.members.add(
                        node_id=member.node_id,
                        incarnation=member.incarnation,
                        life=member.life,
                        state=ALIVE,
                        name=member.name,
                    )
                    for host, port in member.addresses:
                        record.addresses.add(host=host, port=port)
        return mesh_pb2.LinkMessage(heartbeat=heartbeat)
