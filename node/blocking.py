"""Coroutines for callers that block: programs that use `kithmesh.Client`.

Idea: one event loop in one thread for the whole process, started at the first call. So a client may be shared by
threads, and used where another loop runs already, as in a notebook. Ctrl-C in the caller cancels what it waits for.

Does not: serve the loop's own callbacks. One that called `run` would wait for itself.
"""

import asyncio
import atexit
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

Value = TypeVar("Value")

#: For what is under way to end when the program does.
_END_S = 1.0


class _Loop:
    """Started by its first use."""

    def __init__(self) -> None:
        self._starting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def get(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="kithmesh", daemon=True)
                self._thread.start()
            return self._loop

    def stop(self) -> None:
        """Of a program that ends: gRPC must not be at work while the interpreter is taken down."""
        if self._loop is None or self._thread is None:
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_END_S)
        if not self._thread.is_alive():
            self._loop.close()


_shared = _Loop()


def run(work: Coroutine[Any, Any, Value]) -> Value:
    """What `work` returns or raises; blocks."""
    future = asyncio.run_coroutine_threadsafe(work, _shared.get())
    try:
        return future.result()
    except BaseException:
        future.cancel()  # nothing, where it has ended
        raise


def _forget() -> None:
    """A child has the loop and not its thread."""
    global _shared
    _shared = _Loop()


os.register_at_fork(after_in_child=_forget)
atexit.register(lambda: _shared.stop())
