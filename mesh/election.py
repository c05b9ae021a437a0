"""Who leads. A leader places work well; safety never depends on there being exactly one.

Idea: Raft's election (persisted term and vote, randomised timeouts, pre-vote) with one change: the majority is taken of
the candidate's *own live view*, not of a fixed roster. So any set of nodes that can reach each other has a leader, one
node alone as well; two halves of a partition have one each, by design, and merge to one when they meet: the leader of
the larger group (by who really answers it; tie: the lower id) stands at the highest term + 1, the other concedes.

Rules: a term and a vote are durable before they are told. A voter refuses while it hears a leader that is alive in its
view. A leader unheard by a majority of its view for one timeout steps down. A node that was paused follows first: it
deposes nobody. Terms that jump absurdly are refused. A denied node's tokens are forgotten, and its vote is none.

Source: Ongaro, "Consensus: bridging theory and practice" (2014), sections 3.4, 6.2 and 9.6. Given up against it: two
leaders at a time are possible, so a leader's word is only ever an optimisation; see docs/guarantees.md.
"""

from dataclasses import dataclass, field
from enum import Enum

from mesh.denials import Denials
from mesh.effects import Effect, LeaderChanged, Log, SaveVote, Send
from mesh.gossip import Rng
from mesh.identity import NodeId
from mesh.wire import membership_pb2, mesh_pb2
from mesh.wire.common_pb2 import FencingToken

BEAT_S = 0.2
#: Five beats at least: a leader is not replaced for a hiccup of its machine.
TIMEOUT_MIN_S = 1.0
TIMEOUT_MAX_S = 1.6
#: Who answers no beat for so long, or leads and sends none, is probed out of turn: before a timeout ends.
UNHEARD_S = 0.9
#: Longer than membership takes to suspect (2 s): where peers fell silent the view shrinks first, and a leader that is
#: left alone keeps its term instead of stepping down.
STEP_DOWN_S = 2.5
#: A node that starts gives the others this long to be found before it leads itself.
GRACE_S = 0.8
#: A leader that is known to be gone is not waited for. Survivors stand one after the other, by id, a step apart, so
#: that the first has its votes before the second asks; the random part breaks ties of views that differ.
STEP_S = 0.1
STEPS_MAX = 10
JITTER_MAX_S = 0.03
#: A candidate without a majority (a split vote) tries again sooner than a follower gives up its leader.
RETRY_MIN_S = 0.2
RETRY_MAX_S = 0.5
#: Against a hostile or corrupt term that would use up the number space.
TERM_JUMP_MAX = 1_000_000


class Role(Enum):
    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


def token_order(token: FencingToken) -> tuple[int, str]:
    """Tokens compare as (term, leader id)."""
    return token.term, token.leader_id


