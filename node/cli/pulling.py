"""Carrying out `kith model pull`: from the Hub and from files here, from other nodes through the running node.

Idea: one place says how far it is: a bar on a terminal, else a line for each tenth, both on standard error.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from node.cli import output, session
from node.errors import ExitCode, KithError

if TYPE_CHECKING:
    import typer

    from mesh.wire import local_pb2
    from node.models.source import PeerSource
    from node.models.store import Entry

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Pulled:
    path: str
    name: str
    size_bytes: int
    sha256: str  # hex; empty where it is not known
    was_here: bool


def pull_model(ctx: typer.Context, source: str, name: str = "", sha256: str = "", *, quiet: bool = False) -> Pulled:
    """Raises `KithError`."""
    import re
    from pathlib import Path

    from node.models.source import HubSource, PeerSource, parse
    from node.models.store import ModelStore, check_name

    if sha256 and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise KithError("usage", "--sha256 must be 64 hex digits", "", ExitCode.USAGE)
    if not source:
        return _default(quiet, name, sha256)
    if name:
        name = check_name(name if name.endswith(".gguf") else f"{name}.gguf")
    store, what = ModelStore(), parse(source)
    with _shown(quiet) as progress:
        match what:
            case HubSource():
                from node.models import hub

                before = {entry.name for entry in store.entries()}
                entry = hub.pull(what, store, name, sha256, progress)
                return _of(entry, entry.name in before)
            case PeerSource():
                return _from_peer(ctx, what, name, sha256, progress)
            case Path():
                from node.models.local import pull_file

                known = {entry.name for entry in store.entries() if entry.manifest.sha256}
                entry = pull_file(what, store, name, progress, sha256.lower())
                return _of(entry, entry.name in known)


def _default(quiet: bool, name: str, sha256: str) -> Pulled:
    from node.models.default import DEFAULT_SHA256, ensure_default_model, has_default_model

    if name or sha256:
        message = "--name and --sha256 go with a source"
        raise KithError("usage", message, "The default model has its own.", ExitCode.USAGE)
    was_here = has_default_model()
    path = ensure_default_model() if quiet else ensure_default_model(lambda line: output.note(output.clean(line)))
    return Pulled(str(path), path.name, path.stat().st_size, DEFAULT_SHA256, was_here)


def _of(entry: Entry, was_here: bool) -> Pulled:
    return Pulled(str(entry.path), entry.name, entry.manifest.size_bytes, entry.manifest.sha256, was_here)


def _from_peer(ctx: typer.Context, what: PeerSource, name: str, sha256: str, progress: Progress) -> Pulled:
    from mesh.wire import local_pb2
    from node.client import NodeClient

    wanted = what.sha256 or sha256
    if sha256 and what.sha256 and sha256.lower() != what.sha256:
        raise KithError("usage", "the source and --sha256 name two files", "Leave one out.", ExitCode.USAGE)
    request = local_pb2.PullModelRequest(
        node=what.node, model="" if wanted else what.model, sha256=bytes.fromhex(wanted), name=name
    )

    async def pulled(node: NodeClient) -> local_pb2.PulledModel:
        async with contextlib.aclosing(node.pull_model(request)) as events:
            async for event in events:
                if event.WhichOneof("event") == "pulled":
                    return event.pulled
                progress(event.progress.done_bytes, event.progress.size_bytes)
        raise KithError("node-error", "the node ended the pull without a word", "Look at its log: kith logs")

    got = session.ask_node(ctx, pulled)
    return Pulled(got.path, got.name, got.size_bytes, got.sha256.hex(), got.was_here)


@contextlib.contextmanager
def _shown(quiet: bool) -> Iterator[Progress]:
    if quiet:
        yield lambda _done, _size: None
        return
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=output.console(sys.stderr), transient=True) as view:
        task = view.add_task("", total=None)
        first: list[int] = []

        def tell(done: int, size: int) -> None:
            if not first:
                first.append(done)
                view.reset(task, total=size, completed=done)
            view.update(task, total=size, completed=done)

        yield tell


class _Lines:
    """A line for each tenth, and one at once where a pull goes on."""

    def __init__(self) -> None:
        self._next: float | None = None

    def __call__(self, done: int, size: int) -> None:
        if not size:
            return
        if self._next is None:
            self._next = done / size + 0.1
            output.note(f"{'going on at' if done else 'fetching'} {output.size(done or size)}")
        elif done / size >= self._next or done == size:
            self._next = 9.0 if done == size else done / size + 0.1
            output.note(f"{output.size(done)} of {output.size(size)}")
