"""`kith model`: the model files of this user, where they come from, what the engine holds, and which one to choose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from node.cli import output, session
from node.errors import ExitCode, KithError

if TYPE_CHECKING:
    from mesh.wire import local_pb2
    from node.models.store import Entry, Manifest, ModelStore

group = typer.Typer(help="Model files, and which one to choose.", no_args_is_help=True, rich_markup_mode=None)

COLUMNS = (
    output.Column("model"),
    output.Column("size", number=True),
    output.Column("quantisation", "drop"),
    output.Column("licence", "drop"),
    output.Column("from", "crop"),
    output.Column("used"),
)


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="model")


@group.command("list")
def list_models(ctx: typer.Context, as_json: session.Json = False) -> None:
    """List the model files on this machine."""
    from node.cli import as_json as shapes
    from node.models.store import ModelStore, in_use

    store = ModelStore()
    entries = store.entries()
    serving = _served_here(ctx)
    unfinished = store.unfinished()
    if as_json:
        rows = [shapes.stored(entry, in_use(entry.path), str(entry.path) in serving) for entry in entries]
        output.emit({"folder": str(store.folder), "models": rows, "unfinished_bytes": sum(n for _, n in unfinished)})
        return
    if entries:
        output.table(COLUMNS, [_row(entry, serving, in_use(entry.path)) for entry in entries])
    else:
        print(f"no model in {store.folder} yet; kith model pull fetches the default one")
    if unfinished:
        size = output.size(sum(size for _, size in unfinished))
        output.note(f"{len(unfinished)} unfinished, {size}: pull again to go on, or kith model rm --unfinished")


def _row(entry: Entry, serving: set[str], used: bool) -> tuple[str, ...]:
    manifest = entry.manifest
    used_by = "this node" if str(entry.path) in serving else "a node" if used else ""
    return (
        entry.name,
        output.size(manifest.size_bytes),
        manifest.quantization or "–",
        manifest.licence or "–",
        manifest.source or "put there by hand",
        used_by,
    )


def _served_here(ctx: typer.Context) -> set[str]:
    """Paths of the files that the node of this data directory serves; empty where none runs."""
    try:
        shown = session.ask_node(ctx, lambda node: node.show_model())
        return {shown.path, *shown.paths} - {""}
    except KithError:
        return set()


@group.command("show")
def show(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A model of the list; without it, what the node's engine holds.")] = "",
    verify: Annotated[bool, typer.Option("--verify", help="Read the whole file and compare its hash.")] = False,
    as_json: session.Json = False,
) -> None:
    """Say all about a model file, or about what the node has loaded."""
    from node.cli import as_json as shapes

    if name:
        _show_stored(ctx, name, verify, as_json)
        return
    if verify:
        raise KithError("usage", "--verify needs a NAME", "kith model list shows the names.", ExitCode.USAGE)
    reply = session.ask_node(ctx, lambda node: node.show_model())
    if as_json:
        output.emit(shapes.model(reply))
        return
    _print(_lines(reply))


def _show_stored(ctx: typer.Context, name: str, verify: bool, as_json: bool) -> None:
    from node.cli import as_json as shapes
    from node.models.store import ModelStore, in_use

    store = ModelStore()
    entry = store.require(name)
    found = store.verify(entry) if verify else ""
    used = in_use(entry.path)
    if as_json:
        serving = str(entry.path) in _served_here(ctx)
        output.emit({**shapes.stored(entry, used, serving), "verified_sha256": found or None})
        return
    _print(_stored_lines(entry.manifest, str(entry.path), used, found))


def _print(lines: dict[str, str]) -> None:
    for key, text in lines.items():
        print(output.dim(f"{key:<13}") + output.wrapped(output.one_line(text), " " * 13, ""))


def _stored_lines(manifest: Manifest, path: str, used: bool, verified: str) -> dict[str, str]:
    import datetime

    if verified:
        hashed = f"{verified}, verified now"
        hashed += "" if manifest.sha256 else "; nothing says what it should be"
    else:
        hashed = manifest.sha256 or "not known; kith model show NAME --verify computes it"
    added = datetime.datetime.fromtimestamp(manifest.added_ms / 1000).astimezone() if manifest.added_ms else None
    return {
        "model": manifest.model or "–",
        "file": path,
        "size": f"{output.size(manifest.size_bytes)}, {_parameters(manifest.parameters)} parameters, "
        f"{manifest.quantization or '–'}",
        "architecture": manifest.architecture or "–",
        "context": f"trained on {manifest.context_tokens} tokens" if manifest.context_tokens else "–",
        "licence": manifest.licence or "–",
        "from": manifest.source or "put there by hand",
        "revision": manifest.revision or "–",
        "SHA-256": hashed,
        "added": f"{added:%Y-%m-%d %H:%M}" if added else "–",
        "used": "by a node on this machine" if used else "by no node",
    }


def _parameters(count: int) -> str:
    return f"{count / 1e6:.0f} M" if count < 1e9 else f"{count / 1e9:.1f} B"


def _lines(reply: local_pb2.ShowModelReply) -> dict[str, str]:
    engine, rates = reply.engine, reply.calibrated
    return {
        "model": engine.model or "–",
        "file": reply.path or "–",
        "size": f"{output.size(engine.model_bytes)}, {_parameters(engine.parameters)} parameters, "
        f"{engine.quantization or '–'}"
        if engine.model_bytes
        else "–",
        "architecture": engine.architecture or "–",
        "context": f"{engine.context_tokens} tokens a slot, {engine.slots} slot{'s' if engine.slots != 1 else ''}"
        + (f"; trained on {engine.trained_context_tokens}" if engine.trained_context_tokens else ""),
        "threads": str(engine.threads),
        "template": "in the file" if engine.has_chat_template else "none",
        "abilities": ", ".join(engine.abilities) or "–",
        "speed": f"reads {output.rate(rates.prefill_tokens_per_s)}, writes {output.rate(rates.decode_tokens_per_s)} "
        "tokens/s, measured when it started",
        "loaded in": output.seconds(engine.load_seconds),
        "licence": engine.licence or "–",
        "built for": engine.system_info or "–",
    }


@group.command("pull")
def pull(
    ctx: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            help="hf://ORG/REPO/FILE.gguf[@REVISION], a file's path, peer:NODE/MODEL, or a SHA-256 that any node has; "
            "without it, the default model."
        ),
    ] = "",
    name: Annotated[str, typer.Option("--name", metavar="FILE", help="What the file is called here.")] = "",
    sha256: Annotated[str, typer.Option("--sha256", metavar="HEX", help="What the file must be.")] = "",
    as_json: session.Json = False,
) -> None:
    """Fetch a model file, checked by its hash. A pull that was interrupted goes on."""
    from node.cli.pulling import pull_model

    pulled = pull_model(ctx, source, name, sha256, quiet=as_json)
    if as_json:
        output.emit(
            {
                "path": pulled.path,
                "name": pulled.name,
                "bytes": pulled.size_bytes,
                "sha256": pulled.sha256,
                "was_here": pulled.was_here,
            }
        )
    elif source:
        print(f"{pulled.name} {'was already' if pulled.was_here else 'is'} at {pulled.path}")
        print(f"  serve it: kith{session.data_dir_option(ctx)} up --model {pulled.name.removesuffix('.gguf')}")
    else:
        print(f"the default model is at {pulled.path}")


@group.command("rm")
def remove(
    name: Annotated[str, typer.Argument(help="A model of the list.")] = "",
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Remove what interrupted pulls left instead.")
    ] = False,
    as_json: session.Json = False,
) -> None:
    """Remove a model file that no node on this machine uses. It says what that frees."""
    from node.models.store import ModelStore

    if bool(name) == unfinished:
        raise KithError("usage", "give either a NAME or --unfinished", "kith model list shows both.", ExitCode.USAGE)
    store = ModelStore()
    what, freed = ("unfinished pulls", store.drop_unfinished()) if unfinished else _remove(store, name)
    if as_json:
        output.emit({"removed": what, "freed_bytes": freed})
    else:
        print(f"removed {what}: {output.size(freed)} freed")


@group.command("advise")
def advise(
    ctx: typer.Context,
    task: Annotated[
        str,
        typer.Option("--task", metavar="chat|summarise|code|extract|embed|classify", help="What it is for."),
    ] = "chat",
    memory: Annotated[
        str, typer.Option("--memory", metavar="SIZE", help="What the model may take, as in 8G. [default: what is free]")
    ] = "",
    mesh: Annotated[bool, typer.Option("--mesh", help="Also list what the live mesh serves.")] = False,
    as_json: session.Json = False,
) -> None:
    """Say which model suits this machine and kind of task, and why."""
    from node.cli.advising import advise_model

    advise_model(ctx, task, memory, mesh, as_json)


def _remove(store: ModelStore, name: str) -> tuple[str, int]:
    """Name, and bytes that are free now: none where the file has another name elsewhere."""
    entry = store.require(name)
    freed = entry.path.stat().st_size if entry.path.stat().st_nlink == 1 else 0
    store.remove(name)
    return entry.name, freed