@dataclass
class Election:
    """Invariants: `voted_for` belongs to `term`; a leader has itself in `leader`; votes are of `view` members only."""

    me: NodeId
    rng: Rng
    may_lead: bool = True  # a worker votes and never stands
    denials: Denials = field(default_factory=Denials)
    term: int = 0
    voted_for: str = ""
    role: Role = Role.FOLLOWER
    leader: FencingToken | None = None
    highest: FencingToken = field(default_factory=FencingToken)
    deadline: float | None = None  # when a follower stands, a candidate tries again
    next_beat_at: float = 0.0
    leader_heard_at: float = 0.0
    votes: set[NodeId] = field(default_factory=set)
    electorate: frozenset[NodeId] = frozenset()
    asked_term: int = 0  # of the vote requests under way
    followers: dict[NodeId, float] = field(default_factory=dict)  # who answered our beats, and when
    merging: bool = False
    beaten: dict[NodeId, float] = field(default_factory=dict)  # since when a follower is sent beats
    silent: list[NodeId] = field(default_factory=list)  # of those, who did not answer for a while

    # Events

    def tick(self, now: float, view: frozenset[NodeId], *, paused: bool = False, lag_s: float = 0.0) -> list[Effect]:
        """`lag_s`: by how much this tick was late. What came meanwhile is still to be read: nobody is late for it."""
        if self.deadline is None:
            self.deadline = now + GRACE_S + self._turn(view)
        self.deadline += lag_s
        if paused:
            return self._follow_after_pause(now)
        if self.role is Role.LEADER:
            return self._lead(now, view)
        if self.leader is not None and self.leader.leader_id not in view:
            # Its silence was noticed by membership, or its link broke: no need to wait for the timeout.
            self.leader = None
            self.deadline = now + self._turn(view)
            return [LeaderChanged(None)]
        if now >= self.deadline and self.may_lead:
            return self._stand(now, view, pre_vote=True)
        return []

    def unheard(self, now: float) -> list[NodeId]:
        """Whose silence this election noticed: a leader's followers that answer no beat, a follower's leader."""
        if self.role is Role.LEADER:
            return self.silent
        if self.leader is not None and now - self.leader_heard_at > UNHEARD_S:
            return [NodeId(self.leader.leader_id)]
        return []

    def beat_received(self, peer: NodeId, beat: membership_pb2.LeaderBeat, now: float) -> list[Effect]:
        """A peer says that it leads."""
        token = beat.token
        if token.leader_id != peer or token.term > self.term + TERM_JUMP_MAX:
            return [Log("warning", f"{peer} sent a leader's beat that is not its own or of an absurd term: ignored")]
        self._note(token)
        if self.role is Role.LEADER:
            return self._leader_met(peer, beat, now)
        if self.leader is not None and self.leader.leader_id != peer and token_order(token) < token_order(self.leader):
            return [self._beat_reply(peer)]
        if token.term < self.term and self.leader is None:
            # A leader of an older term that still lives is better than none; it learns our term and stands again.
            return [self._beat_reply(peer)]
        return [*self._follow(token, now), self._beat_reply(peer)]

    def beat_reply_received(self, peer: NodeId, reply: membership_pb2.LeaderBeatReply, now: float) -> list[Effect]:
        if reply.token.term > self.term + TERM_JUMP_MAX:
            return []
        self._note(reply.token)
        if self.role is not Role.LEADER:
            return []
        if reply.token.leader_id == self.me and reply.token.term == self.term:
            self.followers[peer] = now
            heeded = reply.highest.term <= self.term + TERM_JUMP_MAX and not self._is_denied(reply.highest)
            if heeded and token_order(reply.highest) > token_order(self._token()):
                # It followed another leader of this term, in a group that we met, and refuses our work: stand above.
                self._note(reply.highest)
                self.merging = True
            return []
        if reply.token.term > self.term:
            # The peer knows of a higher term whose leader it lost, or follows another leader. In the second case that
            # leader's own beats settle who stays; in the first, standing again above that term wins the peer over.
            self.followers.pop(peer, None)
            if reply.token.leader_id in ("", self.me) or reply.token.leader_id == peer:
                self.merging = True
        return []

    def vote_requested(
        self, peer: NodeId, request: membership_pb2.VoteRequest, now: float, view: frozenset[NodeId]
    ) -> list[Effect]:
        refusal = self._refusal(peer, request, now, view)
        if refusal is not None:
            reply = membership_pb2.VoteReply(
                term=max(self.term, self.highest.term), pre_vote=request.pre_vote, granted=False, refusal=refusal
            )
            return [Send(peer, mesh_pb2.LinkMessage(vote_reply=reply))]
        granted = membership_pb2.VoteReply(term=request.term, pre_vote=request.pre_vote, granted=True)
        answer = Send(peer, mesh_pb2.LinkMessage(vote_reply=granted))
        if request.pre_vote:
            return [answer]
        effects: list[Effect] = []
        if self.role is Role.LEADER:
            effects += self._step_down(now, f"voted for {peer[:8]} in term {request.term}")
        self.role = Role.FOLLOWER
        self.term = request.term
        self.voted_for = peer
        self.deadline = now + self._timeout()
        return [*effects, SaveVote(self.term, self.voted_for, (answer,))]

    def vote_replied(
        self, peer: NodeId, reply: membership_pb2.VoteReply, now: float, view: frozenset[NodeId]
    ) -> list[Effect]:
        if reply.pre_vote and self.role is not Role.PRE_CANDIDATE:
            return []
        if not reply.pre_vote and self.role is not Role.CANDIDATE:
            return []
        if not reply.granted:
            if self.term < reply.term <= self.term + TERM_JUMP_MAX:
                self.highest = max(self.highest, FencingToken(term=reply.term), key=token_order)
            if reply.pre_vote and reply.refusal == membership_pb2.VOTE_REFUSAL_LEADER_ALIVE and self.deadline:
                # Others hear a leader that this node does not: asking them often changes nothing.
                self.deadline = max(self.deadline, now + self._timeout())
            return []
        if reply.term != self.asked_term or peer not in self.electorate:
            return []
        self.votes.add(peer)
        return self._count(now, view)

    def vote_saved(self, term: int, voted_for: str, now: float, view: frozenset[NodeId]) -> list[Effect]:
        """A vote is synced. If it is our own for the candidacy that still runs, it counts now."""
        if self.role is not Role.CANDIDATE or (term, voted_for) != (self.term, self.me):
            return []
        self.votes.add(self.me)
        return self._count(now, view)

    def transfer_received(
        self, peer: NodeId, transfer: membership_pb2.LeaderTransfer, now: float, view: frozenset[NodeId]
    ) -> list[Effect]:
        """The leader stops. Its named successor stands at once; the others stop waiting for it."""
        if transfer.token.leader_id != peer or transfer.token.term > self.term + TERM_JUMP_MAX:
            return []
        self._note(transfer.token)
        if self.leader is None or token_order(self.leader) != token_order(transfer.token):
            return []
        self.leader = None
        self.deadline = now + TIMEOUT_MIN_S
        effects: list[Effect] = [LeaderChanged(None)]
        if transfer.successor_id == self.me and self.may_lead:
            electorate = view - {NodeId(transfer.token.leader_id)}
            effects += self._stand(now, electorate, pre_vote=False)
        return effects

    def resign(self, now: float, view: frozenset[NodeId]) -> list[Effect]:
        """Give up leadership for a graceful stop."""
        if self.role is not Role.LEADER:
            return []
        peers = sorted(view - {self.me})
        answered = [peer for peer in peers if peer in self.followers]
        transfer = membership_pb2.LeaderTransfer(token=self._token(), successor_id=next(iter(answered or peers), ""))
        effects = self._step_down(now, "stopping")
        self.deadline = now + 3600.0
        return [*effects, *[Send(peer, mesh_pb2.LinkMessage(leader_transfer=transfer)) for peer in peers]]

    def forget(self, node_id: NodeId, now: float, view: frozenset[NodeId]) -> list[Effect]:
        """A node is denied; `view` is without it. Its term blocks nobody: whoever stands next stands above it."""
        self.followers.pop(node_id, None)
        self.beaten.pop(node_id, None)
        self.silent = [peer for peer in self.silent if peer != node_id]
        if self.highest.leader_id == node_id:
            self.highest = FencingToken()
        if node_id in self.electorate and self.role in (Role.PRE_CANDIDATE, Role.CANDIDATE):
            # Asked together with it: ask the others anew.
            self.role, self.votes, self.electorate = Role.FOLLOWER, set(), frozenset()
            self.deadline = now
        if self.leader is None or self.leader.leader_id != node_id:
            return []
        self.leader = None
        self.deadline = now + self._turn(view)
        return [LeaderChanged(None)]

    def withdraw(self, now: float) -> list[Effect]:
        """This node itself is denied: it leads, follows and asks nobody any more."""
        effects: list[Effect] = []
        if self.role is Role.LEADER:
            effects = self._step_down(now, "it is denied")
        elif self.leader is not None:
            effects = [LeaderChanged(None)]
        self.leader, self.role, self.votes, self.electorate = None, Role.FOLLOWER, set(), frozenset()
        return effects

    def validate(self) -> None:
        assert (self.role is Role.LEADER) == (self.leader is not None and self.leader.leader_id == self.me)
        assert self.role is not Role.LEADER or (self.leader is not None and self.leader.term == self.term)
        assert self.votes <= self.electorate

    # Inside

    def _refusal(
        self, peer: NodeId, request: membership_pb2.VoteRequest, now: float, view: frozenset[NodeId]
    ) -> "membership_pb2.VoteRefusal.ValueType | None":
        if request.term > max(self.term, self.highest.term) + TERM_JUMP_MAX:
            return membership_pb2.VOTE_REFUSAL_TERM_ABSURD
        if request.term < self.term or (request.pre_vote and request.term <= self.term):
            return membership_pb2.VOTE_REFUSAL_STALE_TERM
        if not request.pre_vote and request.term == self.term and self.voted_for not in ("", peer):
            return membership_pb2.VOTE_REFUSAL_ALREADY_VOTED
        hears_leader = (
            self.leader is not None
            and self.leader.leader_id != peer
            and (self.role is Role.LEADER or now - self.leader_heard_at < TIMEOUT_MIN_S)
            and self.leader.leader_id in view
        )
        if hears_leader and not request.merge:
            return membership_pb2.VOTE_REFUSAL_LEADER_ALIVE
        return None

    def _stand(self, now: float, view: frozenset[NodeId], *, pre_vote: bool) -> list[Effect]:
        """Ask the live view for votes; a pre-vote first, so that a node that can not win disturbs nobody."""
        assert self.me in view
        self.electorate = view
        self.votes = {self.me} if pre_vote else set()
        self.deadline = now + self.rng.uniform(RETRY_MIN_S, RETRY_MAX_S)
        self.asked_term = max(self.term, self.highest.term) + 1
        ask = membership_pb2.VoteRequest(
            term=self.asked_term, pre_vote=pre_vote, view_size=len(view), merge=self.merging
        )
        requests = [Send(peer, mesh_pb2.LinkMessage(vote_request=ask)) for peer in sorted(view - {self.me})]
        effects: list[Effect] = []
        if self.leader is not None:
            self.leader = None
            effects.append(LeaderChanged(None))
        if pre_vote:
            self.role = Role.PRE_CANDIDATE
            return [*effects, *requests, *self._count(now, view)]
        self.role = Role.CANDIDATE
        self.term = self.asked_term
        self.voted_for = self.me
        # Our own vote counts once it is durable (`vote_saved`), and the requests wait for that too.
        return [*effects, SaveVote(self.term, self.me, tuple(requests))]

    def _count(self, now: float, view: frozenset[NodeId]) -> list[Effect]:
        if len(self.votes) <= len(self.electorate) // 2:
            return []
        if self.role is Role.PRE_CANDIDATE:
            return self._stand(now, view, pre_vote=False)
        self.role = Role.LEADER
        self.leader = self._token()
        self._note(self.leader)
        self.followers = {peer: now for peer in self.votes - {self.me}}
        self.merging = False
        self.next_beat_at = now
        self.deadline = now + STEP_DOWN_S
        return [
            Log("info", f"leads in term {self.term}, {len(self.votes)} of {len(self.electorate)} votes"),
            LeaderChanged(self.leader),
            *self._lead(now, self.electorate),
        ]

    def _lead(self, now: float, view: frozenset[NodeId]) -> list[Effect]:
        recent = {peer for peer, heard in self.followers.items() if now - heard <= TIMEOUT_MAX_S}
        if len((recent & view) | {self.me}) > len(view) // 2:
            self.deadline = now + STEP_DOWN_S
        elif self.deadline is not None and now >= self.deadline:
            return self._step_down(now, "a majority of those in view does not answer")
        if self.merging:
            return [*self._step_down(now, "another group was met"), *self._stand(now, view, pre_vote=False)]
        if now < self.next_beat_at:
            return []
        self.next_beat_at = now + BEAT_S
        peers = sorted(view - {self.me})
        self.beaten = {peer: self.beaten.get(peer, now) for peer in peers}
        since = now - UNHEARD_S
        self.silent = [
            peer for peer, first in self.beaten.items() if first < since and self.followers.get(peer, first) < since
        ]
        beat = membership_pb2.LeaderBeat(token=self._token(), group_size=len(recent | {self.me}))
        return [Send(peer, mesh_pb2.LinkMessage(leader_beat=beat)) for peer in peers]

    def _leader_met(self, peer: NodeId, beat: membership_pb2.LeaderBeat, now: float) -> list[Effect]:
        """Two leaders met. The larger group's stays and stands above both terms; the other concedes."""
        recent = {other for other, heard in self.followers.items() if now - heard <= TIMEOUT_MAX_S}
        group_size = len(recent | {self.me})
        if group_size > beat.group_size or (group_size == beat.group_size and self.me < peer):
            self.merging = True
            return [self._beat_reply(peer)]
        effects = self._step_down(now, f"{peer[:8]} leads a group of {beat.group_size}")
        if beat.token.term >= self.term:
            effects += self._follow(beat.token, now)
        return [*effects, self._beat_reply(peer)]

    def _follow(self, token: FencingToken, now: float) -> list[Effect]:
        changed = self.leader is None or token_order(self.leader) != token_order(token)
        effects: list[Effect] = []
        self.role = Role.FOLLOWER
        self.merging = False
        if token.term > self.term:
            self.term = token.term
            self.voted_for = ""
            effects.append(SaveVote(self.term, "", ()))
        self.leader_heard_at = now
        self.deadline = now + self._timeout()
        if not changed:
            return effects  # nearly every beat
        self.leader = FencingToken(term=token.term, leader_id=token.leader_id)
        return [*effects, LeaderChanged(self.leader)]

    def _follow_after_pause(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if self.role is Role.LEADER:
            effects = self._step_down(now, "this node was paused")
        self.role = Role.FOLLOWER
        self.deadline = now + TIMEOUT_MAX_S
        return effects

    def _step_down(self, now: float, why: str) -> list[Effect]:
        assert self.role is Role.LEADER
        self.role = Role.FOLLOWER
        self.leader = None
        self.followers = {}
        self.beaten = {}
        self.silent = []
        self.deadline = now + self._timeout()
        return [Log("info", f"leads no more: {why}"), LeaderChanged(None)]

    def _beat_reply(self, peer: NodeId) -> Send:
        message = mesh_pb2.LinkMessage()
        reply = message.leader_beat_reply  # filled in its place: the commonest answer of all
        if self.leader is not None:
            reply.token.CopyFrom(self.leader)
        else:
            reply.token.term = max(self.term, self.highest.term)
        reply.highest.CopyFrom(self.highest)
        return Send(peer, message)

    def _is_denied(self, token: FencingToken) -> bool:
        return self.denials.is_denied(NodeId(token.leader_id))

    def _note(self, token: FencingToken) -> None:
        if not self._is_denied(token) and token_order(token) > token_order(self.highest):
            self.highest = FencingToken(term=token.term, leader_id=token.leader_id)

    def _token(self) -> FencingToken:
        return FencingToken(term=self.term, leader_id=self.me)

    def _turn(self, view: frozenset[NodeId]) -> float:
        """Seconds until it is this node's turn to stand."""
        before_me = sum(1 for node in view if node < self.me)
        return STEP_S * min(before_me, STEPS_MAX) + self.rng.uniform(0.0, JITTER_MAX_S)

    def _timeout(self) -> float:
        return self.rng.uniform(TIMEOUT_MIN_S, TIMEOUT_MAX_S)
