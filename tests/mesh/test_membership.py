"""Membership, in scenarios: one node's view of others that fall silent, die, leave, come back; and its own pauses."""

import pytest

from mesh.effects import Effect, Log, MemberChanged
from mesh.identity import NodeId
from mesh.membership import ALIVE, DEAD, DEAD_AFTER_S, FORGET_AFTER_S, LEFT, SUSPECT, Membership
from mesh.wire import common_pb2, membership_pb2
from tests.mesh.building import A, B, C, hello, sent


class Node:
    """A membership with a clock; every step checks the invariants."""

    def __init__(self) -> None:
        self.machine = Membership(A, life=100)
        self.now = 0.0
        self.changes: list[tuple[NodeId, int]] = []

    def note(self, effects: list[Effect]) -> list[Effect]:
        self.machine.validate()
        self.changes += [(effect.node_id, effect.state) for effect in effects if isinstance(effect, MemberChanged)]
        return effects

    def link(self, node_id: NodeId) -> list[Effect]:
        return self.note(self.machine.link_opened(hello(node_id), self.now))

    def unlink(self, node_id: NodeId) -> list[Effect]:
        return self.note(self.machine.link_closed(node_id, self.now))

    def hear(self, node_id: NodeId, life: int = 1) -> list[Effect]:
        heartbeat = membership_pb2.Heartbeat(life=life)
        return self.note(self.machine.heartbeat_received(node_id, heartbeat, self.now)[0])

    def leave(self, node_id: NodeId, life: int = 1) -> list[Effect]:
        return self.note(self.machine.leave_received(node_id, membership_pb2.Leave(life=life), self.now))

    def tick(self) -> bool:
        effects, paused = self.machine.tick(self.now)
        self.note(effects)
        return paused

    def wait(self, seconds: float, hearing: tuple[NodeId, ...] = ()) -> None:
        """Tick on, ten times a second, hearing some nodes all the while."""
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            for node_id in hearing:
                self.hear(node_id)
            assert not self.tick()

    def state(self, node_id: NodeId) -> int:
        return self.machine.members[node_id].state


@pytest.fixture
def node() -> Node:
    node = Node()
    node.tick()
    node.link(B)
    node.hear(B)
    return node


def test_a_linked_node_is_alive_and_in_view(node: Node) -> None:
    assert node.changes == [(B, ALIVE)]
    assert node.machine.view() == {A, B}
    assert node.machine.live_peers() == [B]


def test_silence_makes_suspect_then_dead_and_a_word_makes_alive(node: Node) -> None:
    node.wait(1.9)
    assert node.state(B) == ALIVE
    node.wait(0.3)
    assert node.state(B) == SUSPECT
    assert node.machine.view() == {A}
    node.wait(DEAD_AFTER_S + 0.1)
    assert node.state(B) == DEAD
    node.hear(B)
    assert node.state(B) == ALIVE
    assert node.changes == [(B, ALIVE), (B, SUSPECT), (B, DEAD), (B, ALIVE)]


def test_a_node_that_is_heard_stays_alive(node: Node) -> None:
    node.wait(30.0, hearing=(B,))
    assert node.changes == [(B, ALIVE)]


def test_a_broken_link_makes_suspect_at_once_and_a_word_without_a_link_does_not_revive(node: Node) -> None:
    node.unlink(B)
    assert node.state(B) == SUSPECT
    node.hear(B)  # was still in a queue
    assert node.state(B) == SUSPECT
    node.link(B)
    assert node.state(B) == ALIVE


def test_a_goodbye_makes_left_and_late_words_do_not_undo_it(node: Node) -> None:
    node.leave(B)
    node.hear(B)
    assert node.state(B) == LEFT
    assert node.machine.view() == {A}
    node.unlink(B)
    assert node.state(B) == LEFT
    node.link(B)
    assert node.state(B) == ALIVE


def test_a_node_that_left_is_back_in_its_next_life_though_its_old_link_was_never_missed(node: Node) -> None:
    node.leave(B, life=1)
    # It started again and linked before the old link's end was noticed here, so no second LinkOpened came.
    node.hear(B, life=2)
    assert node.state(B) == ALIVE


