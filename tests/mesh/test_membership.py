"""Membership in meshes of several nodes: death, silence, freezes, cuts, loss, goodbyes and returns."""

import statistics
from collections import Counter

import pytest

from mesh import roster
from mesh.effects import Log, Send
from mesh.membership import ALIVE, DEAD, LEFT, SUSPECT, Membership
from mesh.timing import LAN
from mesh.wire import membership_pb2, mesh_pb2
from tests.mesh.building import hello, rng, sent
from tests.mesh.members import Mesh, named

N0, N1, N2, N3 = (named(number) for number in range(4))


def settled(size: int, seed: int = 1, loss: float = 0.0) -> Mesh:
    mesh = Mesh(size, seed, loss)
    mesh.run(2.0)
    mesh.changes.clear()
    return mesh


def test_linked_nodes_see_each_other_and_nothing_changes_while_all_is_well() -> None:
    mesh = settled(5)
    assert mesh.whole()
    mesh.run(60.0)
    assert mesh.changes == []
    assert mesh.nodes[N0].live_peers() == mesh.ids[1:]


@pytest.mark.parametrize("size", [2, 3, 8])
def test_a_killed_node_is_dead_everywhere_at_once(size: int) -> None:
    mesh = settled(size)
    mesh.kill(N1)
    assert mesh.all_see(N1, DEAD)
    assert all(machine.absent_since(N1) == pytest.approx(mesh.now, abs=0.2) for machine in mesh.nodes.values())
    mesh.run(60.0)
    assert mesh.all_see(N1, DEAD)
    assert {change[2] for change in mesh.changes} == {N1}


def test_a_broken_link_alone_kills_nobody() -> None:
    mesh = settled(4)
    mesh.unlink(N0, N1)
    assert mesh.state(N1, by=N0) == SUSPECT
    assert N1 not in mesh.nodes[N0].view()
    mesh.run(20.0)
    assert mesh.told(DEAD) == []
    assert mesh.belief(N1, by=N0) == ALIVE, "others reach it"
    assert mesh.state(N1, by=N0) == SUSPECT, "this node does not"
    mesh.link(N0, N1)
    mesh.run(0.1)
    assert mesh.whole()


def test_a_refused_dial_long_after_the_link_broke_or_to_a_linked_node_says_nothing() -> None:
    mesh = settled(4)
    assert mesh.nodes[N0].dial_refused(N1, mesh.now) == []
    mesh.unlink(N0, N1)
    mesh.run(20.0)
    assert mesh.nodes[N0].dial_refused(N1, mesh.now) == []
    assert mesh.nodes[N0].dial_refused(named(99), mesh.now) == []


def test_a_node_cut_off_without_a_reset_is_dead_everywhere_within_seconds() -> None:
    took = []
    for seed in range(1, 10):
        mesh = settled(8, seed)
        mesh.run(seed * 0.13)
        mesh.cut([N3])
        others = [node for node in mesh.ids if node != N3]
        took.append(mesh.until(lambda m=mesh, o=others: all(m.state(N3, by) == DEAD for by in o), 15.0))
        suspected = min(when for when, by, of, _ in mesh.told(SUSPECT) if of == N3)
        died = min(when for when, by, of, _ in mesh.told(DEAD) if of == N3)
        assert died - suspected >= LAN.suspicion_min_s(8) - 0.1, "it has its time to deny it"
        assert {of for _, by, of, _ in mesh.changes if by != N3} == {N3}
    assert statistics.median(took) <= 6.5, took


def test_who_is_cut_off_alone_has_only_itself_in_view_within_seconds_and_blames_nobody() -> None:
    mesh = settled(8)
    mesh.cut([N3])
    took = mesh.until(lambda: mesh.nodes[N3].view() == {N3}, 10.0)
    assert took < 4.5
    assert all(mesh.belief(other, by=N3) == ALIVE for other in mesh.nodes if other != N3)
    lives = {node: machine.life for node, machine in mesh.nodes.items()}
    mesh.heal()
    mesh.until(mesh.whole, 3.0)
    denied = {node for node, machine in mesh.nodes.items() if machine.life != lives[node]}
    assert denied <= {N3}, "no rumours of the lonely one were spread"


