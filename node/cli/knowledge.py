"""`kith knowledge`: add what every node shall know, and look things up in it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from node.cli import output, session
from node.errors import ExitCode, KithError

group = typer.Typer(help="What all nodes share.", no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="knowledge")


@group.command("add")
def add(
    ctx: typer.Context,
    text: Annotated[str | None, typer.Argument(help="What to remember; - reads standard input.")] = None,
    file: Annotated[Path | None, typer.Option("--file", metavar="FILE", help="Take the text of this document.")] = None,
    title: Annotated[str, typer.Option("--title", help="A name for it.")] = "",
    source: Annotated[str, typer.Option("--source", help="Where it comes from. [default: the file's name]")] = "",
    tag: Annotated[list[str] | None, typer.Option("--tag", help="A word to find it by; may be repeated.")] = None,
    as_json: session.Json = False,
) -> None:
    """Add a piece of knowledge; every node gets it."""
    if (text is None) == (file is None):
        raise KithError(
            "usage",
            "give either a text or --file",
            'as in: kith knowledge add "The router is in room 4."',
            ExitCode.USAGE,
        )
    media_type = "text/plain"
    if file is not None:
        from node.documents import read_document

        document = read_document(file)
        text, media_type = document.text, document.media_type
        title, source = title or document.title, source or document.source_name
    elif text == "-":
        text = sys.stdin.read()
    assert text is not None
    if not text.strip():
        raise KithError(
            "bad-request", "there is nothing to add: the text is empty", "give some text", ExitCode.BAD_INPUT
        )
    from mesh.wire import facts_pb2

    item = facts_pb2.KnowledgeAdded(title=title, text=text, source=source, tags=tag or [], media_type=media_type)
    item_id = session.ask_node(ctx, lambda node: node.add_knowledge(item))
    if as_json:
        output.emit({"item_id": item_id.hex()})
    else:
        print(f"added {item_id.hex()[:12]}")


@group.command("search")
def search(
    ctx: typer.Context,
    query: Annotated[str, typer.Argument(help="Words to look for.")],
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="How many at most.")] = 10,
    as_json: session.Json = False,
) -> None:
    """Search what the mesh knows, best first."""
    from node.cli import as_json as shapes

    hits = session.ask_node(ctx, lambda node: node.search_knowledge(query, limit))
    if as_json:
        output.emit({"hits": [shapes.hit(hit) for hit in hits]})
        return
    if not hits:
        print("nothing found")
    for number, hit in enumerate(hits, 1):
        head = output.one_line(hit.title or hit.text, 70)
        by = ", ".join(filter(None, [hit.source, hit.author_name, *(f"#{tag}" for tag in hit.tags)]))
        print(f"{number}. {output.bold(head)}  {output.dim(f'{hit.item_id.hex()[:12]}  score {hit.score:.2f}')}")
        if hit.title:
            print(output.wrapped(output.one_line(hit.text, 300), "   "))
        if by:
            print(output.dim(f"   {output.one_line(by)}"))