def test_the_goodbye_of_an_earlier_life_is_not_this_ones(node: Node) -> None:
    node.hear(B, life=2)
    node.leave(B, life=1)
    assert node.state(B) == ALIVE


def test_a_pause_of_this_node_forgives_everybody(node: Node) -> None:
    node.link(C)
    node.wait(1.5)
    node.now += 3600.0
    assert node.tick()
    assert node.machine.view() == {A, B, C}
    node.wait(1.0)  # what had run before the pause still counts: 1.5 s and 1.0 s of silence
    assert node.state(B) == SUSPECT


def test_a_word_heard_right_after_a_pause_is_not_dated_into_the_future(node: Node) -> None:
    node.now += 3600.0
    node.hear(B)  # read from the socket before the timer fired
    assert node.tick()
    node.wait(2.2)
    assert node.state(B) == SUSPECT


def test_a_suspect_of_before_the_pause_is_not_dead_after_it(node: Node) -> None:
    node.wait(2.5)
    assert node.state(B) == SUSPECT
    node.now += 60.0
    node.tick()
    assert node.state(B) == SUSPECT
    node.wait(DEAD_AFTER_S)
    assert node.state(B) == DEAD


def test_the_dead_are_forgotten_after_a_day(node: Node) -> None:
    node.unlink(B)
    node.wait(DEAD_AFTER_S + 0.2)
    member = node.machine.members[B]
    assert member.state == DEAD
    member.state_since -= FORGET_AFTER_S
    node.wait(0.1)
    assert B not in node.machine.members


def test_heartbeats_go_to_linked_peers_twice_a_second_with_members_now_and_then(node: Node) -> None:
    node.link(C)
    beats = []
    for _ in range(40):
        node.now += 0.1
        node.hear(B)
        node.hear(C)
        beats += sent(node.note(node.machine.tick(node.now)[0]), "heartbeat")
    to_b = [message.heartbeat for peer, message in beats if peer == B]
    assert 7 <= len(to_b) <= 9
    assert all(beat.life == 100 for beat in to_b)
    with_members = [beat for beat in to_b if beat.members]
    assert len(with_members) == 2
    assert {record.node_id for record in with_members[0].members} == {B, C}
    assert [beat.sequence for beat in to_b] == sorted({beat.sequence for beat in to_b})


def test_hearsay_gives_addresses_of_unlinked_nodes_only(node: Node) -> None:
    heartbeat = membership_pb2.Heartbeat(life=1)
    for node_id, state in ((A, ALIVE), (B, ALIVE), (C, ALIVE)):
        heartbeat.members.add(node_id=node_id, state=state, addresses=[common_pb2.NodeAddress(host="10.0.0.3", port=4)])
    heartbeat.members.add(node_id="f" * 32, state=DEAD)
    _, unlinked = node.machine.heartbeat_received(B, heartbeat, node.now)
    assert [record.node_id for record in unlinked] == [C]
    assert C not in node.machine.members, "hearsay makes nobody a member"


def test_words_of_strangers_change_nothing(node: Node) -> None:
    assert node.hear(C) == []
    assert node.leave(C) == []
    assert node.unlink(C) == []
    assert list(node.machine.members) == [B]


def test_more_members_than_the_limit_are_not_taken_in(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.membership.MEMBERS_MAX", 20)
    for number in range(19):
        node.link(NodeId(f"{number:032x}"))
    effects = node.link(NodeId("e" * 32))
    assert len(node.machine.members) == 20
    assert [effect for effect in effects if isinstance(effect, Log)]


def test_goodbyes_go_to_everyone_linked(node: Node) -> None:
    node.link(C)
    goodbyes = sent(node.machine.goodbye("upgrade"), "leave")
    assert [(peer, message.leave.reason, message.leave.life) for peer, message in goodbyes] == [
        (B, "upgrade", 100),
        (C, "upgrade", 100),
    ]
