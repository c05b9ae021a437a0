"""What must hold once everything is healed and time enough has passed: all live nodes agree, in full."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mesh.election import Role
from tests.sim.denied import denied_problems
from tests.sim.folds import folded, read_of

if TYPE_CHECKING:
    from tests.sim.checks import Checks
    from tests.sim.host import Host

#: After so long everybody must have heard that a node is gone.
GHOSTS_GONE_S = 45.0
#: In a larger mesh the folds of so many nodes are computed afresh; all are compared with each other.
FOLDED_MAX = 12


def quiet_problems(checks: Checks, live: Sequence[Host], hosts: Sequence[Host], quiet_since: float) -> list[str]:
    """What is wrong, in words; empty where all is well. `live`: those that run and were not cut off."""
    gone = [host for host in hosts if host.replica is None and host.ended_at < checks.clock.now - GHOSTS_GONE_S]
    problems = [problem for host in live for problem in _of_one(host, live, gone)]
    problems += _of_leaders(live)
    changed_at = max(checks.changed_at.get(host.id, 0.0) for host in live)
    if changed_at > quiet_since:
        problems.append(f"the leader changed at {changed_at:.1f}, after {quiet_since:.1f}")
    return problems + _of_facts(live) + denied_problems(checks, live, hosts)


def _of_one(host: Host, live: Sequence[Host], gone: Sequence[Host]) -> list[str]:
    problems: list[str] = []
    replica = host.replica
    assert replica is not None
    replica.validate()
    everyone = frozenset(other.id for other in live)
    view = replica.membership.view()
    if view != everyone:
        seen = sorted(other.name for other in live if other.id in view)
        problems.append(f"{host.name} sees {seen[:20]} of {len(everyone)} nodes, {len(view - everyone)} ghosts")
    alive = {member.node_id for member in replica.membership.members.values() if not member.departed}
    ghosts = sorted(other.name for other in gone if other.id in alive)
    if ghosts:
        problems.append(f"{host.name} still believes in {ghosts[:20]}, which are gone")
    if replica.election.leader != host.leader:
        problems.append(f"{host.name}'s shell was told of another leader than its machine follows")
    if replica.journal.durable != replica.journal.staged:
        problems.append(f"{host.name} has staged facts that are not durable")
    positions = {stream: position.sequence for stream, position in replica.journal.durable.items()}
    if positions != {stream: items[-1].last for stream, items in host.disk.content.streams.items()}:
        problems.append(f"{host.name}'s journal differs from its disk")
    return problems


def _of_leaders(live: Sequence[Host]) -> list[str]:
    problems: list[str] = []
    everyone = {host.id for host in live}
    leaders: set[tuple[int, str]] = set()
    for host in live:
        assert host.replica is not None
        leader = host.replica.election.leader
        leaders.add((leader.term, leader.leader_id) if leader else (0, ""))
    if len(leaders) != 1 or not all(leader_id in everyone for _, leader_id in leaders):
        problems.append(f"not one live leader: {sorted((term, node[:8]) for term, node in leaders)}")
    if sum(1 for host in live if host.replica and host.replica.election.role is Role.LEADER) != 1:
        problems.append("not exactly one node leads")
    return problems


def _of_facts(live: Sequence[Host]) -> list[str]:
    problems: list[str] = []
    first = live[0].replica
    assert first is not None
    read, held = read_of(first), first.journal.durable
    for place, host in enumerate(live):
        assert host.replica is not None
        here = read_of(host.replica)
        if host.replica.journal.durable != held:
            counts = [len(other.disk.content.facts) for other in live[:20]]
            problems.append(f"facts differ between {live[0].name} and {host.name}: {counts}")
        elif here != read:
            problems.append(f"{host.name} reads another thing than {live[0].name}, of the same facts")
        stored = host.disk.content
        if place < FOLDED_MAX and here != folded(reversed(list(stored.facts.values())), stored.forks):
            problems.append(f"{host.name} reads another thing than its facts say")
    return problems
