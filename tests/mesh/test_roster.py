"""What is believed of members: records merge in any order; only the node itself denies; little is taken on trust."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from mesh.effects import Effect, Send
from mesh.identity import NodeId
from mesh.member import LIFE_JUMP_MAX
from mesh.membership import ALIVE, DEAD, LEFT, SUSPECT
from mesh.roster import HINTS_MAX, NEWS_MAX, Roster
from mesh.timing import LAN
from mesh.wire import membership_pb2
from tests.mesh.building import rng
from tests.mesh.members import named

ME, N1, N2, TELLER = named(0), named(1), named(2), named(9)


def roster(life: int = 100) -> Roster:
    return Roster(ME, life, 5, rng(), LAN)


def record(
    node_id: NodeId, life: int, state: int, said_by: str = "", incarnation: int = 0
) -> membership_pb2.MemberRecord:
    return membership_pb2.MemberRecord(
        node_id=node_id,
        life=life,
        state=membership_pb2.MemberState.ValueType(state),
        said_by=said_by,
        incarnation=incarnation,
    )


def beliefs(one: Roster) -> dict[NodeId, tuple[int, int]]:
    return {node_id: (member.life, member.belief) for node_id, member in one.members.items()}


records = st.builds(
    record,
    st.sampled_from([named(1), named(2), named(3)]),
    st.integers(1, 4),
    st.sampled_from([ALIVE, SUSPECT, DEAD, LEFT]),
    st.sampled_from(["", named(4), named(5)]),
)


@given(st.lists(records, max_size=12), st.data())
def test_records_merge_the_same_in_any_order_and_however_often(
    told: list[membership_pb2.MemberRecord], data: st.DataObject
) -> None:
    first, second = roster(), roster()
    first.merge(told, TELLER, 1.0)
    shuffled = data.draw(st.permutations(told + told[: len(told) // 2]))
    for told_again in shuffled:
        second.merge([told_again], TELLER, 1.0)
    first.validate()
    second.validate()
    assert beliefs(first) == beliefs(second)
    assert beliefs(first) == {
        NodeId(node_id): max((one.life, one.state) for one in group)
        for node_id, group in itertools.groupby(sorted(told, key=lambda one: one.node_id), key=lambda one: one.node_id)
    }


@given(st.lists(records, max_size=12))
def test_two_that_tell_each_other_all_believe_the_same(told: list[membership_pb2.MemberRecord]) -> None:
    first, second = roster(), Roster(named(8), 100, 6, rng(2), LAN)
    first.merge(told[::2], TELLER, 1.0)
    second.merge(told[1::2], TELLER, 1.0)
    of_first, of_second = first.all_records(), second.all_records()
    first.merge(of_second, named(8), 2.0)
    second.merge(of_first, ME, 2.0)
    known = {node_id: belief for node_id, belief in beliefs(first).items() if node_id != named(8)}
    assert known == {node_id: belief for node_id, belief in beliefs(second).items() if node_id != ME}


def told_back(effects: list[Effect]) -> list[tuple[NodeId, int, int]]:
    return [
        (effect.peer, one.life, one.state)
        for effect in effects
        if isinstance(effect, Send)
        for one in effect.message.member_news.members
    ]


def test_what_is_said_of_this_node_is_denied_at_once_with_a_higher_life_and_costs_it_confidence() -> None:
    one = roster()
    assert told_back(one.merge([record(ME, 100, SUSPECT, incarnation=5)], TELLER, 1.0)) == [(TELLER, 101, ALIVE)]
    assert one.awareness.score == 1
    assert one.life == 101
    assert [news.life for news in one.news()] == [101]
    assert one.merge([record(ME, 100, DEAD, incarnation=5)], TELLER, 1.0) == [], "that was denied already"
    assert one.merge([record(ME, 101, ALIVE, incarnation=5)], TELLER, 1.0) == []


def test_an_earlier_start_of_this_node_with_a_later_clock_is_overtaken() -> None:
    one = roster()
    assert told_back(one.merge([record(ME, 7000, ALIVE, incarnation=4)], TELLER, 1.0)) == [(TELLER, 7001, ALIVE)]
    assert one.awareness.score == 0


def test_a_node_that_leaves_denies_nothing() -> None:
    one = roster()
    one.leaving = True
    assert one.merge([record(ME, 100, LEFT, incarnation=5)], TELLER, 1.0) == []


def test_records_of_nobody_in_no_state_or_of_absurd_lives_say_nothing() -> None:
    one = roster()
    absurd = 100 + LIFE_JUMP_MAX + 1
    nonsense = [record(NodeId("x"), 1, ALIVE), record(N1, 1, 0), record(N1, absurd, DEAD), record(ME, absurd, DEAD)]
    one.merge(nonsense, TELLER, 1.0)
    assert one.members == {}
    assert one.life == 100


def test_confirmations_by_different_nodes_count_and_are_passed_on() -> None:
    one = roster()
    for number in range(2, 8):
        one.merge([record(named(number), 1, ALIVE)], TELLER, 0.0)
    for said_by in (named(2), named(2), named(3), named(4)):
        one.merge([record(N1, 1, SUSPECT, said_by)], TELLER, 1.0)
    suspicion = one.members[N1].suspicion
    assert suspicion is not None
    assert suspicion.said_by == [named(2), named(3), named(4)]
    said = {news.said_by for _ in range(30) for news in (*one.all_records(),) if news.node_id == N1}
    assert said == {named(2), named(3), named(4)}, "in time, all who said so are named"
    assert one.suspicions_due(1.0 + LAN.suspicion_min_s(8) - 0.01) == []
    one.suspicions_due(1.0 + LAN.suspicion_min_s(8))
    assert one.members[N1].belief == DEAD


def test_news_are_bounded_a_message() -> None:
    one = roster()
    one.merge([record(named(number), 1, ALIVE) for number in range(10, 100)], TELLER, 1.0)
    assert len(one.news()) == NEWS_MAX


def test_addresses_passed_on_without_end_are_not_kept() -> None:
    one = roster()
    many = record(N1, 1, ALIVE)
    for number in range(HINTS_MAX):
        many.addresses.add(host="10.0.0.1", port=number + 1)
    for _ in range(5):
        one.merge([many], TELLER, 1.0)
    hints, _ = one.take_hints()
    assert len(hints) <= 2 * HINTS_MAX
