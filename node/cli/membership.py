"""Who belongs: `kith init` and `kith leave`, and a copy of the CA for a drawer: `kith ca backup` and `kith ca restore`.

Idea: what changes the mesh that a node is in happens while no daemon runs, under the same lock. Nothing is deleted:
what is left behind is moved aside, and the command says where.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli import output, session
from node.errors import ExitCode, KithError

if TYPE_CHECKING:
    from node.enrolment import Enrolment
    from node.paths import NodePaths

PASSPHRASE_BYTES_MAX = 4096

PassphraseFile = Annotated[
    Path | None,
    typer.Option("--passphrase-file", metavar="FILE", help="Read the passphrase from this file's first line."),
]

ca = typer.Typer(help="The CA key, which decides who belongs.", no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    for command in (init, leave):
        app.command(command.__name__)(command)
    app.add_typer(ca, name="ca")


# Making and leaving a mesh


def init(
    ctx: typer.Context,
    label: Annotated[
        str | None, typer.Option("--label", help="What people call the mesh. [default: host name]")
    ] = None,
    as_json: session.Json = False,
) -> None:
    """Make a mesh with this node as its first member.

    It can let others in. What the node did alone stays; those who join will know its jobs and its knowledge.
    """
    import socket

    from node import enrolment

    with _changing(session.data_dir(ctx)) as paths:
        enrolment.require_no_mesh(paths)
        made = enrolment.found(paths, label if label is not None else socket.gethostname())
    if as_json:
        output.emit(_shape(made))
        return
    at = session.data_dir_option(ctx)
    print(f"{output.bold('made')}    {_named(made)}; this node is {made.key.node_id[:12]}, its first member")
    print(f"  start  kith{at} up")
    print(f"  add    kith{at} invite, then on the other machine: kith join CODE")
    print(f"  keep   kith{at} ca backup FILE: who loses the CA key can let nobody in and cut nobody off")


def leave(
    ctx: typer.Context,
    force: Annotated[
        bool, typer.Option("--force", help="Also as the last node that is known to hold the CA key.")
    ] = False,
    as_json: session.Json = False,
) -> None:
    """Leave the mesh. A running node is stopped first.

    Its key, certificate and journal are moved aside, not deleted; it can join again, as a new node. The others stop
    trusting its old key when its certificate ends, or at once after `kith revoke`.
    """
    from node import enrolment
    from node.paths import NodePaths

    folder = session.data_dir(ctx)
    if not NodePaths(folder).mesh.exists():
        raise enrolment.not_in_a_mesh(NodePaths(folder))
    if not force:
        _require_another_issuer(folder)
    _stop(folder, quiet=as_json)
    with _changing(folder) as paths:
        aside = enrolment.leave(paths)
    if as_json:
        output.emit({"left": True, "moved_to": str(aside)})
        return
    print("left: this node is in no mesh now")
    print(f"  kept   {aside}: its key, certificate and journal; moved back, it is a member again unless revoked")
    print("  note   who did not revoke it trusts that key until its certificate ends; if it may be stolen: kith revoke")


def _require_another_issuer(folder: Path) -> None:
    """Raises `KithError` (`last-issuer`) unless others are known to hold the CA key, or this node does not."""
    import asyncio

    from node.client import NodeClient
    from node.paths import NodePaths

    if not NodePaths(folder).ca_key.exists():
        return

    async def issuers() -> int:
        async with NodeClient(folder) as node:
            return (await node.status()).mesh.issuers

    try:
        known = asyncio.run(issuers())
    except KithError:
        known = 0
    if known > 1:
        return
    why = "no other node is known to hold the CA key" if known else "it holds the CA key and does not run to ask others"
    raise KithError(
        "last-issuer",
        f"this node must not leave yet: {why}",
        "Promote another one while it runs (`kith promote NODE`); or keep `kith ca backup FILE`, then add --force.",
        ExitCode.UNAVAILABLE,
    )


def _stop(folder: Path, *, quiet: bool) -> None:
    from node.cli.service import locked, stop
    from node.paths import NodePaths

    if not locked(folder):
        return
    if not quiet:
        output.note(f"stopping the node (its log: {NodePaths(folder).log})")
    stop(folder, quiet=quiet)


# The CA in a drawer


@ca.command("backup")
def ca_backup(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file, best on another medium.")],
    passphrase_file: PassphraseFile = None,
    as_json: session.Json = False,
) -> None:
    """Write the CA, its key encrypted with a passphrase, to FILE."""
    from node import ca_backup as backups
    from node import enrolment
    from node.files import write_new
    from node.paths import NodePaths

    paths = NodePaths(session.data_dir(ctx))
    enrolled = backups.require_issuer(paths)
    data = backups.ca_backup(paths, _passphrase(passphrase_file, f"Passphrase for {_named(enrolled)}", new=True))
    try:
        write_new(file, data)
    except OSError as error:
        raise KithError(
            "backup-not-written",
            f"{file} can not be written: {error.strerror or error}",
            "Name a file that does not exist yet, in a folder that you can write to.",
            ExitCode.BAD_INPUT,
        ) from error
    enrolment.note_backup(paths)
    if as_json:
        output.emit({**_shape(enrolled), "file": str(file), "bytes": len(data)})
        return
    print(f"wrote {file}: the CA of {_named(enrolled)}")
    print(f"  use    kith ca restore {file}: makes any machine an issuer of this mesh")
    print("  keep   the file and the passphrase apart; both together are the mesh")


@ca.command("restore")
def ca_restore(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `kith ca backup` wrote.")],
    passphrase_file: PassphraseFile = None,
    as_json: session.Json = False,
) -> None:
    """Make this node an issuer of the mesh in FILE. It becomes a new member, or stays the member that it is."""
    from node import ca_backup as backups

    data = _read(file, backups.BACKUP_BYTES_MAX)
    mesh_id, label = backups.mesh_in(data)
    with _changing(session.data_dir(ctx)) as paths:
        passphrase = _passphrase(passphrase_file, f"Passphrase for mesh {label!r} ({mesh_id[:12]})", new=False)
        restored = backups.ca_restore(paths, data, passphrase)
    if as_json:
        output.emit(_shape(restored))
        return
    print(f"{output.bold('restored')}  this node, {restored.key.node_id[:12]}, is an issuer of {_named(restored)}")
    print(f"  start  kith{session.data_dir_option(ctx)} up --seed HOST:PORT of a member, where mDNS does not find one")
    print("  note   if the machine that held the CA key before is lost or stolen: kith revoke NODE")


# What the commands share


@contextlib.contextmanager
def _changing(folder: Path) -> Iterator[NodePaths]:
    """The data directory, made where it is missing, with no daemon in it. Raises `KithError` (`already-running`)."""
    from node.listening import Lock, prepare_folders
    from node.paths import NodePaths

    paths = NodePaths(folder)
    prepare_folders(paths)
    with Lock(paths):
        yield paths


def _passphrase(file: Path | None, asked: str, *, new: bool) -> str:
    """From the file, else from whoever sits at the terminal, without echo. Raises `KithError` (`no-passphrase`)."""
    if file is not None:
        try:
            text = _read(file, PASSPHRASE_BYTES_MAX).decode()
        except UnicodeDecodeError as error:
            raise _no_passphrase(f"{file} holds no text") from error
        if not (first := text.split("\n", 1)[0].rstrip("\r")):
            raise _no_passphrase(f"the first line of {file} is empty")
        return first
    if not sys.stdin.isatty():
        raise _no_passphrase("there is no terminal to ask for the passphrase at")
    return str(typer.prompt(asked, hide_input=True, confirmation_prompt=new, err=True))


def _no_passphrase(why: str) -> KithError:
    return KithError("no-passphrase", why, "Give it with --passphrase-file FILE.", ExitCode.USAGE)


def _read(file: Path, bytes_max: int) -> bytes:
    try:
        with file.open("rb") as opened:
            data = opened.read(bytes_max + 1)
    except OSError as error:
        raise KithError(
            "file-unreadable",
            f"{file} can not be read: {error.strerror or error}",
            "Name a file that is there and that you may read.",
            ExitCode.BAD_INPUT,
        ) from error
    if len(data) > bytes_max:
        raise KithError(
            "file-unreadable", f"{file} is larger than {bytes_max} bytes", "Is it the right one?", ExitCode.BAD_INPUT
        )
    return data


def _named(enrolled: Enrolment) -> str:
    return f"mesh {output.one_line(enrolled.label)!r} ({enrolled.mesh_id[:12]})"


def _shape(enrolled: Enrolment) -> dict[str, str]:
    return {
        "mesh_id": enrolled.mesh_id,
        "label": enrolled.label,
        "node_id": enrolled.key.node_id,
        "role": enrolled.identity.role.value,
    }
