"""An event loop whose time passes only while everybody waits, and then at once.

Why: what the product does by asyncio runs as it is, over minutes of simulated time, in as long as its own work takes.

Does not: change other clocks (`time.monotonic`), or wait for anything outside: where nothing is left to come, it fails.
"""

import asyncio
import selectors


class _Clock(selectors.SelectSelector):
    """A wait for files that is over at once, and moves the time on instead."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("everybody waits, and nobody for a time")
            self.now_s += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _Clock()
        super().__init__(self._virtual)

    def time(self) -> float:
        """Seconds since the loop was made."""
        return self._virtual.now_s