@pytest.mark.parametrize("loss", [0.0, 0.05, 0.1])
def test_no_false_death_at_loss(loss: float) -> None:
    for seed in (1, 2, 3):
        mesh = settled(8, seed, loss)
        mesh.run(60.0)
        assert mesh.told(DEAD, LEFT) == []


def test_a_frozen_node_is_suspect_soon_dead_later_and_back_at_once_when_it_goes_on() -> None:
    mesh = settled(5)
    mesh.freeze(N2)
    others = [node for node in mesh.ids if node != N2]
    assert mesh.until(lambda: all(mesh.state(N2, by) == SUSPECT for by in others), 5.0) < 4.0
    mesh.until(lambda: all(mesh.state(N2, by) == DEAD for by in others), 15.0)
    life = mesh.nodes[N2].life
    mesh.thaw(N2)
    assert mesh.until(mesh.whole, 3.0) < 2.0
    assert mesh.nodes[N2].life > life, "it denied its death"
    assert mesh.nodes[N2].paused_at is not None
    assert {of for _, _, of, _ in mesh.changes} == {N2}, "who slept suspects nobody"


def test_a_short_freeze_kills_nobody() -> None:
    mesh = settled(5)
    mesh.freeze(N2)
    mesh.run(3.0)
    mesh.thaw(N2)
    mesh.until(mesh.whole, 3.0)
    mesh.run(30.0)
    assert mesh.told(DEAD) == []
    assert mesh.whole()


def test_a_goodbye_makes_left_everywhere_and_an_old_rumour_brings_no_ghost_back() -> None:
    mesh = settled(4)
    record = mesh.nodes[N0].members[N1].record()
    # N3 does not hear the goodbye itself.
    mesh.unlink(N1, N3)
    mesh.note(N1, mesh.nodes[N1].goodbye("upgrade"))
    mesh.run(0.1)
    del mesh.nodes[N1]
    for other in (N0, N2):
        mesh.unlink(N1, other)
    mesh.run(3.0)
    assert mesh.all_see(N1, LEFT)
    absent_since = mesh.nodes[N0].absent_since(N1)
    rumour = mesh_pb2.LinkMessage(member_news=membership_pb2.MemberNews(members=[record]))
    for other, machine in mesh.nodes.items():
        teller = N2 if other != N2 else N0
        mesh.note(other, machine.received(teller, rumour, mesh.now))
        hints, returned = machine.take_hints()
        assert (N1 not in {node for _, _, node in hints}, returned) == (True, [])
    mesh.run(10.0)
    assert mesh.all_see(N1, LEFT)
    assert mesh.nodes[N0].absent_since(N1) == absent_since


@pytest.mark.parametrize("life", [2000, 3])
def test_a_dead_node_that_starts_again_is_alive_everywhere_whatever_its_clock_says(life: int) -> None:
    mesh = settled(4)
    mesh.kill(N1)
    mesh.run(3.0)
    mesh.start(N1, life)
    mesh.link(N0, N1)
    mesh.until(lambda: mesh.state(N1, by=N0) == ALIVE, 0.5)
    mesh.run(2.0)
    # The others heard of its return, and have reason to dial it.
    for other in (N2, N3):
        assert mesh.belief(N1, by=other) == ALIVE
        assert mesh.state(N1, by=other) == SUSPECT
        assert N1 in mesh.nodes[other].take_hints()[1]
        mesh.link(other, N1)
    mesh.run(0.2)
    assert mesh.whole()
    assert mesh.nodes[N0].absent_since(N1) is None
    assert mesh.nodes[N1].life > 1000


def test_a_late_goodbye_of_an_earlier_life_is_not_this_ones() -> None:
    mesh = settled(3)
    mesh.kill(N1)
    mesh.start(N1, 2000)
    mesh.link(N0, N1)
    leave = mesh_pb2.LinkMessage(leave=membership_pb2.Leave(life=1000))
    mesh.note(N0, mesh.nodes[N0].received(N1, leave, mesh.now))
    assert mesh.state(N1, by=N0) == ALIVE


