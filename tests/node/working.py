"""What the tests of the executors share: a real store and blobs, and the events that come back."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from mesh import events
from mesh.identity import NodeKey
from node.blobs import Blobs
from node.store import Store, _Kind

KEY = NodeKey.from_scalar(7)
JOB = b"j" * 32
#: Longest wait for anything that must happen, in seconds.
PATIENCE = 30.0

E = TypeVar("E")


@dataclass
class Posted:
    """Collects what is posted to the machines."""

    heard: list[events.Event] = field(default_factory=list)
    _came: asyncio.Event = field(default_factory=asyncio.Event)

    def post(self, event: events.Event) -> None:
        self.heard.append(event)
        self._came.set()

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.heard if isinstance(event, kind)]

    async def first(self, kind: type[E]) -> E:
        [found] = await self.some(kind, 1)
        return found

    async def some(self, kind: type[E], count: int) -> list[E]:
        """The first of them, as soon as there are so many."""
        async with asyncio.timeout(PATIENCE):
            while len(found := self.of(kind)) < count:
                self._came.clear()
                await self._came.wait()
        return found[:count]


def no_fatal(text: str) -> None:
    raise AssertionError(text)


async def hung(store: Store, kind: _Kind = _Kind.WRITE) -> tuple[asyncio.Future[bool], threading.Event]:
    """The store stands still in a request, which is true at the end, until the event is set."""
    hangs, goes_on = threading.Event(), threading.Event()

    def hang() -> bool:
        hangs.set()
        return goes_on.wait()

    held = asyncio.ensure_future(store._do(hang, kind))
    assert await asyncio.to_thread(hangs.wait, 60)
    return held, goes_on


@asynccontextmanager
async def blobs_of(folder: Path, posted: Posted) -> AsyncIterator[Blobs]:
    """Blobs of a node without peers."""
    store = Store(folder / "journal", no_fatal)
    store.open(KEY.node_id)
    blobs = Blobs(store, posted.post, lambda _: None, list)
    try:
        yield blobs
    finally:
        await blobs.close()
        await store.close()
