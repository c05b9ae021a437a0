"""`kith key`: who may use the HTTP door of this node."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli import output, session

if TYPE_CHECKING:
    from node.api_keys import ApiKeys

COLUMNS = (output.Column("name"), output.Column("good for", "fold"), output.Column("made", "drop"))

group = typer.Typer(help="API keys of the HTTP door.", no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="key")


@group.command("add")
def add(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who or what uses the key.")],
    scope: Annotated[
        str, typer.Option("--scope", metavar="SCOPES", help="What for, by commas: chat, models, embeddings, status.")
    ] = "chat,models,embeddings",
    as_json: session.Json = False,
) -> None:
    """Make a key and print it, once: the node keeps only its hash. It counts from now on."""
    scopes = [word.strip() for word in scope.split(",") if word.strip()]
    secret = _keys(ctx).add(name, scopes, int(time.time() * 1000))
    if as_json:
        output.emit({"name": name, "key": secret, "scopes": scopes})
        return
    print(secret)
    output.note(output.styled(f"for {name}: {', '.join(scopes)}. It is shown this once.", "2", sys.stderr))


@group.command("list")
def list_(ctx: typer.Context, as_json: session.Json = False) -> None:
    """List the keys by name, never what they are."""
    keys = _keys(ctx).all()
    if as_json:
        output.emit(
            {"keys": [{"name": key.name, "scopes": list(key.scopes), "created_ms": key.created_ms} for key in keys]}
        )
        return
    if not keys:
        print("no API keys: on loopback the HTTP door asks for none, elsewhere it does not open")
    if keys:
        output.table(COLUMNS, [[key.name, ", ".join(key.scopes), _day(key.created_ms)] for key in keys])


@group.command("rm")
def remove(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The key, as `kith key list` names it.")],
    as_json: session.Json = False,
) -> None:
    """Remove a key. It is worth nothing from now on."""
    keys = _keys(ctx)
    keys.remove(name)
    if as_json:
        output.emit({"removed": name})
        return
    print(f"removed {name}")
    if not keys.all():
        print("  note   it was the last: on loopback the HTTP door asks for none now")


def _day(time_ms: int) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(time_ms / 1000))


def _keys(ctx: typer.Context) -> ApiKeys:
    from node.api_keys import ApiKeys
    from node.paths import NodePaths

    return ApiKeys(NodePaths(session.data_dir(ctx)).api_keys)
