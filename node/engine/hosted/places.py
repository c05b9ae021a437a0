"""Who may use a server next: so many at once, the others by priority, then by arrival.

A request whose asker will have no use for it any more when its turn comes is refused then, so that nobody waits for it.
"""

import asyncio
import heapq
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from node.errors import ExitCode, KithError


class Places:
    """Belongs to one event loop. Invariant: nobody waits while a place is free."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._numbers = itertools.count()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def one(self, priority: int = 0, useful_s: float = 0.0) -> AsyncIterator[None]:
        """Wait for a place and hold it. Raises `KithError` (`too-late`) after `useful_s` (0: never)."""
        arrived = time.monotonic()
        await self._take(priority)
        try:
            waited = time.monotonic() - arrived
            if 0 < useful_s < waited:
                message = f"the request waited {waited:.1f} s for its turn and was of use for {useful_s:.1f} s"
                raise KithError("too-late", message, "Try again later.", ExitCode.UNAVAILABLE)
            yield
        finally:
            self._give_back()

    async def _take(self, priority: int) -> None:
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (-priority, next(self._numbers), turn)
        heapq.heappush(self._waiting, entry)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._waiting = [one for one in self._waiting if one is not entry]
                heapq.heapify(self._waiting)
            else:  # it was given a place and left in the same moment
                self._give_back()
            raise

    def _give_back(self) -> None:
        while self._waiting:
            turn = heapq.heappop(self._waiting)[2]
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
