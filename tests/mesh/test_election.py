"""Elections, as transcripts: small groups of machines, one clock, messages that arrive unless they are cut off."""

from collections import deque
from collections.abc import Iterable

import pytest

from mesh.effects import Effect, LeaderChanged, Log, SaveVote, Send
from mesh.election import STEP_DOWN_S, TERM_JUMP_MAX, Election, Role
from mesh.identity import NodeId
from mesh.wire import membership_pb2, mesh_pb2
from mesh.wire.common_pb2 import FencingToken
from tests.mesh.building import A, B, C, D, E, rng, sent

STEP_S = 0.02


class Group:
    """Nodes A, B, C … that see each other, but for those `apart`. A crashed node is neither seen nor heard."""

    def __init__(self, *nodes: NodeId, seed: int = 1) -> None:
        self.now = 0.0
        self.nodes = {node: Election(node, rng(seed + index)) for index, node in enumerate(nodes)}
        self.gone: set[NodeId] = set()
        self.apart: list[set[NodeId]] = []  # groups that neither see nor hear each other
        self.deaf: set[tuple[NodeId, NodeId]] = set()  # (from, to): lost, and seen nevertheless
        self.queue: deque[tuple[NodeId, NodeId, mesh_pb2.LinkMessage]] = deque()
        self.told: dict[NodeId, list[tuple[int, str] | None]] = {node: [] for node in nodes}
        self.votes: dict[tuple[int, NodeId], str] = {}

    def view(self, node: NodeId) -> frozenset[NodeId]:
        return frozenset(other for other in self.nodes if other == node or self.reaches(node, other))

    def reaches(self, a: NodeId, b: NodeId) -> bool:
        return not {a, b} & self.gone and not any((a in group) != (b in group) for group in self.apart)

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / STEP_S)):
            self.now += STEP_S
            for node in [node for node in self.nodes if node not in self.gone]:
                self.perform(node, self.nodes[node].tick(self.now, self.view(node)))
            self.deliver()

    def deliver(self) -> None:
        while self.queue:
            source, target, message = self.queue.popleft()
            if self.reaches(source, target) and (source, target) not in self.deaf:
                self.perform(target, self.hand(source, target, message))

    def hand(self, source: NodeId, target: NodeId, message: mesh_pb2.LinkMessage) -> list[Effect]:
        machine, now, view = self.nodes[target], self.now, self.view(target)
        match message.WhichOneof("message"):
            case "vote_request":
                return machine.vote_requested(source, message.vote_request, now, view)
            case "vote_reply":
                return machine.vote_replied(source, message.vote_reply, now, view)
            case "leader_beat":
                return machine.beat_received(source, message.leader_beat, now)
            case "leader_beat_reply":
                return machine.beat_reply_received(source, message.leader_beat_reply, now)
            case "leader_transfer":
                return machine.transfer_received(source, message.leader_transfer, now, view)
        raise AssertionError(message)

    def perform(self, node: NodeId, effects: Iterable[Effect]) -> None:
        self.nodes[node].validate()
        for effect in effects:
            match effect:
                case Send(peer, message):
                    self.queue.append((node, peer, message))
                case SaveVote(term, voted_for, then):
                    assert self.votes.setdefault((term, node), voted_for) in ("", voted_for), "a second vote"
                    self.votes[term, node] = voted_for
                    self.perform(node, then)
                    self.perform(node, self.nodes[node].vote_saved(term, voted_for, self.now, self.view(node)))
                case LeaderChanged(token):
                    self.told[node].append((token.term, token.leader_id) if token else None)

    def leader(self, *among: NodeId) -> tuple[int, str]:
        """The one (term, leader) that all of `among` (default: all there are) follow."""
        followed = set()
        for node in among or [node for node in self.nodes if node not in self.gone]:
            token = self.nodes[node].leader
            followed.add((token.term, token.leader_id) if token else None)
        assert len(followed) == 1, followed
        [only] = followed
        assert only is not None
        return only

    def leading(self) -> list[NodeId]:
        return [n for n, machine in self.nodes.items() if machine.role is Role.LEADER and n not in self.gone]


def elected(*nodes: NodeId, seed: int = 1) -> Group:
    group = Group(*nodes, seed=seed)
    group.run(3.0)
    return group


def request(term: int, *, pre_vote: bool = False, merge: bool = False) -> membership_pb2.VoteRequest:
    return membership_pb2.VoteRequest(term=term, pre_vote=pre_vote, merge=merge)


