"""The detector: what each outcome of a probe means, message by message."""

import pytest

from mesh.detector import DOUBT_EVERY_S
from mesh.effects import Effect, Send
from mesh.identity import NodeId
from mesh.membership import ALIVE, DEAD, SUSPECT, Membership
from mesh.timing import LAN
from mesh.wire import membership_pb2, mesh_pb2
from tests.mesh.building import hello, rng, sent
from tests.mesh.members import named

ME, N1, N2, N3, N4 = (named(number) for number in range(5))


class Node:
    """One membership. Peers in `answering` answer every probe of their own at once; all others are silent."""

    def __init__(self, *peers: NodeId) -> None:
        self.machine = Membership(ME, 100, rng(), LAN, incarnation=5)
        self.now = 0.0
        self.answering = set(peers)
        self.lives: dict[NodeId, int] = {}  # as each says itself; 1 where nothing is noted
        self.sent: list[tuple[float, Send]] = []
        self.do(self.machine.tick(self.now)[0])
        for peer in peers:
            self.do(self.machine.link_opened(hello(peer), self.now))

    def do(self, effects: list[Effect]) -> list[Effect]:
        self.machine.validate()
        for effect in effects:
            if isinstance(effect, Send):
                self.sent.append((self.now, effect))
                probe = effect.message.probe
                if effect.peer in self.answering and probe.probe_id and probe.target_id == effect.peer:
                    self.reply(effect.peer, probe.probe_id, effect.peer)
        return effects

    def reply(self, peer: NodeId, probe_id: int, target: NodeId, *, reached: bool = True) -> list[Effect]:
        life = self.lives.get(peer, 1)
        reply = membership_pb2.ProbeReply(probe_id=probe_id, target_id=target, life=life, reached=reached)
        self.machine.word_received(peer, self.now)
        return self.do(self.machine.received(peer, mesh_pb2.LinkMessage(probe_reply=reply), self.now))

    def wait(self, seconds: float) -> list[Effect]:
        done: list[Effect] = []
        for _ in range(round(seconds / 0.05)):
            self.now += 0.05
            done += self.do(self.machine.tick(self.now)[0])
        return done

    def until_probed(self, target: NodeId) -> membership_pb2.Probe:
        """Wait for the next probe that goes to `target` itself."""
        for _ in range(400):
            for peer, message in sent(self.wait(0.05), "probe"):
                if peer == target and message.probe.target_id == target:
                    return message.probe
        raise AssertionError("not probed")


def test_a_silent_member_is_tried_through_three_others_before_it_is_suspect() -> None:
    node = Node(N1, N2, N3, N4)
    node.answering.discard(N1)
    probe = node.until_probed(N1)
    began = node.now
    assert sent(node.wait(0.4), "probe") == []
    helpers = [
        (peer, message.probe.probe_id, message.probe.target_id)
        for peer, message in sent(node.wait(0.15), "probe")
        if message.probe.target_id == N1
    ]
    assert sorted(helpers) == [(peer, probe.probe_id, N1) for peer in (N2, N3, N4)]
    for peer in (N2, N3, N4):
        node.reply(peer, probe.probe_id, N1, reached=False)
    while node.now < began + 0.95:
        node.wait(0.05)
        assert node.machine.members[N1].state == ALIVE
    node.wait(0.15)
    assert node.machine.members[N1].belief == SUSPECT
    assert node.machine.detector.roster.awareness.score == 0, "all helpers said that they heard: it is not our fault"


def test_missing_nacks_are_held_against_this_node_itself() -> None:
    node = Node(N1, N2, N3, N4)
    node.answering.discard(N1)
    probe = node.until_probed(N1)
    node.answering.clear()  # those asked to try are mute too, but for N2
    node.wait(0.55)
    node.reply(N2, probe.probe_id, N1, reached=False)
    while node.machine.members[N1].belief == ALIVE:
        node.wait(0.05)
    assert node.machine.detector.roster.awareness.score == 2
    node.answering |= {N1, N2, N3, N4}
    node.wait(20.0)
    assert node.machine.detector.roster.awareness.score == 0, "good answers take it back"


