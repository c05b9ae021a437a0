"""Who does not answer: probes on this node's behalf and on that of others, and what their outcome means.

Idea: SWIM's: one member an interval, through a few others where it does not answer, suspect where nobody reaches it.
Because members hold links here, an outcome says more. Who answers others but not this node, twice in a row, is out of
*its* reach only. A node that hears nobody at all first doubts itself: it asks everybody at once, takes those that do
not answer for out of reach, and says nothing against them. And the first that answers again is reason to ask the others
again, so that a cut that is over is over for all within seconds, however many they are. The dead whose link is still
open are asked too: a cut may leave two nodes dead to each other with nothing more to say. So are suspects of whom
nobody says the same for as long as it takes to confirm it: a rumour, and so a denial, misses each node with a chance of
e^-retransmits, which among hundreds of nodes that all deny something happens every time, and the regular probe of one
among hundreds comes minutes later.

Source: SWIM and Lifeguard (see probing.py); the buddy system is Lifeguard's section IV.D.
"""

from mesh.effects import Effect, Send
from mesh.identity import NodeId
from mesh.member import ALIVE, MISSES_MAX, Member
from mesh.probing import Probing, Run
from mesh.roster import Roster
from mesh.wire import membership_pb2, mesh_pb2

#: How often one member is probed out of turn at most.
DOUBT_EVERY_S = 0.4
#: How often a node that hears nobody may ask everybody at once.
ROLL_CALL_EVERY_S = 5.0
#: Others that are asked again when one out of reach answers: each answer asks as many more.
ASK_AGAIN = 3