def refusal(effects: list[Effect]) -> int:
    [(_, message)] = sent(effects, "vote_reply")
    assert not message.vote_reply.granted
    return message.vote_reply.refusal


def test_three_nodes_elect_one_leader_at_once_and_keep_it() -> None:
    group = elected(A, B, C)
    term, leader = group.leader()
    assert group.leading() == [leader]
    assert term == 1
    group.run(60.0)
    assert group.leader() == (term, leader)
    assert all(len(told) == 1 for told in group.told.values()), "nobody changed its mind"


def test_the_first_by_id_stands_first() -> None:
    assert all(elected(A, B, C, seed=seed).leader()[1] == A for seed in range(20))


def test_a_node_alone_leads_itself_and_keeps_its_term() -> None:
    group = elected(A)
    assert group.leader() == (1, A)
    group.run(120.0)
    assert group.leader() == (1, A)
    assert group.told[A] == [(1, A)]


@pytest.mark.parametrize("seed", range(20))
def test_a_split_vote_is_resolved(seed: int) -> None:
    group = Group(A, B, C, D, seed=seed)
    # All four stand at the same moment, and everybody voted for itself before anybody's request came.
    for node, machine in group.nodes.items():
        group.perform(node, machine._stand(group.now, group.view(node), pre_vote=False))
    group.deliver()
    assert group.leading() == []
    group.run(3.0)
    term, leader = group.leader()
    assert term > 1
    assert group.leading() == [leader]


@pytest.mark.parametrize("seed", range(10))
def test_a_lost_leader_is_replaced_within_a_second_once_its_loss_is_known(seed: int) -> None:
    group = elected(A, B, C, D, E, seed=seed)
    term, leader = group.leader()
    group.gone.add(NodeId(leader))
    lost_at = group.now
    while not group.leading():
        group.run(STEP_S)
    assert group.now - lost_at < 1.0
    group.run(0.5)
    new_term, new_leader = group.leader()
    assert new_term > term
    assert new_leader != leader


def test_two_survivors_of_three_and_one_of_two_go_on() -> None:
    group = elected(A, B, C)
    group.gone.add(A)
    group.run(2.0)
    term, leader = group.leader()
    assert leader in (B, C)
    group.gone.add(NodeId(leader))
    group.run(2.0)
    assert group.leader()[0] > term


def test_a_voter_refuses_while_it_hears_a_leader_and_grants_to_a_merge() -> None:
    group = elected(A, B, C)
    machine, view = group.nodes[C], group.view(C)
    assert group.leader()[1] == A
    refused = machine.vote_requested(B, request(2), group.now, view)
    assert refusal(refused) == membership_pb2.VOTE_REFUSAL_LEADER_ALIVE
    refused = machine.vote_requested(B, request(2, pre_vote=True), group.now, view)
    assert refusal(refused) == membership_pb2.VOTE_REFUSAL_LEADER_ALIVE
    assert refusal(group.nodes[A].vote_requested(B, request(2), group.now, view)) == (
        membership_pb2.VOTE_REFUSAL_LEADER_ALIVE
    )
    assert machine.term == 1, "a refusal raises no term"
    [saved] = machine.vote_requested(B, request(2, merge=True), group.now, view)
    assert isinstance(saved, SaveVote)


def test_stale_terms_and_second_votes_are_refused() -> None:
    machine = Election(A, rng(), term=5, voted_for=B)
    view = frozenset([A, B, C])
    assert refusal(machine.vote_requested(C, request(4), 0.0, view)) == membership_pb2.VOTE_REFUSAL_STALE_TERM
    assert refusal(machine.vote_requested(C, request(5), 0.0, view)) == membership_pb2.VOTE_REFUSAL_ALREADY_VOTED
    stale = machine.vote_requested(C, request(5, pre_vote=True), 0.0, view)
    assert refusal(stale) == membership_pb2.VOTE_REFUSAL_STALE_TERM
    [saved] = machine.vote_requested(B, request(5), 0.0, view)
    assert isinstance(saved, SaveVote), "the same vote may be told again"
    assert (saved.term, saved.voted_for) == (5, B)


def test_a_vote_is_told_only_after_it_is_saved() -> None:
    machine = Election(A, rng())
    effects = machine.vote_requested(B, request(3), 0.0, frozenset([A, B]))
    [saved] = effects
    assert isinstance(saved, SaveVote)
    assert (saved.term, saved.voted_for) == (3, B)
    [(peer, message)] = sent(saved.then, "vote_reply")
    assert (peer, message.vote_reply.granted, message.vote_reply.term) == (B, True, 3)


