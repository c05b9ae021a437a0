"""Who is here, alive, linked or out of reach: what follows from the members, kept up with every change.

Idea: these are asked at every tick and for every message, and change seldom; made anew after each change they were a
tenth of what a node in a mesh of a hundred did. Each change of one member mends them for that member. The lists are
shared with whoever asked, so a change makes another list.

Does not: believe anything; see roster.py.
"""

from bisect import bisect_left
from collections.abc import Iterable

from mesh.identity import NodeId
from mesh.member import ALIVE, DEAD, LEFT, Member


class Presence:
    """Invariant: after `changed` of every member that changed, all of it is as computed from the members."""

    def __init__(self, me: NodeId) -> None:
        self.me = me
        #: Members that are alive and linked, in order of id.
        self.live: list[NodeId] = []
        #: In order of id.
        self.linked: list[NodeId] = []
        #: Linked peers that do not answer on their link, in order of id.
        self.stuck: list[NodeId] = []
        #: Linked members that are dead or out of reach.
        self.lost: dict[NodeId, Member] = {}
        self._here: set[NodeId] = set()
        self._view: frozenset[NodeId] | None = None
        self._reached: frozenset[NodeId] | None = None

    def size(self) -> int:
        """Members that are not departed, this node included."""
        return 1 + len(self._here)

    def view(self) -> frozenset[NodeId]:
        """The live view: live peers and this node."""
        if self._view is None:
            self._view = frozenset([self.me, *self.live])
        return self._view

    def reached(self) -> frozenset[NodeId]:
        """Linked peers but those that are stuck."""
        if self._reached is None:
            self._reached = frozenset(self.linked).difference(self.stuck)
        return self._reached

    def changed(self, member: Member) -> None:
        """A member is new, or its `belief`, `state`, `linked` or `misses` was set."""
        self._put(
            member, live=member.state == ALIVE, linked=member.linked, stuck=_is_stuck(member), lost=_is_lost(member)
        )
        if member.departed:
            self._here.discard(member.node_id)
        else:
            self._here.add(member.node_id)

    def forgotten(self, member: Member) -> None:
        self._put(member, live=False, linked=False, stuck=False, lost=False)
        self._here.discard(member.node_id)

    def validate(self, members: Iterable[Member]) -> None:
        everyone = sorted(members, key=lambda member: member.node_id)
        assert self._here == {member.node_id for member in everyone if not member.departed}
        assert self.live == [member.node_id for member in everyone if member.state == ALIVE]
        assert self.linked == [member.node_id for member in everyone if member.linked]
        assert self.stuck == [member.node_id for member in everyone if _is_stuck(member)]
        assert self.lost.keys() == {member.node_id for member in everyone if _is_lost(member)}
        assert self._view is None or self._view == {self.me, *self.live}
        assert self._reached is None or self._reached == set(self.linked) - set(self.stuck)

    def _put(self, member: Member, *, live: bool, linked: bool, stuck: bool, lost: bool) -> None:
        node_id = member.node_id
        before = self.live
        self.live = _kept(before, node_id, live)
        if self.live is not before:
            self._view = None
        were = self.linked, self.stuck
        self.linked, self.stuck = _kept(self.linked, node_id, linked), _kept(self.stuck, node_id, stuck)
        if self.linked is not were[0] or self.stuck is not were[1]:
            self._reached = None
        if lost:
            self.lost[node_id] = member
        else:
            self.lost.pop(node_id, None)


def _is_stuck(member: Member) -> bool:
    silent = not member.answers or (member.misses > 0 and member.belief != ALIVE)
    return member.linked and member.belief != LEFT and silent


def _is_lost(member: Member) -> bool:
    return member.linked and (member.belief == DEAD or (member.belief != LEFT and not member.answers))


def _kept(ids: list[NodeId], node_id: NodeId, wanted: bool) -> list[NodeId]:
    """The ids, in order, with or without this one; another list where that changes them."""
    place = bisect_left(ids, node_id)
    found = place < len(ids) and ids[place] == node_id
    if found == wanted:
        return ids
    if wanted:
        return [*ids[:place], node_id, *ids[place:]]
    return [*ids[:place], *ids[place + 1 :]]
