"""One member: which record outranks which, and what is told of it."""

import pytest

from mesh.member import AGENTS_TOLD_MAX, ALIVE, DEAD, LEFT, LOAD_BYTES_MAX, SUSPECT, Member, readable
from mesh.wire import membership_pb2
from tests.mesh.members import named


@pytest.mark.parametrize(
    ("known", "told", "outranks"),
    [
        ((5, ALIVE), (5, SUSPECT), False),
        ((5, SUSPECT), (5, DEAD), False),
        ((5, DEAD), (5, LEFT), False),
        ((5, DEAD), (5, ALIVE), True),
        ((5, DEAD), (6, ALIVE), False),
        ((5, LEFT), (4, ALIVE), True),
        ((5, ALIVE), (5, ALIVE), True),
        ((6, ALIVE), (5, LEFT), True),
    ],
)
def test_the_later_life_wins_and_on_a_tie_the_worse_state(
    known: tuple[int, int], told: tuple[int, int], outranks: bool
) -> None:
    assert Member(named(1), life=known[0], belief=known[1]).outranks(*told) is outranks


def test_a_record_names_only_addresses_where_the_member_answered() -> None:
    member = Member(named(1), 7, 5, "n1", (("10.0.0.1", 1), ("10.0.0.2", 2)), (("10.0.0.2", 2),), belief=SUSPECT)
    record = member.record(named(2))
    assert [(address.host, address.port) for address in record.addresses] == [("10.0.0.2", 2)]
    assert (record.node_id, record.incarnation, record.life, record.state) == (named(1), 7, 5, SUSPECT)
    assert (record.name, record.said_by) == ("n1", named(2))


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        ([f"{number}" for number in range(AGENTS_TOLD_MAX)], True),
        ([f"{number}" for number in range(AGENTS_TOLD_MAX + 1)], False),
        (["x" * LOAD_BYTES_MAX], False),
    ],
)
def test_of_a_load_beyond_its_bounds_the_sums_are_kept(names: list[str], kept: bool) -> None:
    member = Member(named(1))
    loads = [membership_pb2.AgentLoad(agent=name) for name in names]
    member.load_told(membership_pb2.NodeLoad(slots_busy=3, agents=loads))
    assert (member.load.slots_busy, len(member.load.agents)) == (3, len(names) if kept else 0)
    assert member.load.ByteSize() <= LOAD_BYTES_MAX


def test_each_load_takes_the_place_of_the_last_with_all_its_memory() -> None:
    """A message keeps the room of whatever it held for as long as it lives: 56 bytes for each load, for years."""
    member = Member(named(1))
    member.load_told(membership_pb2.NodeLoad(slots_busy=3))
    first = member.load
    member.load_told(membership_pb2.NodeLoad(slots_busy=4))
    assert member.load is not first


def test_a_member_answers_while_it_is_linked_and_missed_at_most_one_probe() -> None:
    assert Member(named(1), linked=True, misses=1).answers
    assert not Member(named(1), linked=True, misses=2).answers
    assert not Member(named(1), linked=False).answers


@pytest.mark.parametrize(("node_id", "state", "says"), [(named(1), 0, False), (named(1), 4, True), ("abc", 1, False)])
def test_records_of_no_node_or_in_no_known_state_are_not_readable(node_id: str, state: int, says: bool) -> None:
    record = membership_pb2.MemberRecord(node_id=node_id, state=membership_pb2.MemberState.ValueType(state))
    assert readable(record) is says
