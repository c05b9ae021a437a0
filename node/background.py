"""Work that nobody awaits: held until it ends, and what goes wrong in it is logged.

Why: the event loop itself keeps only weak references to tasks, and an exception in a task that nobody awaits is silent.

Does not: start anything again.
"""

import asyncio
from collections.abc import Coroutine

from node.logs import log, where


class Background:
    """The tasks of one part of the node. Belongs to one event loop."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[None, None, None], name: str = "") -> None:
        """Run it. `name` is for the log."""
        task = asyncio.get_running_loop().create_task(work, name=name or None)
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._done(task, name))

    async def settled(self) -> None:
        """Wait until all that runs now has ended."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def cancel(self) -> None:
        """End all that runs now."""
        for task in list(self._tasks):
            task.cancel()
        await self.settled()

    def _done(self, task: "asyncio.Task[None]", name: str) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log("error", f"{name}: {where(error)}" if name else where(error))
