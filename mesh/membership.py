"""Who is here and alive: SWIM with Lifeguard, over the links between nodes.

Idea: every interval a node probes one member; without an answer it asks a few others to try; where nobody gets one the
member is suspect, for a time that grows shorter as others confirm it, and then dead. What is news about members rides
along with probes and answers. A suspect is told so and denies it by raising its `life`, which only it may do. Probes
are answered on the node's own loop, so a node that hangs is seen though its kernel still answers.

Beside SWIM, because members here hold links: a broken link makes suspect at once, and where a redial then finds nobody
listening, the member is dead at once. A rumour against a member that spoke a moment ago is told to it, not believed. A
node that hears nobody at all first doubts itself: it takes all for out of reach, and says nothing against them.

After a pause of this node itself (a closed lid) nobody else is at fault: the silence is forgiven.

Does not: elect, or change what is durable. Its view is a hint: two nodes may see different meshes at a time.

Source: SWIM (see rumours.py); Lifeguard (see awareness.py), its buddy system in section IV.D; hashicorp/memberlist.
"""

from collections.abc import Iterable

from mesh.awareness import Awareness
from mesh.effects import Effect, Log, MemberChanged, Send
from mesh.gossip import Rng
from mesh.identity import NodeId
from mesh.member import ALIVE, DEAD, LEFT, LIFE_JUMP_MAX, MISSES_MAX, SUSPECT, Member, readable
from mesh.probing import Probing, Run
from mesh.rumours import Rumours
from mesh.suspicion import Suspicion
from mesh.timing import LAN, Timing
from mesh.wire import membership_pb2, mesh_pb2

#: Dead and left members are remembered for a day, so that an old rumour brings no ghost back.
FORGET_AFTER_S = 24 * 3600.0
FORGET_EVERY_S = 60.0
#: Against a peer that invents members. The longest departed makes room.
MEMBERS_MAX = 2048
#: Records that ride along with one message.
NEWS_MAX = 12
#: All records go along with a new link in a mesh of up to so many members; in a larger one at most once a second.
EXCHANGE_FREELY_MAX = 32
EXCHANGE_GAP_S = 1.0
#: A gap between ticks longer than this is our own lateness, and forgiven to everybody.
LAG_S = 0.3
#: A refused redial so soon after the link broke means that the process is gone.
REFUSED_WITHIN_S = 10.0
#: How often one peer is told that it is suspected.
TELL_EVERY_S = 0.5
#: Members that probe a suspect out of turn on a rumour, on average: enough to confirm it, whatever the mesh's size.
CONFIRMERS = 8
#: How often a node that hears nobody may ask everybody at once.
ROLL_CALL_EVERY_S = 5.0
#: A node of the previous release counts silence: it needs a word every two seconds.
OLD_HEARTBEAT_S = 0.5
OLD_MEMBERS_EVERY = 4