def test_a_candidate_asks_only_after_its_own_vote_is_saved() -> None:
    machine = Election(A, rng())
    view = frozenset([A, B, C])
    machine.tick(0.0, view)
    asked = machine.tick(3.0, view)
    assert {message.vote_request.pre_vote for _, message in sent(asked, "vote_request")} == {True}
    assert machine.term == 0, "a pre-vote changes nothing"
    effects = machine.vote_replied(B, membership_pb2.VoteReply(term=1, pre_vote=True, granted=True), 3.0, view)
    [saved] = [effect for effect in effects if isinstance(effect, SaveVote)]
    assert (saved.term, saved.voted_for) == (1, A)
    assert [peer for peer, _ in sent(saved.then, "vote_request")] == [B, C]
    assert sent(effects, "vote_request") == []
    assert machine.role is Role.CANDIDATE
    # Not even a majority of others makes a leader of a candidate whose own vote may be lost in a crash.
    granted = membership_pb2.VoteReply(term=1, granted=True)
    assert machine.vote_saved(1, B, 3.0, view) == []
    assert machine.vote_replied(B, granted, 3.0, view) == []
    machine.vote_saved(1, A, 3.0, view)
    assert machine.role.value == "leader"


def test_a_node_alone_leads_only_once_its_vote_is_saved() -> None:
    machine = Election(A, rng())
    machine.tick(0.0, frozenset([A]))
    [saved] = machine.tick(3.0, frozenset([A]))
    assert isinstance(saved, SaveVote)
    assert machine.role is Role.CANDIDATE
    machine.vote_saved(1, A, 3.0, frozenset([A]))
    assert machine.role.value == "leader"


def test_votes_of_other_terms_or_of_strangers_do_not_count() -> None:
    machine = Election(A, rng())
    view = frozenset([A, B, C])
    machine._stand(0.0, view, pre_vote=False)
    machine.vote_saved(1, A, 0.0, view)
    for peer, term in ((B, 9), (D, 1)):
        machine.vote_replied(peer, membership_pb2.VoteReply(term=term, granted=True), 0.0, view)
    machine.vote_replied(B, membership_pb2.VoteReply(term=1, granted=False), 0.0, view)
    machine.vote_replied(B, membership_pb2.VoteReply(term=1, pre_vote=True, granted=True), 0.0, view)
    assert machine.role.value == "candidate"
    machine.vote_replied(B, membership_pb2.VoteReply(term=1, granted=True), 0.0, view)
    assert machine.role.value == "leader"


def test_a_candidate_that_learns_of_a_higher_term_stands_above_it() -> None:
    group = Group(A, B)
    group.nodes[B].term = 7
    group.run(4.0)
    assert group.leader()[0] == 8


def test_the_two_sides_of_a_partition_lead_themselves_and_the_larger_ones_leader_stays() -> None:
    group = elected(A, B, C, D, E)
    assert group.leader()[1] == A
    group.apart = [{A, B}]
    group.run(5.0)
    assert group.leader(A, B) == (1, A), "whom a majority of those in view answers goes on"
    larger = group.leader(C, D, E)
    assert larger[1] in (C, D, E)
    group.apart = []
    group.run(3.0)
    merged = group.leader()
    assert merged[1] == larger[1]
    assert merged[0] > larger[0]
    group.run(30.0)
    assert group.leader() == merged
    assert len(group.leading()) == 1


def test_two_leaders_of_one_term_meet_and_the_one_that_stays_stands_above_both() -> None:
    group = Group(A, B)
    group.apart = [{A}]
    group.run(3.0)
    assert group.leader(A)[0] == group.leader(B)[0], "both lead the same term"
    term = group.leader(A)[0]
    group.apart = []
    # B hears of A first, concedes at once, and never beats again: only its answers tell A what B has seen.
    [beat] = [
        message for peer, message in sent(group.nodes[A]._lead(group.now + 1.0, frozenset({A, B})), "leader_beat")
    ]
    group.perform(B, group.hand(A, B, beat))
    group.run(1.0)
    assert group.leader() == (term + 1, A)
    assert group.nodes[B].highest == group.nodes[B].leader


