"""Work in a thread that the end of the node does not wait for: reading from a network, hashing gigabytes.

Why: a thread can not be ended from outside, and the threads of `asyncio.to_thread` are waited for when the loop closes.
So `kith down` would last as long as a stalled download. These threads are daemons: the process ends over them.

Does not: suit work that must not be left half done. What it writes has to be as good as it is at any moment.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


async def detached(
    work: Callable[[], Result], name: str, stop: Callable[[], None] = lambda: None, within_s: float = 0.5
) -> Result:
    """What `work` returns or raises. Where this is cancelled: `stop` is called, the thread left after `within_s`."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def settle(result: Result | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name=name, daemon=True).start()
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        stop()
        await asyncio.wait({future}, timeout=within_s)
        if future.done():
            future.exception()  # nobody else asks for it
        raise
