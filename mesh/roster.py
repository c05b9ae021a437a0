"""What is believed of the members of the mesh, and what of it is news.

Idea: records of members merge like a lattice: of two about one node the later life wins, on a tie the worse state. Only
the node itself raises its life, so a wrong suspicion is denied by a record that wins everywhere, and an old rumour can
bring no ghost back while the departed are remembered.

Who is denied (denials.py) is no member: it is taken out, and no record of it is merged or passed on.

Two things keep rumours from doing harm. One against a member that spoke to this node a moment ago is told to that
member, not believed. And only addresses where this node itself saw a member answer are passed on.

Does not: find out anything itself; see detector.py.

Source: SWIM (see rumours.py), sections 4.1 and 4.2; hashicorp/memberlist, state.go.
"""

from collections.abc import Iterable

from mesh.awareness import Awareness
from mesh.denials import Denials
from mesh.effects import Effect, Log, MemberChanged, Send
from mesh.gossip import Rng
from mesh.identity import NodeId
from mesh.member import ALIVE, DEAD, LEFT, LIFE_JUMP_MAX, SUSPECT, Member, readable
from mesh.presence import Presence
from mesh.rumours import Rumours
from mesh.suspicion import Suspicion
from mesh.timing import Timing
from mesh.wire import membership_pb2, mesh_pb2

#: Dead and left members are remembered for a day.
FORGET_AFTER_S = 24 * 3600.0
#: Against a peer that invents members. The longest departed makes room.
MEMBERS_MAX = 2048
#: Records that ride along with one message.
NEWS_MAX = 12
#: How often one peer is told that it is suspected.
TELL_EVERY_S = 0.5
#: Members that probe a suspect out of turn on a rumour, on average: enough to confirm it, whatever the mesh's size.
CONFIRMERS = 8
#: Against peers that pass on addresses without end between two looks at them.
HINTS_MAX = 4096
NEVER = float("inf")


