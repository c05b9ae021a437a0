"""What follows from the members is the same kept up with each change as computed afresh."""

from hypothesis import given
from hypothesis import strategies as st

from mesh.identity import NodeId
from mesh.member import ALIVE, DEAD, LEFT, SUSPECT, Member
from mesh.presence import Presence

ME = NodeId("f" * 32)
NAMES = [NodeId(f"{number:032x}") for number in (3, 1, 2)]
changes = st.lists(
    st.tuples(
        st.sampled_from(NAMES), st.sampled_from([ALIVE, SUSPECT, DEAD, LEFT]), st.booleans(), st.integers(0, 3),
        st.booleans(),
    ), max_size=30,
)  # fmt: skip


@given(changes)
def test_it_is_as_computed_afresh_whatever_changes(said: list[tuple[NodeId, int, bool, int, bool]]) -> None:
    presence = Presence(ME)
    members: dict[NodeId, Member] = {}
    for node_id, belief, linked, misses, forget in said:
        if forget and node_id in members:
            presence.forgotten(members.pop(node_id))
        else:
            member = members.setdefault(node_id, Member(node_id))
            member.belief, member.linked, member.misses = belief, linked, misses
            member.state = ALIVE if belief == ALIVE and member.answers else SUSPECT
            presence.changed(member)
        presence.validate(members.values())
        assert presence.size() == 1 + sum(not member.departed for member in members.values())
        assert presence.view() == {ME} | {name for name, member in members.items() if member.state == ALIVE}
        assert presence.reached() == set(presence.linked) - set(presence.stuck)


def test_who_asked_before_a_change_keeps_what_it_got() -> None:
    presence = Presence(ME)
    presence.changed(Member(NAMES[0], state=ALIVE, linked=True))
    live, linked = presence.live, presence.linked
    presence.changed(Member(NAMES[1], state=ALIVE, linked=True))
    assert live == linked == [NAMES[0]]
    assert presence.live == presence.linked == sorted(NAMES[:2])


def test_the_dead_on_open_links_are_lost_but_not_stuck() -> None:
    presence = Presence(ME)
    presence.changed(Member(NAMES[0], belief=DEAD, state=DEAD, linked=True))
    assert presence.stuck == []
    assert presence.reached() == {NAMES[0]}
    assert list(presence.lost) == [NAMES[0]]
