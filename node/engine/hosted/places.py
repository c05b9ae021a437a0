"""Who may use a server next: so many at once, the others by the rule of all queues (engine/waiting.py).

A request whose asker will have no use for it any more when its turn comes is refused then, so that nobody waits for it.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from node.engine.waiting import Entry, Waiting
from node.errors import ExitCode, KithError


class Places:
    """Belongs to one event loop. Invariant: nobody waits while a place is free."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: Waiting[asyncio.Future[None]] = Waiting()

    @asynccontextmanager
    async def one(
        self, priority: int = 0, useful_s: float = 0.0, owner: str = "", cost: float = 1.0
    ) -> AsyncIterator[None]:
        """Wait for a place and hold it. Raises `KithError` (`too-late`) after `useful_s` (0: never).

        Args:
            cost: what owners are compared by, in any unit that is the same for all; above 0.
        """
        arrived = time.monotonic()
        await self._take(priority, owner, cost)
        try:
            waited = time.monotonic() - arrived
            if 0 < useful_s < waited:
                message = f"the request waited {waited:.1f} s for its turn and was of use for {useful_s:.1f} s"
                raise KithError("too-late", message, "Try again later.", ExitCode.UNAVAILABLE)
            yield
        finally:
            self._give_back()

    async def _take(self, priority: int, owner: str, cost: float) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(Entry(turn, priority, owner, cost, math.inf))
        self._pass_on()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._drop_cancelled()
            else:  # it was given a place and left in the same moment
                self._give_back()
            raise

    def _give_back(self) -> None:
        self._free += 1
        self._pass_on()

    def _pass_on(self) -> None:
        self._drop_cancelled()  # who left in this very moment, and has not run since
        while self._free and (turn := self._waiting.take()) is not None:
            self._free -= 1
            turn.set_result(None)

    def _drop_cancelled(self) -> None:
        self._waiting.drop(lambda turn: turn.cancelled())
