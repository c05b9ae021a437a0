"""When the machines are told the time: often while something happens, half as often while nothing does.

Why: an idle node runs for months, often on a small board, and nearly all that it costs there is waking up.

Idea: what happens is told by `stir`. From then on ticks come every `TICK_S`; once nothing was told for `QUIET_AFTER_S`,
every second one is left out. Who stirs in a quiet time finds the next tick where it would have been anyway.

Does not: judge what counts as something. The machines hold at either pace: the simulator's nodes tick every 0.08 to
0.1 s.
"""

import asyncio
from collections.abc import Callable

TICK_S = 0.05
#: Seconds between ticks while nothing happens. No longer than the simulator's.
QUIET_TICK_S = 2 * TICK_S
#: Longer than the steps of what is under way are apart: it goes on at the full pace.
QUIET_AFTER_S = 1.0


class Ticker:
    """Calls `tick` from `start` to `stop`. Belongs to one event loop."""

    def __init__(self, tick: Callable[[], None]) -> None:
        self._tick = tick
        self._next: asyncio.TimerHandle | None = None
        self._stirred_at = 0.0

    def start(self) -> None:
        self.stir()
        self._fire()

    def stop(self) -> None:
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def stir(self) -> None:
        """Something happened."""
        loop = asyncio.get_running_loop()
        self._stirred_at = loop.time()
        if self._next is not None and (left_out := self._next.when() - TICK_S) > self._stirred_at:
            self._next.cancel()
            self._next = loop.call_at(left_out, self._fire)

    def _fire(self) -> None:
        loop = asyncio.get_running_loop()
        quiet = loop.time() - self._stirred_at > QUIET_AFTER_S
        self._next = loop.call_later(QUIET_TICK_S if quiet else TICK_S, self._fire)
        self._tick()