def test_two_groups_of_one_size_keep_the_leader_with_the_lower_id() -> None:
    for seed in range(10):
        group = Group(A, B, C, D, seed=seed)
        group.apart = [{A, C}]
        group.run(4.0)
        assert {group.leader(A, C)[1], group.leader(B, D)[1]} == {A, B}
        group.apart = []
        group.run(3.0)
        assert group.leader()[1] == A
        assert len(group.leading()) == 1


def test_three_groups_become_one() -> None:
    for seed in range(10):
        group = Group(A, B, C, D, E, seed=seed)
        group.apart = [{A}, {B}, {C, D}]
        group.run(4.0)
        assert len(group.leading()) == 4
        group.apart = []
        group.run(5.0)
        assert [group.leader()[1]] == group.leading()


def test_a_leader_that_nobody_answers_steps_down() -> None:
    group = elected(A, B, C)
    assert group.leader()[1] == A
    group.deaf = {(B, A), (C, A)}  # their words are lost, and A sees them still
    group.run(STEP_DOWN_S + 1.6 + 0.2)
    assert A not in group.leading()


def test_a_paused_leader_deposes_nobody() -> None:
    group = elected(A, B, C)
    group.gone.add(A)
    group.run(3.0)
    successor = group.leader()
    group.gone.clear()
    effects = group.nodes[A].tick(group.now, group.view(A), paused=True)
    assert sent(effects, "leader_beat") == []
    assert sent(effects, "vote_request") == []
    group.perform(A, effects)
    assert group.nodes[A].role is Role.FOLLOWER
    group.run(10.0)
    assert group.leader() == successor


def test_absurd_terms_change_nothing() -> None:
    group = elected(A, B, C)
    absurd = 1 + TERM_JUMP_MAX + 1
    machine, view = group.nodes[C], group.view(C)
    refused = machine.vote_requested(B, request(absurd, merge=True), group.now, view)
    assert refusal(refused) == membership_pb2.VOTE_REFUSAL_TERM_ABSURD
    token = FencingToken(term=absurd, leader_id=B)
    assert all(
        isinstance(effect, Log)
        for effect in machine.beat_received(B, membership_pb2.LeaderBeat(token=token), group.now)
    )
    leader = group.nodes[A]
    assert leader.beat_reply_received(B, membership_pb2.LeaderBeatReply(token=token), group.now) == []
    assert leader.vote_replied(B, membership_pb2.VoteReply(term=absurd), group.now, view) == []
    group.run(5.0)
    assert group.leader() == (1, A)
    assert machine.highest.term == leader.highest.term == 1


def test_a_beat_in_anothers_name_is_ignored() -> None:
    group = elected(A, B, C)
    beat = membership_pb2.LeaderBeat(token=FencingToken(term=9, leader_id=A), group_size=9)
    assert not sent(group.nodes[C].beat_received(B, beat, group.now), "leader_beat_reply")
    assert group.nodes[C].term == 1


def test_a_leader_that_stops_hands_over_at_once() -> None:
    group = elected(A, B, C)
    group.perform(A, group.nodes[A].resign(group.now, group.view(A)))
    group.deliver()
    group.gone.add(A)
    group.run(0.2)
    assert group.leader() == (2, B)
    assert group.told[A][-1] is None


def test_only_a_leader_hands_over() -> None:
    group = elected(A, B, C)
    assert group.nodes[B].resign(group.now, group.view(B)) == []
    stale = membership_pb2.LeaderTransfer(token=FencingToken(term=0, leader_id=C), successor_id=B)
    assert group.nodes[B].transfer_received(C, stale, group.now, group.view(B)) == []
    forged = membership_pb2.LeaderTransfer(token=FencingToken(term=1, leader_id=A), successor_id=C)
    assert group.nodes[C].transfer_received(B, forged, group.now, group.view(C)) == []
    assert group.leader() == (1, A)


def test_a_node_that_comes_back_with_an_old_term_follows() -> None:
    group = elected(A, B, C)
    group.gone.add(A)
    group.run(3.0)
    successor = group.leader()
    group.gone.clear()
    group.nodes[A] = Election(A, rng(9), term=1, voted_for=A)
    group.run(3.0)
    assert group.leader() == successor


def test_a_new_node_with_a_higher_term_brings_it_in_without_a_second_leader() -> None:
    group = elected(A, B)
    term, _leader = group.leader()
    group.nodes[C] = Election(C, rng(9), term=40)
    group.told[C] = []
    group.run(5.0)
    assert group.leader()[0] > 40 > term
    assert len(group.leading()) == 1
    group.run(20.0)
    assert len(group.leading()) == 1
