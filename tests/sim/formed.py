"""A mesh that was formed long ago: every running host is linked with every other and knows it as alive.

How meshes form is what the smaller worlds show. In a large one a million Hellos would take longer than everything else,
so the state that they end in is written down here: members, links and proved addresses, with no news left to tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mesh.facts import make
from mesh.member import ALIVE, Member

if TYPE_CHECKING:
    from tests.sim.host import Host
    from tests.sim.network import Network


#: The life in which each said its profile, before this world began.
EARLIER_LIFE = 1


def introduce(hosts: Sequence[Host]) -> None:
    """Put everybody's profile into every store. Before they start."""
    profiles = [
        make(host.key, EARLIER_LIFE, 1, b"", host.wall_clock_ms() << 16, "node_profile", host.profile())
        for host in hosts
    ]
    for host in hosts:
        host.is_known = True
        for fact in profiles:
            host.disk.content.add(fact)


def form(network: Network, hosts: Sequence[Host]) -> None:
    """Link all who run with each other."""
    running = [host for host in hosts if host.replica is not None]
    for place, acceptor in enumerate(running):
        for dialler in running[place + 1 :]:
            for end in network.link(dialler, acceptor).ends:
                end.host.links[end.other.host.id] = [end]
    for host in running:
        _acquaint(host, [other for other in running if other is not host])


def _acquaint(host: Host, others: Sequence[Host]) -> None:
    assert host.replica is not None
    now = host.now()
    roster = host.replica.membership.roster
    for other in others:
        assert other.replica is not None
        here = (other.address,)
        member = Member(
            other.id, other.replica.incarnation, other.replica.membership.life, other.name, here, here,
            belief=ALIVE, state=ALIVE, state_since=now, linked=True, last_heard=now,
        )  # fmt: skip
        roster.take_in(member)
        host.replica.addresses.add(*other.address, "peer", now, other.id)
        host.replica.addresses.dial_succeeded(*other.address, other.id)
        host.cache.add(other.address)
