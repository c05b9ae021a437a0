"""What several want at the same time is made once, and held once for as long as one of them uses it.

Why: all tasks of a job begin with its document at once. Each of its own would be sent, and held in memory, many times.

Does not: keep anything for who comes later, a failure neither.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


@dataclass(eq=False)
class _Made(Generic[Value]):
    task: "asyncio.Task[Value]"
    users: int = 0

    @property
    def failed(self) -> bool:
        return self.task.done() and (self.task.cancelled() or self.task.exception() is not None)


class Shared(Generic[Key, Value]):
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self._made: dict[Key, _Made[Value]] = {}

    def __contains__(self, key: Key) -> bool:
        """Whether somebody waits for it or uses it; who has yet to hear that it failed does neither."""
        return (made := self._made.get(key)) is not None and not made.failed

    @contextlib.asynccontextmanager
    async def of(self, key: Key, make: Callable[[], Coroutine[Any, Any, Value]]) -> AsyncIterator[Value]:
        """What `make` returns or raises, by whoever came first. The making ends with the last who waits for it."""
        made = self._made.get(key)
        if made is None or made.failed:
            made = self._made[key] = _Made(asyncio.create_task(make(), name="make what is shared"))
        made.users += 1
        try:
            yield await asyncio.shield(made.task)
        finally:
            made.users -= 1
            if not made.users:
                if self._made.get(key) is made:
                    del self._made[key]
                made.task.cancel()
                await asyncio.gather(made.task, return_exceptions=True)
