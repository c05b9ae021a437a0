"""Letting machines in and shutting them out: `kith invite`, `kith join`, `kith promote`, `kith revoke`.

Idea: an invite is a talk between two screens. The inviter's shows the code, then who came in, by name and fingerprint;
the joiner's shows which mesh it is in, by fingerprint. Whoever reads both out has checked the whole.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli import output, session
from node.errors import ExitCode, KithError

if TYPE_CHECKING:
    from mesh.wire import local_pb2

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
ROLES = ("node", "worker", "client")


def register(app: typer.Typer) -> None:
    for command in (invite, join, promote, revoke):
        app.command(command.__name__)(command)


def invite(
    ctx: typer.Context,
    ttl: Annotated[str, typer.Option("--ttl", metavar="TIME", help="How long it lives: 90s, 15m, 2h, 1d.")] = "15m",
    uses: Annotated[int, typer.Option("--uses", min=1, max=100, help="How many machines may use it.")] = 1,
    role: Annotated[
        str,
        typer.Option(
            "--role", metavar="|".join(ROLES), help="node: all of it; worker: works, leads nothing; client: asks."
        ),
    ] = "node",
    no_code: Annotated[
        bool, typer.Option("--no-code", help="A token only: nobody can void it with a wrong guess.")
    ] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Print it and end; it lives on in the node.")] = False,
    as_json: session.Json = False,
) -> int:
    """Let another machine in, by a short code or by a token.

    A code is good for one try: a wrong one makes it void. Until the invite ends, a second port of this node is open.
    The command waits and says who came; Ctrl-C ends the invite.
    """
    from mesh.wire import local_pb2
    from node.client import NodeClient

    request = local_pb2.InviteRequest(
        ttl_s=_seconds(ttl), uses=uses, role=_role(role), detached=no_wait, no_code=no_code
    )

    opened = False

    async def run(node: NodeClient) -> int:
        nonlocal opened
        joined = 0
        reason = ""
        async for event in node.invite(request):
            if event.WhichOneof("event") == "opened":
                opened = True
                _print_opened(event.opened, no_wait, as_json)
                continue
            happened = event.happened
            joined += happened.what == "joined"
            reason = happened.reason if happened.what == "closed" else reason
            _print_happened(happened, as_json)
        return ExitCode.OK if no_wait or joined or reason == "withdrawn" else ExitCode.FAILED

    try:
        return session.ask_node(ctx, run)
    except KeyboardInterrupt:
        if no_wait or not opened:
            raise
        said = "the invite was ended: nobody can use it any more"
        raise KithError("interrupted", said, "", ExitCode.INTERRUPTED) from None


def join(
    ctx: typer.Context,
    invite: Annotated[
        str, typer.Argument(metavar="CODE|TOKEN", help="What `kith invite` printed on a member; -: read it.")
    ],
    address: Annotated[
        str, typer.Argument(metavar="[HOST:PORT]", help="Of the inviter's join port; without it, it is looked for.")
    ] = "",
    as_json: session.Json = False,
) -> None:
    """Enter a mesh with an invite from one of its members.

    `kith up` starts the node then. A member whose certificate has expired comes back in the same way, and keeps its
    id and its data.
    """
    import asyncio
    import socket
    import sys

    from node.cli.settings import load_config
    from node.interfaces import choose, interfaces
    from node.joining.codes import parse
    from node.joining.joiner import Joined
    from node.joining.joiner import join as join_mesh
    from node.joining.names import fingerprint_of
    from node.listening import Lock, prepare_folders
    from node.logs import logger
    from node.paths import NodePaths

    secret = parse(sys.stdin.readline() if invite == "-" else invite)
    folder = session.data_dir(ctx)
    paths = NodePaths(folder)
    config = load_config(folder, {})
    name = config.name or socket.gethostname()
    loopback = [one for one in interfaces() if one.loopback and one.up]
    here = list(dict.fromkeys([*choose(config.interfaces, "0.0.0.0"), *loopback]))
    prepare_folders(paths)

    async def run() -> Joined:
        if not address and not as_json:
            output.note(f"looking for the invite {secret.invite} on this network")
        tell = (lambda where: None) if as_json else (lambda where: output.note(f"asking {where}"))
        return await join_mesh(paths, secret, address, name, here, logger, found=tell)

    with Lock(paths):
        joined = asyncio.run(run())
    member = joined.enrolment
    if as_json:
        output.emit(
            {
                "mesh_id": member.mesh_id,
                "mesh_fingerprint": fingerprint_of(member.mesh_id),
                "label": member.label,
                "node_id": member.key.node_id,
                "fingerprint": fingerprint_of(member.key.node_id),
                "role": member.identity.role.value,
                "inviter": joined.inviter_name,
                "again": joined.again,
            }
        )
        return
    mesh = f"mesh {output.one_line(member.label)!r}, fingerprint {fingerprint_of(member.mesh_id)}"
    print(f"{output.bold('joined')}  {mesh}, by {joined.inviter_name}; as {member.identity.role.value}")
    kept = ", with the same id as before" if joined.again else ""
    print(f"  this   node has the fingerprint {fingerprint_of(member.key.node_id)}{kept}; the inviter sees the same")
    print(f"  start  kith{session.data_dir_option(ctx)} up")


def promote(
    ctx: typer.Context,
    node: Annotated[str, typer.Argument(metavar="NODE", help="Name, id, or the beginning of the id.")],
    as_json: session.Json = False,
) -> None:
    """Make another node an issuer as well.

    It gets the CA key, and may invite, renew and revoke. Run it on an issuer. At most three nodes hold the key; whoever
    steals one of these machines can let anybody in.
    """
    done = session.ask_node(ctx, lambda here: here.promote(node))
    if as_json:
        output.emit({"node_id": done.node_id, "name": done.name, "issuers": done.issuers})
        return
    print(f"{output.one_line(done.name)} ({done.node_id[:12]}) is an issuer now: {done.issuers} nodes hold the CA key")


def revoke(
    ctx: typer.Context,
    node: Annotated[str, typer.Argument(metavar="NODE", help="Name, id, or the beginning of the id.")],
    reason: Annotated[str, typer.Option("--reason", help="Kept for people; every member can read it.")] = "",
    as_json: session.Json = False,
) -> None:
    """Cut a node off for good, for example a stolen one. Run it on an issuer.

    Its links end at once; what it wrote until now stays, what it writes from now on counts nowhere. There is no way
    back for its id: after `kith leave` the machine may join as a new node. A node that held the CA key can still make
    members up: then found a new mesh with `kith init` and let the others join it.
    """
    done = session.ask_node(ctx, lambda here: here.revoke(node, reason))
    if as_json:
        output.emit(
            {
                "node_id": done.node_id,
                "name": done.name,
                "epoch": done.epoch,
                "was_issuer": done.was_issuer,
                "told": done.told,
            }
        )
        return
    print(f"{output.one_line(done.name)} ({done.node_id[:12]}) is revoked; {done.told} linked nodes hear of it now")
    if done.was_issuer:
        output.note("it held the CA key, so it can make members up: found a new mesh and let the others join that")


def _print_opened(opened: local_pb2.InviteOpened, no_wait: bool, as_json: bool) -> None:
    from node.cli.as_json import address_text
    from node.joining.names import fingerprint_of

    addresses = [address_text(address) for address in opened.addresses]
    if as_json:
        output.emit(
            {
                "code": opened.code,
                "token": opened.token,
                "addresses": addresses,
                "ttl_s": opened.ttl_s,
                "uses": opened.uses,
                "role": opened.role,
                "mdns": opened.mdns,
                "mesh_fingerprint": fingerprint_of(opened.mesh_id),
            }
        )
        return
    at = addresses[0] if addresses else "HOST:PORT"
    first = opened.code or opened.token
    uses = "one machine" if opened.uses == 1 else f"{opened.uses} machines"
    print(f"on the other machine:  {output.bold(f'kith join {first}')}" + ("" if opened.mdns else f" {at}"))
    if opened.mdns:
        print(f"  address  {', '.join(addresses)}; add one of them where mDNS does not find this node")
    if opened.code:
        print(f"  script   kith join {opened.token} {at}")
    mesh = fingerprint_of(opened.mesh_id)
    print(f"  good     for {uses} as {opened.role}, for {output.seconds(opened.ttl_s)}; mesh {mesh}")
    if all(address.startswith(("127.", "[::1]")) for address in addresses):
        print("  note     no other machine can join: this one is on no network, or `kith up --listen` names loopback")
    if not no_wait:
        print("waiting; Ctrl-C ends the invite", flush=True)


def _print_happened(happened: local_pb2.InviteHappened, as_json: bool) -> None:
    if as_json:
        said = {"what": happened.what, "reason": happened.reason, "name": happened.name}
        output.emit(said | {"node_id": happened.node_id, "fingerprint": happened.fingerprint})
        return
    name = output.one_line(happened.name)
    match happened.what, happened.reason:
        case "joined", _:
            print(f"{output.bold('joined')}  {name}, fingerprint {happened.fingerprint}")
        case "issued", _:
            print(f"{name}, fingerprint {happened.fingerprint}, was let in and did not say that it knows")
        case "refused", "denied":
            print(f"refused {name}, fingerprint {happened.fingerprint}: it was revoked")
        case "refused", _:
            print(f"refused {name}: it did not know the secret")
        case "closed", "used":
            print("the invite is used up")
        case "closed", "void":
            print("the invite is void after a wrong try; run `kith invite` again")
        case "closed", "expired":
            print("the invite has expired; nobody can use it any more")
        case "closed", _:
            print("the invite was ended")
    typer.get_text_stream("stdout").flush()


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d{1,7})\s*([smhd]?)", text.strip().lower())
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not seconds:
        raise KithError("usage", f"{text[:20]!r} is no time", "write it like 90s, 15m, 2h or 1d", ExitCode.USAGE)
    return seconds


def _role(text: str) -> str:
    if text not in ROLES:
        raise KithError(
            "usage", f"there is no role {text[:20]!r} to invite for", f"one of: {', '.join(ROLES)}", ExitCode.USAGE
        )
    return text
