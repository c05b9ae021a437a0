"""Who is here and alive: SWIM with Lifeguard, over the links between nodes.

Idea: every interval a node probes one member; without an answer it asks a few others to try; where nobody gets one the
member is suspect, for a time that grows shorter as others confirm it, and then dead. What is news about members rides
along with probes and answers. A suspect is told so and denies it by raising its `life`, which only it may do. Probes
are answered on the node's own loop, so a node that hangs is seen though its kernel still answers.

Beside SWIM, because members here hold links: a broken link makes suspect at once, and where a redial then finds nobody
listening, the member is dead at once. What is believed and told is roster.py's, who does not answer detector.py's; this
one has the links, the time and the messages.

After a pause of this node itself (a closed lid) nobody else is at fault: the silence is forgiven.

Does not: elect, or change what is durable. Its view is a hint: two nodes may see different meshes at a time.

Source: SWIM (see rumours.py); Lifeguard (see awareness.py), its buddy system in section IV.D; hashicorp/memberlist.
"""

from collections.abc import Iterable

from mesh.denials import Denials
from mesh.detector import Detector
from mesh.effects import CutOff, Effect, Log, Send
from mesh.gossip import Rng
from mesh.identity import NodeId
from mesh.member import ALIVE, DEAD, LEFT, MISSES_MAX, SUSPECT, Member
from mesh.roster import MEMBERS_MAX, Roster
from mesh.timing import LAN, Timing
from mesh.wire import membership_pb2, mesh_pb2

__all__ = ["ALIVE", "DEAD", "LEFT", "SUSPECT", "Member", "Membership"]

FORGET_EVERY_S = 60.0
#: All records go along with a new link in a mesh of up to so many members; in a larger one at most once a second.
EXCHANGE_FREELY_MAX = 32
EXCHANGE_GAP_S = 1.0
#: A gap between ticks longer than this is our own lateness, and forgiven to everybody.
LAG_S = 0.3
#: A refused redial so soon after the link broke means that the process is gone.
REFUSED_WITHIN_S = 10.0