def test_two_that_do_not_reach_each_other_are_out_of_each_others_view_and_dead_to_nobody() -> None:
    mesh = settled(4)
    mesh.cut([N0], [N1])
    mesh.until(lambda: N1 not in mesh.nodes[N0].view() and N0 not in mesh.nodes[N1].view(), 15.0)
    mesh.changes.clear()
    mesh.run(60.0)
    assert mesh.told(DEAD, LEFT) == []
    assert {by for _, by, _, _ in mesh.changes} <= {N0, N1}, "those who see both never waver"
    assert mesh.nodes[N2].view() == frozenset(mesh.ids)
    assert mesh.nodes[N0].stuck() == [N1], "a new dial beside the link is due"
    mesh.heal()
    mesh.until(mesh.whole, 10.0)


def test_halves_of_a_mesh_die_to_each_other_and_meet_again() -> None:
    mesh = settled(8)
    left, right = mesh.ids[:4], mesh.ids[4:]
    mesh.cut(left, right)
    mesh.until(lambda: all(mesh.state(of, by) == DEAD for by in left for of in right), 30.0)
    assert all(mesh.nodes[by].view() == frozenset(left) for by in left)
    mesh.run(20.0)
    mesh.heal()
    mesh.until(mesh.whole, 5.0)
    assert mesh.nodes[N0].absent_since(named(7)) is None


def test_who_was_cut_off_takes_everybody_in_again_at_once_also_in_a_large_mesh() -> None:
    """Not one a second: the first that answers again is reason to ask the others."""
    mesh = settled(60)
    mesh.cut([N3])
    mesh.until(lambda: mesh.nodes[N3].view() == {N3}, 20.0)
    mesh.lose_held()
    mesh.heal()
    mesh.until(mesh.whole, 5.0)


def test_the_dead_are_asked_too_while_their_link_is_open() -> None:
    mesh = settled(2)
    mesh.cut([N0])
    mesh.until(lambda: mesh.state(N1, by=N0) == mesh.state(N0, by=N1) == DEAD, 60.0)
    mesh.lose_held()
    mesh.heal()
    mesh.until(mesh.whole, 3.0)


@pytest.mark.parametrize("state", [SUSPECT, DEAD])
def test_a_rumour_against_a_node_that_just_spoke_is_told_to_it_and_denied_by_it(state: int) -> None:
    mesh = settled(4)
    target = mesh.nodes[N1]
    record = membership_pb2.MemberRecord(
        node_id=N1,
        incarnation=target.roster.incarnation,
        life=target.life,
        state=membership_pb2.MemberState.ValueType(state),
        said_by=N3,
    )
    news = mesh_pb2.LinkMessage(member_news=membership_pb2.MemberNews(members=[record]))
    mesh.note(N0, mesh.nodes[N0].word_received(N1, mesh.now))
    effects = mesh.nodes[N0].received(N2, news, mesh.now)
    assert mesh.state(N1, by=N0) == ALIVE
    [(told, message)] = sent(effects, "member_news")
    assert told == N1
    assert message.member_news.members[0].state == state
    life = target.life
    mesh.note(N0, effects)
    mesh.run(1.0)
    assert target.life == life + 1
    assert all(mesh.nodes[by].members[N1].life == life + 1 for by in mesh.ids if by != N1)
    assert mesh.whole()


def test_a_rumour_of_death_about_a_silent_but_linked_node_is_looked_into_first() -> None:
    mesh = settled(4)
    mesh.cut([N1], [N0])
    mesh.nodes[N0].members[N1].last_heard -= 10.0
    record = mesh.nodes[N2].members[N1].record()
    record.state = membership_pb2.MEMBER_STATE_DEAD
    news = mesh_pb2.LinkMessage(member_news=membership_pb2.MemberNews(members=[record]))
    mesh.note(N0, mesh.nodes[N0].received(N2, news, mesh.now))
    assert mesh.state(N1, by=N0) == SUSPECT
    mesh.run(1.0)
    assert mesh.belief(N1, by=N0) == ALIVE, "it denied it through the others"