def test_whom_others_reach_is_asked_once_more_and_then_out_of_reach_but_not_suspected_by_rumour() -> None:
    node = Node(N1, N2, N3)
    node.answering.discard(N1)
    first = node.until_probed(N1)
    node.wait(0.6)
    [second] = [m.probe for peer, m in sent(node.reply(N2, first.probe_id, N1), "probe") if peer == N1]
    assert node.machine.members[N1].misses == 1
    assert node.machine.members[N1].state == ALIVE
    node.wait(0.6)
    assert sent(node.reply(N2, second.probe_id, N1), "probe") == []
    assert node.machine.members[N1].misses == 2
    assert node.machine.members[N1].belief == ALIVE
    assert node.machine.members[N1].state == SUSPECT
    assert node.machine.stuck() == [N1]
    node.answering.add(N1)
    node.wait(DOUBT_EVERY_S)
    node.do(node.machine.word_received(N1, node.now))  # a word: so it is asked, and answers
    assert node.machine.members[N1].state == ALIVE
    assert node.machine.stuck() == []


def test_words_alone_do_not_bring_back_who_does_not_hear_us() -> None:
    node = Node(N1, N2, N3)
    node.answering.discard(N1)
    probe = node.until_probed(N1)
    for _ in range(2):
        node.wait(0.6)
        done = node.reply(N2, probe.probe_id, N1)
        probe = next((m.probe for peer, m in sent(done, "probe") if peer == N1), probe)
    for _ in range(40):
        node.wait(0.1)
        node.do(node.machine.word_received(N1, node.now))
    assert node.machine.members[N1].state == SUSPECT, "it speaks and hears nothing"


def test_a_probe_for_another_is_passed_on_and_its_answer_back() -> None:
    node = Node(N1, N2)
    node.answering.clear()
    probe = membership_pb2.Probe(probe_id=77, target_id=N2, timeout_ms=500)
    [(to, passed)] = sent(node.machine.received(N1, mesh_pb2.LinkMessage(probe=probe), node.now), "probe")
    assert (to, passed.probe.target_id) == (N2, N2)
    done = node.reply(N2, passed.probe.probe_id, N2)
    [(to, answer)] = sent(done, "probe_reply")
    assert (to, answer.probe_reply.probe_id, answer.probe_reply.target_id) == (N1, 77, N2)
    assert answer.probe_reply.reached
    assert sent(node.wait(1.0), "probe_reply") == [], "no nack after it"


def test_a_probe_for_one_that_does_not_answer_or_is_not_linked_is_nacked() -> None:
    node = Node(N1, N2)
    node.answering.clear()
    probe = membership_pb2.Probe(probe_id=77, target_id=N2, timeout_ms=500)
    node.do(node.machine.received(N1, mesh_pb2.LinkMessage(probe=probe), node.now))
    nacks = [message.probe_reply for _, message in sent(node.wait(0.45), "probe_reply")]
    assert [(nack.probe_id, nack.target_id, nack.reached) for nack in nacks] == [(77, N2, False)]
    probe.target_id = N4
    [(_, answer)] = sent(node.machine.received(N1, mesh_pb2.LinkMessage(probe=probe), node.now), "probe_reply")
    assert (answer.probe_reply.target_id, answer.probe_reply.reached) == (N4, False)


def test_answers_that_nobody_asked_for_end_no_probe() -> None:
    node = Node(N1, N2, N3)
    node.answering.clear()
    probe = node.until_probed(N1)
    node.reply(N2, probe.probe_id, N2)  # another target
    node.reply(N2, probe.probe_id + 99, N1)  # another probe
    assert probe.probe_id in node.machine.detector.probing.runs


def test_a_suspect_is_told_so_in_the_probe_itself() -> None:
    node = Node(N1, N2, N3)
    record = membership_pb2.MemberRecord(node_id=N1, life=1, state=membership_pb2.MEMBER_STATE_SUSPECT, said_by=N2)
    node.machine.members[N1].last_heard = float("-inf")
    news = mesh_pb2.LinkMessage(member_news=membership_pb2.MemberNews(members=[record]))
    node.do(node.machine.received(N2, news, node.now))
    probe = node.until_probed(N1)
    assert (probe.members[0].node_id, probe.members[0].state) == (N1, SUSPECT)