class Roster:
    """Invariant: `me` is not in `members`; there is a suspicion exactly for members believed suspect."""

    def __init__(
        self, me: NodeId, life: int, incarnation: int, rng: Rng, timing: Timing, denials: Denials | None = None
    ) -> None:
        self.me = me
        self.life = life
        self.incarnation = incarnation
        self.rng = rng
        self.timing = timing
        self.denials = denials if denials is not None else Denials()
        self.members: dict[NodeId, Member] = {}
        self.awareness = Awareness(timing.awareness_max)
        self.rumours = Rumours()
        self.leaving = False
        #: Whom a rumour made worth a probe out of turn; the detector takes them.
        self.doubted: list[NodeId] = []
        self._suspects: dict[NodeId, Member] = {}
        self._hints: list[tuple[str, int, NodeId]] = []
        self._returned: list[NodeId] = []
        self.presence = Presence(me)
        self._suspicions_due_at = NEVER  # no suspicion ends before

    # What others ask

    def live_peers(self) -> list[NodeId]:
        """Members that are alive and linked, in order of id. Shared: not to be changed."""
        return self.presence.live

    def view(self) -> frozenset[NodeId]:
        """The live view: live peers and this node."""
        return self.presence.view()

    def linked_peers(self) -> list[NodeId]:
        """In order of id. Shared: not to be changed."""
        return self.presence.linked

    def reached(self) -> frozenset[NodeId]:
        """Linked peers but those whose link seems stuck: they are worth a new dial beside it."""
        return self.presence.reached()

    def stuck(self) -> list[NodeId]:
        """Linked peers that are not `reached`, in order of id. Shared: not to be changed."""
        return self.presence.stuck

    def size(self) -> int:
        """Members that are not departed, this node included."""
        return self.presence.size()

    def absent_since(self, node_id: NodeId) -> float | None:
        """When a member became dead or left; None for one that is here, suspect or unknown."""
        member = self.members.get(node_id)
        return member.absent_since if member else None

    def unconfirmed(self, now: float) -> list[Member]:
        """Linked members that answer, or were not asked, and are suspect for longer than if others had confirmed it."""
        return [
            member
            for member in self._suspects.values()
            if member.answers and member.suspicion is not None and member.suspicion.least_is_over(now)
        ]

    def take_hints(self) -> tuple[list[tuple[str, int, NodeId]], list[NodeId]]:
        """Addresses worth dialling (host, port, who is said to live there) and members that are back, learnt since."""
        taken = self._hints, self._returned
        if any(taken):
            self._hints, self._returned = [], []
        return taken

    # Beliefs

    def suspect(self, member: Member, by: NodeId, now: float, why: str) -> list[Effect]:
        if member.suspicion is not None:
            if member.suspicion.confirm(by):
                self._suspicions_due_at = min(self._suspicions_due_at, member.suspicion.ends_at)
                self.spread(member)
            return self.refresh(member, now, why)
        return self.believe(member, SUSPECT, now, why, accuser=by)

    def convict(self, member: Member, now: float) -> list[Effect]:
        """It answered neither this node nor those asked to try. What others said of it before now counts as well."""
        effects = self.suspect(member, self.me, now, "answers nobody")
        accused, member.accused = member.accused, None
        if accused is None or accused.life < member.life or member.suspicion is None:
            return effects
        if accused.state == DEAD:
            return effects + self.believe(member, DEAD, now, "answers nobody, and others say so")
        return effects + self.suspect(member, NodeId(accused.said_by or self.me), now, "others say so")

    def suspicions_due(self, now: float) -> list[Effect]:
        if now < self._suspicions_due_at:
            return []
        effects: list[Effect] = []
        self._suspicions_due_at = NEVER
        for member in list(self._suspects.values()):
            assert member.suspicion is not None
            if now < member.suspicion.ends_at:
                self._suspicions_due_at = min(self._suspicions_due_at, member.suspicion.ends_at)
            else:
                said = len(member.suspicion.said_by)
                effects += self.believe(member, DEAD, now, f"suspect for too long, {said} say so")
        return effects

    def believe(self, member: Member, belief: int, now: float, why: str, accuser: NodeId | None = None) -> list[Effect]:
        """Change what is believed of a member, and tell others."""
        member.belief = belief
        self.presence.changed(member)
        if belief == SUSPECT:
            size = self.size()
            member.suspicion = Suspicion(
                accuser or self.me,
                now,
                self.timing.suspicion_min_s(size),
                self.timing.suspicion_max_s(size),
                self.timing.confirmations(size),
            )
            self._suspicions_due_at = min(self._suspicions_due_at, member.suspicion.ends_at)
            self._suspects[member.node_id] = member
        else:
            member.suspicion = None
            self._suspects.pop(member.node_id, None)
        if not member.departed:
            member.absent_since = None
        elif member.absent_since is None:
            member.absent_since = now
        if belief == ALIVE:
            member.link_broke_at = None
        self.spread(member)
        return self.refresh(member, now, why)

    def refresh(self, member: Member, now: float, why: str) -> list[Effect]:
        """Bring `state` up to date with what it follows from."""
        state = SUSPECT if member.belief == ALIVE and not member.answers else member.belief
        if state == member.state:
            return []
        member.state = state
        member.state_since = now
        self.presence.changed(member)
        name = membership_pb2.MemberState.Name(membership_pb2.MemberState.ValueType(state))
        word = name.removeprefix("MEMBER_STATE_").lower()
        return [
            Log("info", f"{member.name or member.node_id[:8]} is {word}: {why}"),
            MemberChanged(member.node_id, state),
        ]

    def lives(self, member: Member, life: int, now: float) -> list[Effect]:
        """A member's own word of its life: a later one denies what was said of the earlier."""
        if not member.life < life <= max(member.life, self.life) + LIFE_JUMP_MAX:
            return []
        member.life = life
        member.accused = None
        if member.belief == ALIVE:
            self.spread(member)
            return []
        return self.believe(member, ALIVE, now, "denies it")

    def left(self, member: Member, leave: membership_pb2.Leave, now: float) -> list[Effect]:
        if leave.life < member.life:
            return []  # the late goodbye of an earlier life
        member.life = leave.life
        return [] if member.belief == LEFT else self.believe(member, LEFT, now, "said goodbye")

    # Records of others

    def merge(self, records: Iterable[membership_pb2.MemberRecord], teller: NodeId, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for index, record in enumerate(records):
            if index > MEMBERS_MAX:
                break
            member = self.members.get(NodeId(record.node_id))
            if member is not None and record.state == ALIVE and member.linked and member.life >= record.life:
                continue  # nearly all: nothing is worse, later or new
            if record.node_id == self.me:
                effects += self._merge_own(record, teller)
            elif readable(record) and not self.denials.is_denied(NodeId(record.node_id)):
                effects += self._merge_one(record, teller, now)
        return effects

    def _merge_own(self, record: membership_pb2.MemberRecord, teller: NodeId) -> list[Effect]:
        """What others believe of this node. Deny it where it is wrong, with a life above theirs."""
        mine = record.incarnation == self.incarnation
        if self.leaving or record.life < self.life or (mine and record.state == ALIVE and record.life == self.life):
            return []
        if record.life > self.life + LIFE_JUMP_MAX:
            return [Log("warning", f"{teller} speaks of an absurd life of this node: ignored")]
        self.life = record.life + 1
        if mine and record.state != ALIVE:
            self.awareness.apply(1)  # Lifeguard: who is suspected is perhaps slow
        self.rumours.tell(self.me, self.timing.retransmits(self.size()))
        news = membership_pb2.MemberNews(members=[self.own_record()])
        return [Send(teller, mesh_pb2.LinkMessage(member_news=news))]

    def _merge_one(self, record: membership_pb2.MemberRecord, teller: NodeId, now: float) -> list[Effect]:
        node_id = NodeId(record.node_id)
        member = self.members.get(node_id)
        if member is None:
            return self._meet(record, now)
        if record.state == ALIVE and not member.linked and record.life >= member.life and not member.departed:
            self._hint(record)
        if member.outranks(record.life, record.state):
            if record.state == SUSPECT and member.belief == SUSPECT and record.life == member.life:
                return self.suspect(member, NodeId(record.said_by or teller), now, "others say so")
            return []
        if record.life > max(member.life, self.life) + LIFE_JUMP_MAX:
            return []
        if node_id == teller and record.state == ALIVE:
            return self.lives(member, record.life, now)
        state = int(record.state)
        said_by = NodeId(record.said_by or teller)
        if member.answers and not member.misses and state in (SUSPECT, DEAD):
            if now - member.last_heard < self.timing.pause_s:
                # It spoke a moment ago: it shall deny it itself, or answer no probe.
                member.accused = record
                self.doubted.append(node_id)
                return self.tell(member, record, now)
            if member.belief == ALIVE:
                state = SUSPECT  # this node has a link of its own, so it may find out by itself
        if record.life > member.life:
            member.incarnation = record.incarnation
        member.life = record.life
        member.name = member.name or record.name
        was_departed = member.departed
        effects = self.believe(member, state, now, "others say so", accuser=said_by)
        if state == SUSPECT and member.linked and self.rng.random() < CONFIRMERS / self.size():
            self.doubted.append(node_id)
        if state == ALIVE and was_departed and not member.linked:
            self._returned.append(node_id)
            self._hint(record)
        return effects

    def _meet(self, record: membership_pb2.MemberRecord, now: float) -> list[Effect]:
        """Somebody of whom only others have spoken so far: worth a dial, or good to know as gone."""
        if not self.make_room() or record.life > self.life + LIFE_JUMP_MAX:
            return []
        node_id = NodeId(record.node_id)
        member = Member(node_id, record.incarnation, record.life, record.name, state_since=now)
        self.take_in(member)
        if record.state in (DEAD, LEFT):
            member.state = int(record.state)
        else:
            self._hint(record)
        return self.believe(member, int(record.state), now, "others say so", accuser=NodeId(record.said_by or self.me))

    def _hint(self, record: membership_pb2.MemberRecord) -> None:
        if len(self._hints) < HINTS_MAX:
            node_id = NodeId(record.node_id)
            self._hints += [(address.host, address.port, node_id) for address in record.addresses]

    def tell(self, member: Member, record: membership_pb2.MemberRecord, now: float) -> list[Effect]:
        """Let a member know what is said of it, so that it can deny it."""
        if now - member.told_at < TELL_EVERY_S:
            return []
        member.told_at = now
        news = membership_pb2.MemberNews(members=[record])
        return [Send(member.node_id, mesh_pb2.LinkMessage(member_news=news))]

    # Telling others

    def spread(self, member: Member) -> None:
        self.rumours.tell(member.node_id, self.timing.retransmits(self.size()))

    def news(self) -> list[membership_pb2.MemberRecord]:
        if not self.rumours:
            return []
        records = (self._record_of(node_id) for node_id in self.rumours.take(NEWS_MAX))
        return [record for record in records if record is not None]

    def _record_of(self, node_id: NodeId) -> membership_pb2.MemberRecord | None:
        if node_id == self.me:
            return self.own_record()
        member = self.members.get(node_id)
        if member is None:
            return None
        if member.suspicion is None:
            return member.record()
        # One of those who said so, so that in time all of them are heard.
        said_by = member.suspicion.said_by
        return member.record(said_by[int(self.rng.random() * len(said_by))])

    def own_record(self) -> membership_pb2.MemberRecord:
        return membership_pb2.MemberRecord(
            node_id=self.me, incarnation=self.incarnation, life=self.life, state=membership_pb2.MEMBER_STATE_ALIVE
        )

    def all_records(self) -> list[membership_pb2.MemberRecord]:
        records = (self._record_of(node_id) for node_id in self.members)
        return [self.own_record(), *(record for record in records if record is not None)]

    # Housekeeping

    def links_changed(self, member: Member) -> None:
        """`linked` or `misses` of a member were set."""
        self.presence.changed(member)

    def take_in(self, member: Member) -> None:
        assert member.node_id not in self.members
        self.members[member.node_id] = member
        self.presence.changed(member)

    def forgive(self, gap_s: float, now: float) -> None:
        """This node itself stood still: nobody was late meanwhile."""
        for member in self._suspects.values():
            assert member.suspicion is not None
            member.suspicion.started_at = min(now, member.suspicion.started_at + gap_s)
        for member in self.members.values():
            member.last_heard = min(now, member.last_heard + gap_s)
            if member.link_broke_at is not None:
                member.link_broke_at = min(now, member.link_broke_at + gap_s)

    def expel(self, member: Member) -> list[Effect]:
        """It is denied: not a member any more, and whatever it was, whoever waits for it hears that it is gone."""
        self._suspects.pop(member.node_id, None)
        self._drop(member)
        return [MemberChanged(member.node_id, DEAD)]

    def validate(self) -> None:
        assert self.me not in self.members
        assert not any(self.denials.is_denied(node_id) for node_id in self.members)
        assert len(self.members) <= MEMBERS_MAX
        assert 0 <= self.awareness.score <= self.awareness.score_max
        for node_id in self._suspects:
            assert self.members[node_id].suspicion is not None
        for node_id, member in self.members.items():
            assert member.state != ALIVE or (member.belief == ALIVE and member.answers), "an alive member answers"
            assert (member.belief == SUSPECT) == (node_id in self._suspects)
            assert (member.belief == SUSPECT) == (member.suspicion is not None)
            assert member.departed == (member.absent_since is not None)
        self.presence.validate(self.members.values())
        suspicions = [member.suspicion for member in self._suspects.values() if member.suspicion is not None]
        assert all(suspicion.ends_at >= self._suspicions_due_at for suspicion in suspicions)

    def forget(self, now: float) -> None:
        for member in list(self.members.values()):
            if member.absent_since is not None and now - member.absent_since > FORGET_AFTER_S and not member.linked:
                self._drop(member)

    def make_room(self) -> bool:
        if len(self.members) < MEMBERS_MAX:
            return True
        gone = [m for m in self.members.values() if m.absent_since is not None and not m.linked]
        if not gone:
            return False
        self._drop(min(gone, key=lambda member: (member.absent_since or 0.0, member.node_id)))
        return True

    def _drop(self, member: Member) -> None:
        del self.members[member.node_id]
        self.rumours.forget(member.node_id)
        self.presence.forgotten(member)
