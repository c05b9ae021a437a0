"""What every command shares: which node is meant, how to reach it, and the options that all have."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from node.client import NodeClient

Result = TypeVar("Result")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def data_dir(ctx: typer.Context) -> Path:
    """The data directory that the command means; set by the root command."""
    folder = ctx.find_root().obj
    assert isinstance(folder, Path)
    return folder


def data_dir_option(ctx: typer.Context) -> str:
    """As it has to be typed again: nothing for the default data directory."""
    from node.paths import default_data_dir

    folder = data_dir(ctx)
    return "" if folder == default_data_dir().absolute() else f" --data-dir {folder}"


def ask_node(ctx: typer.Context, work: Callable[[NodeClient], Awaitable[Result]]) -> Result:
    """Run `work` against the node. Raises `KithError`; Ctrl-C cancels `work` and raises `KeyboardInterrupt`."""
    import asyncio

    from node.client import NodeClient

    async def connected() -> Result:
        async with NodeClient(data_dir(ctx)) as node:
            return await work(node)

    return asyncio.run(connected())