def test_a_death_reaches_those_too_that_only_heard_of_the_suspicion() -> None:
    mesh = settled(60)
    mesh.cut([N1])
    others = [node for node in mesh.ids if node != N1]
    mesh.until(lambda: any(mesh.state(N1, by) == DEAD for by in others), 20.0)
    assert mesh.until(lambda: all(mesh.state(N1, by) == DEAD for by in others), 20.0) < 2.0


def test_absurd_lives_are_ignored() -> None:
    mesh = settled(3)
    life = mesh.nodes[N0].life
    for node_id in (N0, N1):
        record = membership_pb2.MemberRecord(node_id=node_id, life=2**63, state=membership_pb2.MEMBER_STATE_DEAD)
        news = mesh_pb2.LinkMessage(member_news=membership_pb2.MemberNews(members=[record]))
        mesh.note(N0, mesh.nodes[N0].received(N2, news, mesh.now))
    mesh.run(5.0)
    assert mesh.nodes[N0].life == life
    assert mesh.whole()


def test_messages_a_node_and_second_do_not_grow_with_the_mesh() -> None:
    rates = {}
    for size in (4, 16, 48):
        mesh = settled(size)
        before = Counter(mesh.sent)
        mesh.run(20.0)
        rates[size] = max((mesh.sent[node] - before[node]) / 20.0 for node in mesh.ids)
    assert max(rates.values()) < 2 * min(rates.values()) + 1.0, rates
    assert rates[48] < 5.0, rates


def test_one_death_costs_each_node_few_messages_in_a_large_mesh() -> None:
    mesh = settled(48)
    before = Counter(mesh.sent)
    mesh.cut([N1])
    mesh.until(lambda: all(mesh.state(N1, by) == DEAD for by in mesh.ids if by != N1), 30.0)
    mesh.run(3.0)
    seconds = 20.0
    assert max(mesh.sent[node] - before[node] for node in mesh.ids if node != N1) < 15 * seconds


# One machine alone


class Alone:
    """One machine, its clock, and peers that only do what the test says."""

    def __init__(self) -> None:
        self.machine = Membership(N0, 100, rng(), LAN, incarnation=5)
        self.now = 0.0
        self.machine.tick(self.now)

    def wait(self, seconds: float) -> list[Send]:
        done: list[Send] = []
        for _ in range(round(seconds / 0.05)):
            self.now += 0.05
            done += [effect for effect in self.machine.tick(self.now)[0] if isinstance(effect, Send)]
            self.machine.validate()
        return done


def test_only_addresses_where_a_node_answered_are_told_to_others() -> None:
    alone = Alone()
    alone.machine.link_opened(hello(N1), alone.now)
    alone.machine.link_opened(hello(N2), alone.now, [("10.0.0.9", 4000)])
    [asked] = [
        message.member_news
        for _, message in sent(
            alone.machine.received(
                N1, mesh_pb2.LinkMessage(member_news=membership_pb2.MemberNews(reply_wanted=True)), alone.now
            ),
            "member_news",
        )
    ]
    told = {record.node_id: [(a.host, a.port) for a in record.addresses] for record in asked.members}
    assert told == {N0: [], N1: [], N2: [("10.0.0.9", 4000)]}
    alone.machine.address_proved(N1, "10.0.0.9", 4000, alone.now)
    assert alone.machine.members[N1].proved == (("10.0.0.9", 4000),)


def test_hearsay_is_worth_a_dial_and_puts_nobody_into_view() -> None:
    alone = Alone()
    alone.machine.link_opened(hello(N1), alone.now)
    record = membership_pb2.MemberRecord(node_id=N2, life=7, state=membership_pb2.MEMBER_STATE_ALIVE)
    record.addresses.add(host="10.0.0.7", port=1)
    news = mesh_pb2.LinkMessage(member_news=membership_pb2.MemberNews(members=[record]))
    assert alone.machine.received(N1, news, alone.now) == []
    assert alone.machine.take_hints() == ([("10.0.0.7", 1, N2)], [])
    assert alone.machine.take_hints() == ([], [])
    assert alone.machine.view() == {N0, N1}
    assert alone.machine.members[N2].state == SUSPECT
    alone.wait(60.0)
    assert alone.machine.members[N2].state == DEAD, "nobody ever reached it"


