"""`kith nodes`: who is in the mesh, as this node sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from node.cli import output, session

if TYPE_CHECKING:
    from mesh.wire import local_pb2


COLUMNS = (
    output.Column("name", "crop"),
    output.Column("id", "drop"),
    output.Column("state"),
    output.Column("model", "crop"),
    output.Column("tok/s in/out"),
    output.Column("load"),
    output.Column("address"),
    output.Column("found by", "drop"),
)


def register(app: typer.Typer) -> None:
    app.command("nodes")(nodes)


def nodes(ctx: typer.Context, as_json: session.Json = False) -> None:
    """List the nodes of the mesh, as this node sees them."""
    from node.cli import as_json as shapes

    members = session.ask_node(ctx, lambda node: node.nodes())
    if as_json:
        output.emit({"nodes": [shapes.node(member) for member in members]})
        return
    output.table(COLUMNS, [_row(member) for member in members])


def _row(member: local_pb2.NodeInfo) -> list[str]:
    from node.cli import as_json as shapes

    agent = member.profile.agents[0] if member.profile.agents else None
    state = shapes.member_state(member)
    if state in ("suspect", "dead"):
        state += f" ({output.seconds(member.last_heard_s)})"
    if member.leader:
        state += ", leader"
    load = f"{member.load.slots_busy}/{member.load.slots_total}" + (" draining" if member.load.draining else "")
    return [
        member.name,
        member.node_id[:12],
        state,
        agent.model if agent else "–",
        f"{output.rate(agent.prefill_tokens_per_s)}/{output.rate(agent.decode_tokens_per_s)}" if agent else "–",
        load if member.load.slots_total else "–",
        shapes.address_text(member.addresses[0]) if member.addresses else "–",
        "this node" if member.self else member.found_by or "–",
    ]