class Membership:
    """Invariant: `me` is not in `members`."""

    def __init__(self, me: NodeId, life: int, rng: Rng, timing: Timing = LAN, incarnation: int = 0) -> None:
        self.me = me
        self.life = life
        self.incarnation = incarnation
        self.rng = rng
        self.timing = timing
        self.members: dict[NodeId, Member] = {}
        self.load = membership_pb2.NodeLoad()
        self.awareness = Awareness(timing.awareness_max)
        self.probing = Probing(rng)
        self.rumours = Rumours()
        self.lag_s = 0.0  # by how much the last tick was late; 0 where it was not
        self.paused_at: float | None = None
        self._hints: list[tuple[str, int, NodeId]] = []
        self._returned: list[NodeId] = []
        self._suspects: dict[NodeId, Member] = {}
        self._last_tick_at: float | None = None
        self._last_word_at = float("-inf")
        self._next_probe_at = 0.0
        self._next_gossip_at = 0.0
        self._next_exchange_at: float | None = None
        self._next_forget_at = 0.0
        self._next_roll_call_at = 0.0
        self._next_full_at = 0.0
        self._next_old_at = 0.0
        self._old_heartbeats = 0
        self._leaving = False
        self._size: int | None = None
        self._live: list[NodeId] | None = None
        self._view: frozenset[NodeId] = frozenset([me])
        self._linked: list[NodeId] | None = None
        self._reached: frozenset[NodeId] = frozenset()
        self._stuck: frozenset[NodeId] = frozenset()

    # What others ask

    def live_peers(self) -> list[NodeId]:
        """Members that are alive and linked, in order of id. Shared: not to be changed."""
        if self._live is None:
            self._live = sorted(member.node_id for member in self.members.values() if member.state == ALIVE)
            self._view = frozenset([self.me, *self._live])
        return self._live

    def view(self) -> frozenset[NodeId]:
        """The live view: live peers and this node."""
        self.live_peers()
        return self._view

    def linked_peers(self) -> list[NodeId]:
        """In order of id. Shared: not to be changed."""
        if self._linked is None:
            self._linked = sorted(member.node_id for member in self.members.values() if member.linked)
            doubted = {
                node_id
                for node_id in self._linked
                if not (member := self.members[node_id]).answers or (member.misses and member.belief != ALIVE)
            }
            self._stuck = frozenset(doubted)
            self._reached = frozenset(self._linked) - doubted
        return self._linked

    def reached(self) -> frozenset[NodeId]:
        """Linked peers but those whose link seems stuck: they are worth a new dial beside it."""
        self.linked_peers()
        return self._reached

    def stuck(self) -> frozenset[NodeId]:
        """Linked peers that are not `reached`."""
        self.linked_peers()
        return self._stuck

    def take_hints(self) -> tuple[list[tuple[str, int, NodeId]], list[NodeId]]:
        """Addresses worth dialling (host, port, who is said to live there) and members that are back, learnt since."""
        taken = self._hints, self._returned
        if any(taken):
            self._hints, self._returned = [], []
        return taken

    def absent_since(self, node_id: NodeId) -> float | None:
        """When a member became dead or left; None for one that is here, suspect or unknown."""
        member = self.members.get(node_id)
        return member.absent_since if member else None

    def size(self) -> int:
        """Members that are not departed, this node included."""
        if self._size is None:
            self._size = 1 + sum(1 for member in self.members.values() if not member.departed)
        return self._size

    def slept(self, now: float) -> bool:
        """Whether this node itself was paused since its last tick: a closed lid, a stopped process."""
        return self._last_tick_at is not None and now - self._last_tick_at > self.timing.pause_s

    def validate(self) -> None:
        assert self.me not in self.members
        assert len(self.members) <= MEMBERS_MAX
        assert 0 <= self.awareness.score <= self.awareness.score_max
        self.probing.validate()
        for node_id, member in self._suspects.items():
            assert self.members[node_id] is member
        for node_id, member in self.members.items():
            assert member.state != ALIVE or (member.belief == ALIVE and member.answers), "an alive member answers"
            assert (member.belief == SUSPECT) == (node_id in self._suspects) == (member.suspicion is not None)
            assert member.departed == (member.absent_since is not None)

    # Time

    def tick(self, now: float) -> tuple[list[Effect], bool]:
        """Advance time. Returns effects and whether this node itself was paused since the last tick."""
        effects: list[Effect] = []
        paused = self.slept(now)
        gap = 0.0 if self._last_tick_at is None else now - self._last_tick_at
        self._last_tick_at = now
        self.lag_s = gap if gap > LAG_S else 0.0
        if self.lag_s:
            self._forgive(gap, now)
        if paused:
            self.paused_at = now
            effects.append(Log("warning", f"this node was paused for {gap:.1f} s; nobody is suspected for it"))
        effects += self._probes_due(now)
        effects += self._suspicions_due(now)
        if now >= self._next_probe_at:
            effects += self._probe_next(now)
        if self.rumours and now >= self._next_gossip_at:
            effects += self._gossip(now)
        effects += self._exchange(now)
        if now >= self._next_old_at:
            effects += self._old_heartbeat(now)
        if now >= self._next_forget_at:
            self._next_forget_at = now + FORGET_EVERY_S
            self._forget(now)
        return effects, paused

    def doubt(self, node_id: NodeId, now: float) -> list[Effect]:
        """Probe a member out of turn: something else than a probe went unanswered."""
        member = self.members.get(node_id)
        if member is None or member.departed or not member.linked:
            return []
        return self._probe(member, now, regular=False)

    # Links

    def link_opened(
        self, hello: membership_pb2.Hello, now: float, proved: Iterable[tuple[str, int]] = ()
    ) -> list[Effect]:
        """A peer said Hello. `proved` are addresses where it answered."""
        node_id = NodeId(hello.node_id)
        assert node_id != self.me
        member = self.members.get(node_id)
        if member is None:
            if not self._make_room():
                return [Log("warning", f"more than {MEMBERS_MAX} members: {node_id} is not taken in")]
            member = self.members[node_id] = Member(node_id, life=hello.life, state_since=now)
            self._size = None
            self._spread(member)
        member.name = hello.name
        member.protocol_version = hello.protocol_version
        member.addresses = tuple((address.host, address.port) for address in hello.addresses)
        member.proved = tuple(dict.fromkeys(proved))
        member.linked = True
        member.misses = 0
        member.last_heard = self._last_word_at = now
        member.link_broke_at = None
        self._linked = None
        effects: list[Effect] = []
        if not hello.life or hello.life > member.life:
            # Its own word, and of a later life than what was said of it. (The previous release says no life here.)
            member.incarnation = hello.incarnation
            member.life = max(member.life, hello.life)
            if not (member.old and member.belief == LEFT):
                effects += self._believe(member, ALIVE, now, "linked")
        elif hello.life == member.life:
            member.incarnation = hello.incarnation
        effects += self._refresh(member, now, "linked")
        effects.append(Send(node_id, mesh_pb2.LinkMessage(member_news=self._news_for_link(member, now))))
        if member.old:
            effects.append(Send(node_id, self._heartbeat(with_members=True)))
        return effects

    def link_closed(self, node_id: NodeId, now: float) -> list[Effect]:
        member = self.members.get(node_id)
        if member is None:
            return []
        member.linked = False
        self._linked = None
        if member.belief == ALIVE:
            member.link_broke_at = now
            if self.paused_at is None or now - self.paused_at > self.timing.pause_s:
                return self._suspect(member, self.me, now, "the link broke")
        return self._refresh(member, now, "the link broke")

    def address_proved(self, node_id: NodeId, host: str, port: int, now: float) -> list[Effect]:
        """It answered there. If its link seemed stuck, this was a new one: ask on it at once."""
        member = self.members.get(node_id)
        if member is None:
            return []
        if (host, port) not in member.proved:
            member.proved = (*member.proved, (host, port))
            if member.belief == ALIVE:
                self._spread(member)
        return self.doubt(node_id, now) if member.linked and member.misses else []

    def dial_refused(self, node_id: NodeId, now: float) -> list[Effect]:
        """Its machine answered that nobody listens where it was. Right after its link broke: the process is gone."""
        member = self.members.get(node_id)
        if member is None or member.linked or member.departed or member.link_broke_at is None:
            return []
        if now - member.link_broke_at > REFUSED_WITHIN_S:
            return []
        return self._believe(member, DEAD, now, "its link broke and nobody listens there")

    # Messages

    def word_received(self, node_id: NodeId, now: float) -> list[Effect]:
        """Any message but a goodbye: a sign of life, though not yet that the peer hears us."""
        member = self.members.get(node_id)
        if member is None:
            return []
        member.last_heard = self._last_word_at = now
        member.link_broke_at = None
        if member.old:
            member.misses = 0
            self._linked = None
            return [] if member.belief in (ALIVE, LEFT) else self._believe(member, ALIVE, now, "heard")
        if member.belief in (SUSPECT, DEAD):
            return self._tell(member, member.record(self.me), now)
        if member.misses >= MISSES_MAX:
            return self.doubt(node_id, now)
        return []

    def received(self, peer: NodeId, message: mesh_pb2.LinkMessage, now: float) -> list[Effect]:
        """A probe, an answer to one, news, a heartbeat or a goodbye of a linked peer."""
        member = self.members.get(peer)
        if member is None:
            return []
        match message.WhichOneof("message"):
            case "probe":
                return self._probed(member, message.probe, now)
            case "probe_reply":
                return self._answered(member, message.probe_reply, now)
            case "member_news":
                return self._told(member, message.member_news, now)
            case "heartbeat":
                heartbeat = message.heartbeat
                member.load.CopyFrom(heartbeat.load)
                effects = self._lives(member, heartbeat.life, now)
                return effects + self._merge(heartbeat.members, peer, now)
            case "leave":
                return self._left(member, message.leave, now)
        return []

    def load_told(self, node_id: NodeId, load: membership_pb2.NodeLoad) -> None:
        if member := self.members.get(node_id):
            member.load.CopyFrom(load)

    def goodbye(self, reason: str) -> list[Effect]:
        self._leaving = True
        leave = membership_pb2.Leave(life=self.life, reason=reason)
        return [Send(peer, mesh_pb2.LinkMessage(leave=leave)) for peer in self.linked_peers()]

    # Probes

    def _probe_next(self, now: float) -> list[Effect]:
        self._next_probe_at = now + self.awareness.scale(self.timing.probe_interval_s)
        candidates = [] if self.probing.in_round else [m.node_id for m in self.members.values() if not m.departed]
        while (target := self.probing.next_target(candidates)) is not None:
            candidates = []
            member = self.members.get(target)
            if member is not None and not member.departed and not self.probing.probes(target):
                return self._probe(member, now, regular=True)
        return []

    def _probe(self, member: Member, now: float, *, regular: bool) -> list[Effect]:
        scale = self.awareness.score + 1 if regular else 1
        timeout_s = self.timing.probe_timeout_s * scale if member.linked else 0.0
        run = self.probing.start(
            member.node_id, now, timeout_s=timeout_s, interval_s=self.timing.probe_interval_s * scale, regular=regular
        )
        if run is None:
            return []
        if not member.linked:
            return self._ask_others(run, now)
        return [self._probe_message(member.node_id, member, run.probe_id, timeout_s)]

    def _probe_message(self, to: NodeId, target: Member, probe_id: int, timeout_s: float) -> Send:
        """`to` is the target itself, or a helper."""
        news = self._news()
        if to == target.node_id and target.belief != ALIVE:
            # Lifeguard's buddy system: whoever is suspected is the first to know.
            news = [target.record(self.me), *(record for record in news if record.node_id != to)]
        probe = membership_pb2.Probe(
            probe_id=probe_id,
            target_id=target.node_id,
            timeout_ms=round(1000 * timeout_s),
            life=self.life,
            load=self.load,
            members=news,
        )
        return Send(to, mesh_pb2.LinkMessage(probe=probe))

    def _probes_due(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for relay in self.probing.nacks_due(now):
            effects.append(self._reply(relay.origin, relay.origin_probe_id, relay.target, reached=False))
        for run in self.probing.due(now):
            if now >= run.ends_at:
                effects += self._unanswered(run, now)
            elif not run.indirect:
                effects += self._ask_others(run, now)
        return effects

    def _ask_others(self, run: Run, now: float) -> list[Effect]:
        run.indirect = True
        target = self.members[run.target]
        able = [peer for peer in self.live_peers() if peer != run.target and not self.members[peer].old]
        run.helpers = self.rng.sample(able, min(self.timing.indirect_probes, len(able)))
        left_s = min(self.timing.probe_timeout_s, run.ends_at - now)
        return [self._probe_message(helper, target, run.probe_id, left_s) for helper in run.helpers]

    def _probed(self, peer: Member, probe: membership_pb2.Probe, now: float) -> list[Effect]:
        peer.load.CopyFrom(probe.load)
        effects = self._lives(peer, probe.life, now) + self._merge(probe.members, peer.node_id, now)
        target_id = NodeId(probe.target_id)
        if target_id in ("", self.me):
            return [*effects, self._reply(peer.node_id, probe.probe_id, self.me, reached=True)]
        target = self.members.get(target_id)
        timeout_s = min(probe.timeout_ms / 1000, self.timing.probe_interval_s)
        relay_id = None
        if target is not None and target.linked:
            relay_id = self.probing.relay(peer.node_id, probe.probe_id, target_id, now, timeout_s)
        if relay_id is None or target is None:
            return [*effects, self._reply(peer.node_id, probe.probe_id, target_id, reached=False)]
        return [*effects, self._probe_message(target_id, target, relay_id, timeout_s)]

    def _reply(self, peer: NodeId, probe_id: int, target: NodeId, *, reached: bool) -> Send:
        reply = membership_pb2.ProbeReply(
            probe_id=probe_id,
            target_id=target,
            life=self.life,
            reached=reached,
            load=self.load,
            members=self._news(),
        )
        return Send(peer, mesh_pb2.LinkMessage(probe_reply=reply))

    def _answered(self, peer: Member, reply: membership_pb2.ProbeReply, now: float) -> list[Effect]:
        peer.load.CopyFrom(reply.load)
        effects = self._lives(peer, reply.life, now) + self._merge(reply.members, peer.node_id, now)
        if reply.target_id == peer.node_id and reply.reached:
            effects += self._itself(peer, now)
        if (relay := self.probing.relays.get(reply.probe_id)) and relay.target == reply.target_id == peer.node_id:
            del self.probing.relays[reply.probe_id]
            return [*effects, self._reply(relay.origin, relay.origin_probe_id, relay.target, reached=True)]
        run = self.probing.runs.get(reply.probe_id)
        if run is None or run.target != reply.target_id:
            return effects
        if not reply.reached:
            run.nacks += peer.node_id in run.helpers
            return effects
        self.probing.end(run)
        if run.regular:
            self.awareness.apply(-1)
        if peer.node_id == run.target:
            return effects
        # Others reach it and this node does not. A stream may stall for a second; so ask it once more.
        target = self.members.get(run.target)
        if target is None or not target.linked:
            return effects
        target.misses += 1
        self._linked = None
        if target.misses < MISSES_MAX:
            return effects + self._probe(target, now, regular=False)
        return effects + self._refresh(target, now, "others reach it, this node does not")

    def _itself(self, member: Member, now: float) -> list[Effect]:
        """The member itself answered: the way there and back is good."""
        if member.misses:
            member.misses = 0
            self._linked = None
        return self._refresh(member, now, "answers")

    def _unanswered(self, run: Run, now: float) -> list[Effect]:
        self.probing.end(run)
        member = self.members.get(run.target)
        if run.regular:
            self.awareness.apply(len(run.helpers) - run.nacks if run.helpers else 1)
        if member is None or member.departed:
            return []
        member.misses += 1
        self._linked = None
        alone = self._last_word_at < run.sent_at and len(self.linked_peers()) > 1
        if alone and member.linked and member.misses <= MISSES_MAX:
            # Not a word from anybody: rather this node is cut off than all the others.
            member.misses = MISSES_MAX
            return [*self._refresh(member, now, "nobody at all is heard"), *self._call_the_roll(now)]
        if member.linked and member.last_heard > run.sent_at and member.misses < MISSES_MAX:
            return self._probe(member, now, regular=False)  # it speaks; the answer may only be late
        return self._suspect(member, self.me, now, "answers nobody")

    def _call_the_roll(self, now: float) -> list[Effect]:
        if now < self._next_roll_call_at:
            return []
        self._next_roll_call_at = now + ROLL_CALL_EVERY_S
        return [effect for peer in self.linked_peers() for effect in self.doubt(peer, now)]

    # Beliefs

    def _suspect(self, member: Member, by: NodeId, now: float, why: str) -> list[Effect]:
        if member.suspicion is not None:
            if member.suspicion.confirm(by) and not member.old:
                self._spread(member)
            return self._refresh(member, now, why)
        return self._believe(member, SUSPECT, now, why, accuser=by)

    def _suspicions_due(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for member in list(self._suspects.values()):
            assert member.suspicion is not None
            if now >= member.suspicion.ends_at:
                said = len(member.suspicion.said_by)
                effects += self._believe(member, DEAD, now, f"suspect for too long, {said} say so")
        return effects

    def _believe(
        self, member: Member, belief: int, now: float, why: str, accuser: NodeId | None = None
    ) -> list[Effect]:
        """Change what is believed of a member, and tell others."""
        member.belief = belief
        self._size = self._linked = None
        if belief == SUSPECT:
            size = self.size()
            member.suspicion = Suspicion(
                accuser or self.me,
                now,
                self.timing.suspicion_min_s(size),
                self.timing.suspicion_max_s(size),
                self.timing.confirmations(size),
            )
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
        self._spread(member)
        return self._refresh(member, now, why)

    def _refresh(self, member: Member, now: float, why: str) -> list[Effect]:
        """Bring `state` up to date with what it follows from."""
        state = SUSPECT if member.belief == ALIVE and not member.answers else member.belief
        if state == member.state:
            return []
        member.state = state
        member.state_since = now
        self._live = None
        name = membership_pb2.MemberState.Name(membership_pb2.MemberState.ValueType(state))
        word = name.removeprefix("MEMBER_STATE_").lower()
        return [
            Log("info", f"{member.name or member.node_id[:8]} is {word}: {why}"),
            MemberChanged(member.node_id, state),
        ]

    def _lives(self, member: Member, life: int, now: float) -> list[Effect]:
        """A member's own word of its life: a later one denies what was said of the earlier."""
        if not member.life < life <= max(member.life, self.life) + LIFE_JUMP_MAX:
            return []
        member.life = life
        if member.belief == ALIVE:
            self._spread(member)
            return []
        return self._believe(member, ALIVE, now, "denies it")

    def _left(self, member: Member, leave: membership_pb2.Leave, now: float) -> list[Effect]:
        if leave.life < member.life:
            return []  # the late goodbye of an earlier life
        member.life = leave.life
        return [] if member.belief == LEFT else self._believe(member, LEFT, now, "said goodbye")

    # Records of others

    def _told(self, peer: Member, news: membership_pb2.MemberNews, now: float) -> list[Effect]:
        effects = self._merge(news.members, peer.node_id, now)
        if news.reply_wanted:
            reply = membership_pb2.MemberNews(members=self._all_records())
            effects.append(Send(peer.node_id, mesh_pb2.LinkMessage(member_news=reply)))
        return effects

    def _merge(self, records: Iterable[membership_pb2.MemberRecord], teller: NodeId, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for index, record in enumerate(records):
            if index > MEMBERS_MAX:
                break
            if record.node_id == self.me:
                effects += self._merge_own(record, teller)
            elif readable(record):
                effects += self._merge_one(record, teller, now)
        return effects

    def _merge_own(self, record: membership_pb2.MemberRecord, teller: NodeId) -> list[Effect]:
        """What others believe of this node. Deny it where it is wrong, with a life above theirs."""
        mine = record.incarnation == self.incarnation
        if self._leaving or record.life < self.life or (mine and record.state == ALIVE and record.life == self.life):
            return []
        if record.life > self.life + LIFE_JUMP_MAX:
            return [Log("warning", f"{teller} speaks of an absurd life of this node: ignored")]
        self.life = record.life + 1
        if mine and record.state != ALIVE:
            self.awareness.apply(1)  # Lifeguard: who is suspected is perhaps slow
        self.rumours.tell(self.me, self.timing.retransmits(self.size()))
        news = membership_pb2.MemberNews(members=[self._own_record()])
        return [Send(teller, mesh_pb2.LinkMessage(member_news=news))]

    def _merge_one(self, record: membership_pb2.MemberRecord, teller: NodeId, now: float) -> list[Effect]:
        node_id = NodeId(record.node_id)
        member = self.members.get(node_id)
        if member is None:
            return self._meet(record, now)
        if record.state == ALIVE and not member.linked and record.life >= member.life and not member.departed:
            self._hints += [(address.host, address.port, node_id) for address in record.addresses]
        if member.outranks(record.life, record.state):
            if record.state == SUSPECT and member.belief == SUSPECT and record.life == member.life and not member.old:
                return self._suspect(member, NodeId(record.said_by or teller), now, "others say so")
            return []
        if record.life > max(member.life, self.life) + LIFE_JUMP_MAX or (member.old and member.linked):
            return []
        if node_id == teller and record.state == ALIVE:
            return self._lives(member, record.life, now)
        state = int(record.state)
        said_by = NodeId(record.said_by or teller)
        if member.answers and not member.misses and state in (SUSPECT, DEAD):
            if now - member.last_heard < self.timing.pause_s:
                return self._tell(member, record, now)  # it spoke a moment ago: it shall deny it itself
            state = SUSPECT  # this node has a link of its own, so it may find out by itself
            if self.members[node_id].outranks(record.life, state):
                return []
        if record.life > member.life:
            member.incarnation = record.incarnation
        member.life = record.life
        member.name = member.name or record.name
        was_departed = member.departed
        effects = self._believe(member, state, now, "others say so", accuser=said_by)
        if state == SUSPECT and member.linked and self.rng.random() < CONFIRMERS / self.size():
            effects += self.doubt(node_id, now)
        if state == ALIVE and was_departed and not member.linked:
            self._returned.append(node_id)
            self._hints += [(address.host, address.port, node_id) for address in record.addresses]
        return effects

    def _meet(self, record: membership_pb2.MemberRecord, now: float) -> list[Effect]:
        """Somebody of whom only others have spoken so far: worth a dial, or good to know as gone."""
        if not self._make_room() or record.life > self.life + LIFE_JUMP_MAX:
            return []
        node_id = NodeId(record.node_id)
        member = Member(node_id, record.incarnation, record.life, record.name, state_since=now)
        self.members[node_id] = member
        if record.state in (DEAD, LEFT):
            member.state = int(record.state)
        else:
            self._hints += [(address.host, address.port, node_id) for address in record.addresses]
        return self._believe(member, int(record.state), now, "others say so", accuser=NodeId(record.said_by or self.me))

    def _tell(self, member: Member, record: membership_pb2.MemberRecord, now: float) -> list[Effect]:
        """Let a member know what is said of it, so that it can deny it."""
        if now - member.told_at < TELL_EVERY_S:
            return []
        member.told_at = now
        news = membership_pb2.MemberNews(members=[record])
        return [Send(member.node_id, mesh_pb2.LinkMessage(member_news=news))]

    # Telling others

    def _spread(self, member: Member) -> None:
        self.rumours.tell(member.node_id, self.timing.retransmits(self.size()))

    def _news(self) -> list[membership_pb2.MemberRecord]:
        if not self.rumours:
            return []
        records = (self._record_of(node_id) for node_id in self.rumours.take(NEWS_MAX))
        return [record for record in records if record is not None]

    def _record_of(self, node_id: NodeId) -> membership_pb2.MemberRecord | None:
        if node_id == self.me:
            return self._own_record()
        member = self.members.get(node_id)
        if member is None or (member.old and member.state in (SUSPECT, DEAD)):
            return None  # one of the previous release could not deny it
        if member.suspicion is None:
            return member.record()
        # One of those who said so, so that in time all of them are heard.
        said_by = member.suspicion.said_by
        return member.record(said_by[int(self.rng.random() * len(said_by))])

    def _own_record(self) -> membership_pb2.MemberRecord:
        return membership_pb2.MemberRecord(
            node_id=self.me, incarnation=self.incarnation, life=self.life, state=membership_pb2.MEMBER_STATE_ALIVE
        )

    def _all_records(self) -> list[membership_pb2.MemberRecord]:
        records = (self._record_of(node_id) for node_id in self.members)
        return [self._own_record(), *(record for record in records if record is not None)]

    def _news_for_link(self, member: Member, now: float) -> membership_pb2.MemberNews:
        """All that is known where that is cheap, else what the two must know of each other."""
        if self.size() <= EXCHANGE_FREELY_MAX or now >= self._next_full_at:
            self._next_full_at = now + EXCHANGE_GAP_S
            return membership_pb2.MemberNews(members=self._all_records())
        return membership_pb2.MemberNews(members=[self._own_record(), member.record(self.me)])

    def _gossip(self, now: float) -> list[Effect]:
        self._next_gossip_at = now + self.timing.gossip_interval_s
        peers = self.live_peers()
        effects: list[Effect] = []
        for peer in self.rng.sample(peers, min(self.timing.gossip_peers, len(peers))):
            if news := self._news():
                message = mesh_pb2.LinkMessage(member_news=membership_pb2.MemberNews(members=news))
                effects.append(Send(peer, message))
        return effects

    def _exchange(self, now: float) -> list[Effect]:
        """Compare everything with one peer, now and then: what gossip missed."""
        if self._next_exchange_at is None:
            self._next_exchange_at = now + self.timing.exchange_interval_s * self.rng.random()
        if now < self._next_exchange_at or not (peers := self.live_peers()):
            return []
        self._next_exchange_at = now + self.timing.exchange_every_s(self.size())
        news = membership_pb2.MemberNews(members=self._all_records(), reply_wanted=True)
        return [Send(self.rng.sample(peers, 1)[0], mesh_pb2.LinkMessage(member_news=news))]

    # The previous release

    def _old_heartbeat(self, now: float) -> list[Effect]:
        self._next_old_at = now + OLD_HEARTBEAT_S
        old = [peer for peer in self.linked_peers() if self.members[peer].old]
        if not old:
            return []
        self._old_heartbeats += 1
        message = self._heartbeat(with_members=self._old_heartbeats % OLD_MEMBERS_EVERY == 0)
        return [Send(peer, message) for peer in old]

    def _heartbeat(self, *, with_members: bool) -> mesh_pb2.LinkMessage:
        heartbeat = membership_pb2.Heartbeat(sequence=self._old_heartbeats, life=self.life, load=self.load)
        if with_members:
            heartbeat.members.extend(self.members[peer].record() for peer in self.live_peers())
        return mesh_pb2.LinkMessage(heartbeat=heartbeat)

    # Housekeeping

    def _forgive(self, gap_s: float, now: float) -> None:
        self.probing.forgive(gap_s)
        for member in self._suspects.values():
            assert member.suspicion is not None
            member.suspicion.started_at = min(now, member.suspicion.started_at + gap_s)
        for member in self.members.values():
            member.last_heard = min(now, member.last_heard + gap_s)
            if member.link_broke_at is not None:
                member.link_broke_at = min(now, member.link_broke_at + gap_s)

    def _forget(self, now: float) -> None:
        for member in list(self.members.values()):
            if member.absent_since is not None and now - member.absent_since > FORGET_AFTER_S and not member.linked:
                self._drop(member)

    def _make_room(self) -> bool:
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
        self._size = self._live = self._linked = None