def test_loads_come_with_probes_and_answers() -> None:
    alone = Alone()
    alone.machine.link_opened(hello(N1), alone.now)
    alone.machine.load.slots_busy = 3
    probe = mesh_pb2.LinkMessage(
        probe=membership_pb2.Probe(probe_id=9, target_id=N0, load=membership_pb2.NodeLoad(engine_stalled=True))
    )
    [(_, reply)] = sent(alone.machine.received(N1, probe, alone.now), "probe_reply")
    assert (reply.probe_reply.probe_id, reply.probe_reply.reached) == (9, True)
    assert reply.probe_reply.load.slots_busy == 3
    assert alone.machine.members[N1].load.engine_stalled
    alone.machine.load_told(N1, membership_pb2.NodeLoad(slots_busy=8))
    assert alone.machine.members[N1].load.slots_busy == 8


def test_words_of_strangers_change_nothing() -> None:
    alone = Alone()
    message = mesh_pb2.LinkMessage(probe=membership_pb2.Probe(probe_id=1))
    assert alone.machine.word_received(N1, alone.now) == []
    assert alone.machine.received(N1, message, alone.now) == []
    assert alone.machine.link_closed(N1, alone.now) == []
    assert alone.machine.members == {}


def test_the_dead_are_forgotten_after_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Alone()
    alone.machine.link_opened(hello(N1), alone.now)
    alone.machine.link_closed(N1, alone.now)
    alone.machine.dial_refused(N1, alone.now)
    assert alone.machine.members[N1].state == DEAD
    monkeypatch.setattr(roster, "FORGET_AFTER_S", 100.0)
    alone.wait(90.0)
    assert N1 in alone.machine.members
    alone.wait(90.0)
    assert N1 not in alone.machine.members


def test_the_longest_departed_makes_room_and_the_living_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("mesh.roster", "mesh.membership"):
        monkeypatch.setattr(f"{module}.MEMBERS_MAX", 4)
    alone = Alone()
    for number in range(1, 5):
        alone.machine.link_opened(hello(named(number)), alone.now)
    full = alone.machine.link_opened(hello(named(9)), alone.now)
    assert [type(effect) for effect in full] == [Log]
    for number in (3, 2):
        alone.machine.link_closed(named(number), alone.now)
        alone.machine.dial_refused(named(number), alone.now)
        alone.wait(1.0)
    alone.machine.link_opened(hello(named(9)), alone.now)
    assert set(alone.machine.members) == {named(1), named(2), named(4), named(9)}


def test_a_pause_of_this_node_forgives_everybody() -> None:
    alone = Alone()
    for node in (N1, N2):
        alone.machine.link_opened(hello(node), alone.now)
    alone.wait(0.5)
    alone.now += 3600.0
    assert alone.machine.slept(alone.now)
    _, paused = alone.machine.tick(alone.now)
    assert paused
    assert alone.machine.paused_at == alone.now
    assert alone.machine.view() == {N0, N1, N2}
    alone.machine.link_closed(N1, alone.now)  # the other side gave up long ago
    assert alone.machine.members[N1].belief == ALIVE
    alone.wait(0.4)
    assert alone.machine.members[N2].state == ALIVE, "what had run before the pause was half a second"


def test_lateness_of_this_node_is_told_and_forgiven() -> None:
    alone = Alone()
    alone.machine.link_opened(hello(N1), alone.now)
    alone.wait(0.05)
    assert alone.machine.lag_s == 0.0
    alone.now += 1.5
    assert alone.machine.tick(alone.now)[1] is False
    assert alone.machine.lag_s == pytest.approx(1.5)
    assert alone.machine.members[N1].state == ALIVE


# The previous release