def test_one_member_is_not_probed_out_of_turn_all_the_time() -> None:
    node = Node(N1, N2)
    made = 0
    for _ in range(100):
        node.now += 0.01
        made += len(sent(node.do(node.machine.doubt(N1, node.now)), "probe"))
    assert made <= 1.0 / DOUBT_EVERY_S + 1
    assert node.machine.doubt(named(99), node.now) == []


def test_who_is_suspect_for_longer_than_others_would_confirm_it_is_asked_by_this_node_itself() -> None:
    """A denial misses a node now and then; the turn of one among 300 would come in minutes."""
    peers = [named(number + 1) for number in range(300)]
    node = Node(*peers)
    node.wait(LAN.pause_s + 1.0)
    accused = [peer for peer in peers if node.now - node.machine.members[peer].last_heard > LAN.pause_s][:5]
    least_s = LAN.suspicion_min_s(len(peers) + 1)
    node.answering -= set(accused)
    records = [membership_pb2.MemberRecord(node_id=peer, life=1, state=SUSPECT, said_by=N2) for peer in accused]
    news = mesh_pb2.LinkMessage(member_news=membership_pb2.MemberNews(members=records))
    node.do(node.machine.received(N2, news, node.now))
    node.machine.roster.doubted.clear()  # nobody is among the few who look into a rumour at once
    assert all(node.machine.members[peer].state == SUSPECT for peer in accused)
    assert not [peer for peer, _ in sent(node.wait(least_s - 1.0), "probe") if peer in accused]
    probes = {peer: message.probe for peer, message in sent(node.wait(3.0), "probe") if peer in accused}
    first, probe = next(iter(probes.items()))
    assert probe.members[0].node_id == first, "told what is said of it, so that it can deny it"
    node.answering |= set(accused)
    node.lives.update(dict.fromkeys(accused, 2))
    node.reply(first, probe.probe_id, first)
    node.wait(2.0)
    assert all(node.machine.members[peer].state == ALIVE for peer in accused), "one that was wrong: ask the others"


@pytest.mark.parametrize("peers", [2, 5])
def test_who_hears_nobody_asks_everybody_once_and_blames_nobody(peers: int) -> None:
    node = Node(*(named(number + 1) for number in range(peers)))
    node.answering.clear()
    node.wait(3.0)
    assert node.machine.view() == {ME}
    assert all(member.belief == ALIVE for member in node.machine.members.values())
    told = [record for _, effect in node.sent for record in effect.message.member_news.members]
    assert all(record.state == ALIVE for record in told)
    node.wait(60.0)
    assert all(member.belief != ALIVE for member in node.machine.members.values()), "in the end they are gone"


def test_a_death_that_others_report_holds_as_soon_as_the_member_answers_no_probe() -> None:
    node = Node(N1, N2, N3)
    node.do(node.machine.word_received(N1, node.now))
    node.answering.discard(N1)
    record = membership_pb2.MemberRecord(node_id=N1, life=1, state=membership_pb2.MEMBER_STATE_DEAD, said_by=N2)
    news = mesh_pb2.LinkMessage(member_news=membership_pb2.MemberNews(members=[record]))
    node.do(node.machine.received(N2, news, node.now))
    [probe] = [message.probe for peer, message in sent(node.wait(0.05), "probe") if peer == N1]
    node.wait(0.85)
    assert node.machine.members[N1].state == ALIVE, "it spoke a moment ago"
    node.reply(N2, probe.probe_id, N1, reached=False)
    node.wait(0.3)
    assert node.machine.members[N1].state == DEAD


def test_a_death_that_others_report_is_forgotten_once_the_member_answers() -> None:
    node = Node(N1, N2, N3)
    node.do(node.machine.word_received(N1, node.now))
    record = membership_pb2.MemberRecord(node_id=N1, life=1, state=membership_pb2.MEMBER_STATE_DEAD, said_by=N2)
    news = mesh_pb2.LinkMessage(member_news=membership_pb2.MemberNews(members=[record]))
    node.do(node.machine.received(N2, news, node.now))
    node.wait(1.0)
    assert node.machine.members[N1].accused is None
    node.answering.discard(N1)
    probe = node.until_probed(N1)
    node.wait(0.9)
    node.reply(N2, probe.probe_id, N1, reached=False)
    node.wait(0.3)
    assert node.machine.members[N1].state == SUSPECT