class Detector:
    def __init__(self, roster: Roster, load: membership_pb2.NodeLoad) -> None:
        self.roster = roster
        self.load = load
        self.probing = Probing(roster.rng)
        self.last_word_at = float("-inf")  # from anybody
        #: Drawn, so that nodes that start together do not probe together.
        self._next_probe_at: float | None = None
        self._next_roll_call_at = 0.0
        self._next_lost_at = 0.0

    def tick(self, now: float) -> list[Effect]:
        effects = self.due(now)
        while self.roster.doubted:
            effects += self.doubt(self.roster.doubted.pop(), now)
        if self._next_probe_at is None:
            self._next_probe_at = now + self.roster.rng.random() * self.roster.timing.probe_interval_s
        if now >= self._next_lost_at:
            self._next_lost_at = now + self.roster.timing.probe_interval_s
            effects += self._ask_again(now, 1)
        return effects + self.probe_next(now) if now >= self._next_probe_at else effects

    def probe_next(self, now: float) -> list[Effect]:
        """The interval's own probe."""
        self._next_probe_at = now + self.roster.awareness.scale(self.roster.timing.probe_interval_s)
        for _ in range(2):
            while (target := self.probing.next_target()) is not None:
                member = self.roster.members.get(target)
                if member is not None and not member.departed and not self.probing.probes(target):
                    return self._probe(member, now, regular=True)
            self.probing.new_round([m.node_id for m in self.roster.members.values() if not m.departed])
        return []

    def doubt(self, node_id: NodeId, now: float, *, ask_others: bool = True) -> list[Effect]:
        """Probe a member out of turn: something else than a probe went unanswered."""
        member = self.roster.members.get(node_id)
        if member is None or member.departed or not member.linked or now - member.doubted_at < DOUBT_EVERY_S:
            return []
        member.doubted_at = now
        return self._probe(member, now, regular=False, ask_others=ask_others)

    def _probe(self, member: Member, now: float, *, regular: bool, ask_others: bool = True) -> list[Effect]:
        scale = self.roster.awareness.score + 1 if regular else 1
        timeout_s = self.roster.timing.probe_timeout_s * scale if member.linked else 0.0
        run = self.probing.start(
            member.node_id,
            now,
            timeout_s=timeout_s,
            interval_s=self.roster.timing.probe_interval_s * scale,
            regular=regular,
        )
        if run is None:
            return []
        run.indirect = not ask_others
        if not member.linked:
            return self._ask_others(run, now)
        return [self._probe_message(member.node_id, member, run.probe_id, timeout_s)]

    def _probe_message(self, to: NodeId, target: Member, probe_id: int, timeout_s: float) -> Send:
        """`to` is the target itself, or a helper."""
        news = self.roster.news()
        if to == target.node_id and target.belief != ALIVE:
            # Lifeguard's buddy system: whoever is suspected is the first to know.
            news = [target.record(self.roster.me), *(record for record in news if record.node_id != to)]
        probe = membership_pb2.Probe(
            probe_id=probe_id,
            target_id=target.node_id,
            timeout_ms=round(1000 * timeout_s),
            life=self.roster.life,
            load=self.load,
            members=news,
        )
        return Send(to, mesh_pb2.LinkMessage(probe=probe))

    def due(self, now: float) -> list[Effect]:
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
        target = self.roster.members.get(run.target)
        if target is None:
            return []  # forgotten meanwhile
        able = [peer for peer in self.roster.live_peers() if peer != run.target]
        run.helpers = self.roster.rng.sample(able, min(self.roster.timing.indirect_probes, len(able)))
        left_s = min(self.roster.timing.probe_timeout_s, run.ends_at - now)
        return [self._probe_message(helper, target, run.probe_id, left_s) for helper in run.helpers]

    def probed(self, peer: Member, probe: membership_pb2.Probe, now: float) -> list[Effect]:
        peer.load_told(probe.load)
        effects = self.roster.lives(peer, probe.life, now) + self.roster.merge(probe.members, peer.node_id, now)
        target_id = NodeId(probe.target_id)
        if target_id in ("", self.roster.me):
            return [*effects, self._reply(peer.node_id, probe.probe_id, self.roster.me, reached=True)]
        target = self.roster.members.get(target_id)
        timeout_s = min(probe.timeout_ms / 1000, self.roster.timing.probe_interval_s)
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
            life=self.roster.life,
            reached=reached,
            load=self.load,
            members=self.roster.news(),
        )
        return Send(peer, mesh_pb2.LinkMessage(probe_reply=reply))

    def answered(self, peer: Member, reply: membership_pb2.ProbeReply, now: float) -> list[Effect]:
        peer.load_told(reply.load)
        was_out = peer.linked and peer.state != ALIVE
        effects = self.roster.lives(peer, reply.life, now) + self.roster.merge(reply.members, peer.node_id, now)
        if reply.target_id == peer.node_id and reply.reached:
            effects += self._itself(peer, now)
            if was_out and peer.state == ALIVE:
                effects += self._ask_again(now, ASK_AGAIN)
        if (relay := self.probing.relays.get(reply.probe_id)) and relay.target == reply.target_id == peer.node_id:
            del self.probing.relays[reply.probe_id]
            return [*effects, self._reply(relay.origin, relay.origin_probe_id, relay.target, reached=True)]
        run = self.probing.runs.get(reply.probe_id)
        if run is None or run.target != reply.target_id:
            return effects
        if not reply.reached:
            run.nacked |= {peer.node_id} & set(run.helpers)
            return effects
        self.probing.end(run)
        if run.regular:
            self.roster.awareness.apply(-1)
        if peer.node_id == run.target:
            return effects
        # Others reach it and this node does not. A stream may stall for a second; so ask it once more.
        target = self.roster.members.get(run.target)
        if target is None or not target.linked:
            return effects
        target.misses += 1
        self.roster.links_changed(target)
        if target.misses < MISSES_MAX:
            return effects + self._probe(target, now, regular=False)
        return effects + self.roster.refresh(target, now, "others reach it, this node does not")

    def _itself(self, member: Member, now: float) -> list[Effect]:
        """The member itself answered: the way there and back is good."""
        member.accused = None
        if member.misses:
            member.misses = 0
            self.roster.links_changed(member)
        return self.roster.refresh(member, now, "answers")

    def _ask_again(self, now: float, count: int) -> list[Effect]:
        """Those on open links that are out of reach, dead or suspect for long: the ones not asked for the longest."""
        doubtful = [*self.roster.presence.lost.values(), *self.roster.unconfirmed(now)]
        doubtful.sort(key=lambda member: (member.doubted_at, member.node_id))
        effects: list[Effect] = []
        for member in doubtful[:count]:
            if not self.probing.probes(member.node_id) and now - member.doubted_at >= DOUBT_EVERY_S:
                member.doubted_at = now
                effects += self._probe(member, now, regular=False, ask_others=False)
        return effects

    def _unanswered(self, run: Run, now: float) -> list[Effect]:
        self.probing.end(run)
        member = self.roster.members.get(run.target)
        if run.regular:
            self.roster.awareness.apply(len(run.helpers) - len(run.nacked) if run.helpers else 1)
        if member is None or member.departed:
            return []
        member.misses += 1
        self.roster.links_changed(member)
        alone = self.last_word_at < run.timeout_at and len(self.roster.linked_peers()) > 1
        if alone and member.linked and member.misses <= MISSES_MAX:
            # Not a word from anybody: rather this node is cut off than all the others.
            member.misses = MISSES_MAX
            self.roster.links_changed(member)
            return [*self.roster.refresh(member, now, "nobody at all is heard"), *self._call_the_roll(now)]
        if member.linked and member.last_heard > run.sent_at and member.misses < MISSES_MAX:
            return self._probe(member, now, regular=False)  # it speaks; the answer may only be late
        return self.roster.convict(member, now)

    def _call_the_roll(self, now: float) -> list[Effect]:
        if now < self._next_roll_call_at:
            return []
        self._next_roll_call_at = now + ROLL_CALL_EVERY_S
        effects: list[Effect] = []
        for peer in self.roster.linked_peers():
            if self.roster.members[peer].answers:
                effects += self.doubt(peer, now, ask_others=False)
        return effects