class Membership:
    def __init__(
        self,
        me: NodeId,
        life: int,
        rng: Rng,
        timing: Timing = LAN,
        incarnation: int = 0,
        denials: Denials | None = None,
    ) -> None:
        self.me = me
        self.rng = rng
        self.timing = timing
        #: What this node is doing, told with every probe; the shell keeps it up to date (`tell`).
        self.load = membership_pb2.NodeLoad()
        self.roster = Roster(me, life, incarnation, rng, timing, denials)
        self.members = self.roster.members
        self.detector = Detector(self.roster, self.load)
        self._pause_s = timing.pause_s
        self.lag_s = 0.0  # by how much the last tick was late; 0 where it was not
        self.paused_at: float | None = None
        self._last_tick_at: float | None = None
        self._next_gossip_at = 0.0
        self.next_exchange_at: float | None = None
        self._next_forget_at = 0.0
        self._next_full_at = 0.0

    # What others ask

    @property
    def life(self) -> int:
        return self.roster.life

    def live_peers(self) -> list[NodeId]:
        """Members that are alive and linked, in order of id. Shared: not to be changed."""
        return self.roster.live_peers()

    def view(self) -> frozenset[NodeId]:
        """The live view: live peers and this node."""
        return self.roster.view()

    def linked_peers(self) -> list[NodeId]:
        """In order of id. Shared: not to be changed."""
        return self.roster.linked_peers()

    def reached(self) -> frozenset[NodeId]:
        """Linked peers but those whose link seems stuck."""
        return self.roster.reached()

    def stuck(self) -> list[NodeId]:
        """Linked peers that do not answer on their link: worth a new dial beside it. In order of id. Shared."""
        return self.roster.stuck()

    def absent_since(self, node_id: NodeId) -> float | None:
        """When a member became dead or left; None for one that is here, suspect or unknown."""
        return self.roster.absent_since(node_id)

    def tell(self, load: membership_pb2.NodeLoad) -> None:
        """Let this be what peers hear of this node's load."""
        self.load = self.detector.load = load

    def load_of(self, node_id: NodeId) -> membership_pb2.NodeLoad:
        """What a node told last of what it is doing; nothing of one that is not known. This node's own is `load`."""
        if node_id == self.me:
            return self.load
        member = self.members.get(node_id)
        return member.load if member else membership_pb2.NodeLoad()

    def take_hints(self) -> tuple[list[tuple[str, int, NodeId]], list[NodeId]]:
        """Addresses worth dialling (host, port, who is said to live there) and members that are back, learnt since."""
        return self.roster.take_hints()

    def doubt(self, node_id: NodeId, now: float) -> list[Effect]:
        """Probe a member out of turn: something else than a probe went unanswered."""
        return self.detector.doubt(node_id, now)

    def slept(self, now: float) -> bool:
        """Whether this node itself was paused since its last tick: a closed lid, a stopped process."""
        return self._last_tick_at is not None and now - self._last_tick_at > self._pause_s

    def validate(self) -> None:
        self.roster.validate()
        self.detector.probing.validate()

    # Time

    def tick(self, now: float) -> tuple[list[Effect], bool]:
        """Advance time. Returns effects and whether this node itself was paused since the last tick."""
        effects: list[Effect] = []
        paused = self.slept(now)
        gap = 0.0 if self._last_tick_at is None else now - self._last_tick_at
        self._last_tick_at = now
        self.lag_s = gap if gap > LAG_S else 0.0
        if self.lag_s:
            self.roster.forgive(gap, now)
            self.detector.probing.forgive(gap)
        if paused:
            self.paused_at = now
            effects.append(Log("warning", f"this node was paused for {gap:.1f} s; nobody is suspected for it"))
        effects += self.detector.tick(now)
        effects += self.roster.suspicions_due(now)
        if self.roster.rumours and now >= self._next_gossip_at:
            effects += self._gossip(now)
        effects += self._exchange(now)
        if now >= self._next_forget_at:
            self._next_forget_at = now + FORGET_EVERY_S
            self.roster.forget(now)
        return effects, paused

    # Links

    def link_opened(
        self, hello: membership_pb2.Hello, now: float, proved: Iterable[tuple[str, int]] = ()
    ) -> list[Effect]:
        """A peer said Hello. `proved` are addresses where it answered."""
        node_id = NodeId(hello.node_id)
        assert node_id != self.me
        if self.roster.denials.is_denied(node_id):
            return [CutOff(node_id)]
        member = self.members.get(node_id)
        if member is None:
            if not self.roster.make_room():
                return [Log("warning", f"more than {MEMBERS_MAX} members: {node_id} is not taken in")]
            member = Member(node_id, life=hello.life, state_since=now)
            self.roster.take_in(member)
            self.roster.spread(member)
        member.name = hello.name
        member.addresses = tuple((address.host, address.port) for address in hello.addresses)
        member.proved = tuple(dict.fromkeys(proved))
        member.linked = True
        member.misses = 0
        member.last_heard = self.detector.last_word_at = now
        member.link_broke_at = None
        self.roster.links_changed(member)
        effects: list[Effect] = []
        if hello.life > member.life:
            # Its own word, and of a later life than what was said of it.
            member.incarnation = hello.incarnation
            member.life = hello.life
            effects += self.roster.believe(member, ALIVE, now, "linked")
        elif hello.life == member.life:
            member.incarnation = hello.incarnation
        effects += self.roster.refresh(member, now, "linked")
        effects.append(Send(node_id, mesh_pb2.LinkMessage(member_news=self._news_for_link(member, now))))
        return effects

    def link_closed(self, node_id: NodeId, now: float) -> list[Effect]:
        member = self.members.get(node_id)
        if member is None:
            return []
        member.linked = False
        self.roster.links_changed(member)
        if member.belief == ALIVE:
            member.link_broke_at = now
            if self.paused_at is None or now - self.paused_at > self.timing.pause_s:
                return self.roster.suspect(member, self.me, now, "the link broke")
        return self.roster.refresh(member, now, "the link broke")

    def expel(self, node_id: NodeId) -> list[Effect]:
        """A node is denied: it is no member from now on."""
        member = self.members.get(node_id)
        return self.roster.expel(member) if member is not None else []

    def address_proved(self, node_id: NodeId, host: str, port: int, now: float) -> list[Effect]:
        """It answered there. If its link seemed stuck, this was a new one: ask on it at once."""
        member = self.members.get(node_id)
        if member is None:
            return []
        if (host, port) not in member.proved:
            member.proved = (*member.proved, (host, port))
            if member.belief == ALIVE:
                self.roster.spread(member)
        return self.doubt(node_id, now) if member.linked and member.misses else []

    def dial_refused(self, node_id: NodeId, now: float) -> list[Effect]:
        """Its machine answered that nobody listens where it was. Right after its link broke: the process is gone."""
        member = self.members.get(node_id)
        if member is None or member.linked or member.departed or member.link_broke_at is None:
            return []
        if now - member.link_broke_at > REFUSED_WITHIN_S:
            return []
        return self.roster.believe(member, DEAD, now, "its link broke and nobody listens there")

    # Messages

    def word_received(self, node_id: NodeId, now: float) -> list[Effect]:
        """Any message but a goodbye: a sign of life, though not yet that the peer hears us."""
        member = self.members.get(node_id)
        if member is None or not member.linked:
            return []
        member.last_heard = self.detector.last_word_at = now
        member.link_broke_at = None
        if member.belief in (SUSPECT, DEAD):
            return self.roster.tell(member, member.record(self.me), now)
        if member.misses >= MISSES_MAX:
            return self.doubt(node_id, now)
        return []

    def received(self, peer: NodeId, message: mesh_pb2.LinkMessage, now: float) -> list[Effect]:
        """A probe, an answer to one, news or a goodbye of a linked peer."""
        member = self.members.get(peer)
        if member is None:
            return []
        match message.WhichOneof("message"):
            case "probe":
                return self.detector.probed(member, message.probe, now)
            case "probe_reply":
                return self.detector.answered(member, message.probe_reply, now)
            case "member_news":
                return self._told(member, message.member_news, now)
            case "leave":
                return self.roster.left(member, message.leave, now)
        return []

    def load_told(self, node_id: NodeId, load: membership_pb2.NodeLoad) -> None:
        if member := self.members.get(node_id):
            member.load_told(load)

    def goodbye(self, reason: str) -> list[Effect]:
        self.roster.leaving = True
        leave = membership_pb2.Leave(life=self.life, reason=reason)
        return [Send(peer, mesh_pb2.LinkMessage(leave=leave)) for peer in self.linked_peers()]

    def _told(self, peer: Member, news: membership_pb2.MemberNews, now: float) -> list[Effect]:
        effects = self.roster.merge(news.members, peer.node_id, now)
        if news.reply_wanted:
            reply = membership_pb2.MemberNews(members=self.roster.all_records())
            effects.append(Send(peer.node_id, mesh_pb2.LinkMessage(member_news=reply)))
        return effects

    # Telling others

    def _news_for_link(self, member: Member, now: float) -> membership_pb2.MemberNews:
        """All that is known where that is cheap, else what the two must know of each other."""
        if self.roster.size() <= EXCHANGE_FREELY_MAX or now >= self._next_full_at:
            self._next_full_at = now + EXCHANGE_GAP_S
            return membership_pb2.MemberNews(members=self.roster.all_records())
        return membership_pb2.MemberNews(members=[self.roster.own_record(), member.record(self.me)])

    def _gossip(self, now: float) -> list[Effect]:
        self._next_gossip_at = now + self.timing.gossip_interval_s
        peers = self.live_peers()
        effects: list[Effect] = []
        for peer in self.rng.sample(peers, min(self.timing.gossip_peers, len(peers))):
            if news := self.roster.news():
                message = mesh_pb2.LinkMessage(member_news=membership_pb2.MemberNews(members=news))
                effects.append(Send(peer, message))
        return effects

    def _exchange(self, now: float) -> list[Effect]:
        """Compare everything with one peer, now and then: what gossip missed."""
        if self.next_exchange_at is None:
            self.next_exchange_at = now + self.timing.exchange_interval_s * self.rng.random()
        if now < self.next_exchange_at or not (peers := self.live_peers()):
            return []
        self.next_exchange_at = now + self.timing.exchange_every_s(self.roster.size())
        news = membership_pb2.MemberNews(members=self.roster.all_records(), reply_wanted=True)
        return [Send(self.rng.sample(peers, 1)[0], mesh_pb2.LinkMessage(member_news=news))]
