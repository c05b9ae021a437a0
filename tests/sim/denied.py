"""Who is denied in a simulated mesh, and how far their streams count: read from what was said, not from the product.

A denial counts once a node of the mesh holds it. A node that is denied itself tells nobody any more: what it alone
holds cuts nobody off, and is no failure of those who never heard it (seed 3730).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mesh.denials import name_of
from mesh.facts import StreamId
from mesh.identity import NodeId
from mesh.wire import facts_pb2

if TYPE_CHECKING:
    from tests.sim.checks import Checks
    from tests.sim.host import Host


def known_denials(checks: Checks, hosts: Iterable[Host]) -> list[facts_pb2.Deny]:
    """Those that any of these nodes holds: one may have died before it told anybody."""
    names = {name_of(deny) for host in hosts if host.replica for deny in host.replica.denials.messages()}
    return [deny for deny in checks.denials if name_of(deny) in names]


def members_of(checks: Checks, hosts: Iterable[Host]) -> list[Host]:
    """Those of these nodes that belong to the mesh, all of which run.

    In is whom nobody denies but those who are out; out is who withdrew, and whom somebody denies who is in. Found from
    those whom nobody denies at all. Who is neither (two that deny each other, before nobody else) is left out: others
    who see it then see a ghost.
    """
    running = [host for host in hosts if host.replica is not None]
    denies = {host.id: {NodeId(deny.node_id) for deny in known_denials(checks, [host])} for host in running}
    out = {host.id for host in running if host.replica is not None and host.replica.denied}
    within: set[NodeId] = set()
    while True:
        in_doubt = {denied for issuer, nodes in denies.items() if issuer not in out for denied in nodes}
        more = denies.keys() - within - out - in_doubt
        if not more:
            return [host for host in running if host.id in within]
        within |= more
        out |= {denied for issuer in more for denied in denies[issuer]}


def limit_of(stream_id: StreamId, denials: Iterable[facts_pb2.Deny]) -> int | None:
    """How far a stream counts by these denials, computed afresh (none here has parts). None: no limit."""
    limits = [
        max(
            (
                wire.sequence
                for wire in deny.last_positions
                if (wire.incarnation, wire.stream) == (stream_id.incarnation, stream_id.stream)
            ),
            default=0,
        )
        for deny in denials
        if deny.node_id == stream_id.author
    ]
    return min(limits, default=None) if stream_id.stream != facts_pb2.FACT_STREAM_TRUST else None


def denied_problems(checks: Checks, live: Sequence[Host], hosts: Sequence[Host]) -> list[str]:
    """Once all is quiet: nobody links, counts or obeys who is denied, and all hold the same of it."""
    denials = known_denials(checks, live)
    denied = {NodeId(deny.node_id) for deny in denials}
    problems: list[str] = []
    for host in live:
        replica = host.replica
        assert replica is not None
        if set(replica.denials.nodes) != denied:
            problems.append(f"{host.name} knows {len(replica.denials.nodes)} of {len(denied)} denied nodes")
        here = {
            "counts": denied & replica.membership.members.keys(),
            "is linked with": denied & host.links.keys(),
            "would dial": denied & replica.addresses.of_node.keys(),
            "copies to": {node for said in replica.work.copies.held_by.values() for node in said if node in denied}
            & replica.membership.members.keys(),
        }
        problems += [f"{host.name} {does} one that is denied" for does, nodes in here.items() if nodes]
        for stream_id, position in replica.journal.durable.items():
            limit = limit_of(stream_id, denials)
            if limit is not None and position.sequence > limit:
                problems.append(
                    f"{host.name} holds {position.sequence} facts of a denied node's stream, {limit} of them count"
                )
    for host in hosts:
        if host.replica is not None and host.replica.denied and host.labour.engine.tasks:
            problems.append(f"{host.name} still works though it knows that it is denied")
    return problems
