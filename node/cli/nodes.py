"""`kith nodes`: who is in the mesh, as this node sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli import output, session
from node.errors import ExitCode, KithError

if TYPE_CHECKING:
    from pathlib import Path

    from mesh.wire import local_pb2

#: For `--wait`: how long, and how often it is looked at, seconds.
WAIT_S_MAX = 300.0
WAIT_POLL_S = 0.2

COLUMNS = (
    output.Column("name", "crop"),
    output.Column("state", "crop"),
    output.Column("model", "crop"),
    output.Column("tok/s in/out", "drop"),
    output.Column("load", "drop"),
    output.Column("address"),
    output.Column("id", "drop"),
    output.Column("found by", "drop"),
)


def register(app: typer.Typer) -> None:
    app.command("nodes")(nodes)


def nodes(
    ctx: typer.Context,
    wait: Annotated[
        int, typer.Option("--wait", metavar="N", min=0, help="First wait until N agents are ready, at most 5 minutes.")
    ] = 0,
    as_json: session.Json = False,
) -> None:
    """List the nodes of the mesh, as this node sees them."""
    from node.cli import as_json as shapes

    if wait:
        import asyncio

        members = asyncio.run(_ready(session.data_dir(ctx), wait, _Said() if as_json else _Said(output.note)))
    else:
        members = session.ask_node(ctx, lambda node: node.nodes())
    if as_json:
        output.emit({"nodes": [shapes.node(member) for member in members]})
        return
    output.table(COLUMNS, [_row(member) for member in members])


class _Said:
    """Says what is waited for whenever it is something else than before; nothing of what is there at once."""

    def __init__(self, say: Callable[[str], None] = lambda _: None) -> None:
        self._say = say
        self._last = ""

    def __call__(self, text: str) -> None:
        if text != self._last:
            self._last = text
            self._say(f"waiting: {text}")


async def _ready(data_dir: Path, agents: int, waiting: Callable[[str], None]) -> list[local_pb2.NodeInfo]:
    """The members, as soon as a leader and `agents` agents are among those alive. The node itself may still start."""
    import asyncio
    import time

    from mesh.wire import membership_pb2
    from node.client import NodeClient

    deadline = time.monotonic() + WAIT_S_MAX
    while True:
        members: list[local_pb2.NodeInfo] = []
        problem = ""
        try:
            async with NodeClient(data_dir) as node:
                members = await node.nodes()
                problem = output.one_line((await node.status()).engine_problem)
        except KithError as error:
            if error.code != "node-unreachable" or time.monotonic() > deadline:
                raise
            problem = error.message
        alive = [member for member in members if member.state == membership_pb2.MEMBER_STATE_ALIVE]
        here = sum(len(member.profile.agents) for member in alive)
        if here >= agents and any(member.leader for member in alive):
            return members
        what = "nobody leads yet" if here >= agents else f"{here} of {agents} agents are ready"
        waiting(what + (f"; {problem}" if problem else ""))
        if time.monotonic() > deadline:
            raise KithError(
                "no-agent",
                f"{here} of {agents} agents are ready after {WAIT_S_MAX:.0f} s",
                "Look at `kith nodes` and, on the missing machines, at `kith doctor`.",
                ExitCode.UNAVAILABLE,
            )
        await asyncio.sleep(WAIT_POLL_S)


def _row(member: local_pb2.NodeInfo) -> list[str]:
    from node.cli import as_json as shapes

    agent = member.profile.agents[0] if member.profile.agents else None
    state = shapes.member_state(member)
    if member.denied:
        state = "revoked" + (f": {member.denied_reason}" if member.denied_reason else "")
    elif state in ("suspect", "dead"):
        state += f" ({output.seconds(member.last_heard_s)})"
    if member.leader:
        state += ", leader"
    if member.forked:
        state += ", two histories"
    load = f"{member.load.slots_busy}/{member.load.slots_total}" + (" draining" if member.load.draining else "")
    if member.load.engine_stalled:
        load += " stalled"
    return [
        member.name,
        state,
        agent.model if agent else "–",
        f"{output.rate(agent.prefill_tokens_per_s)}/{output.rate(agent.decode_tokens_per_s)}" if agent else "–",
        load if member.load.slots_total else "–",
        shapes.address_text(member.addresses[0]) if member.addresses else "–",
        member.node_id[:12],
        "this node" if member.self else member.found_by or "–",
    ]
