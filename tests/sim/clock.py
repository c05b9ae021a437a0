"""Virtual time: callbacks run in order of (time, order of asking), and nothing else makes time pass."""

import heapq
from collections.abc import Callable

Call = Callable[[], None]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self._asked = 0
        self._queue: list[tuple[float, int, Call]] = []

    def after(self, delay_s: float, call: Call) -> None:
        assert delay_s >= 0.0
        self._asked += 1
        heapq.heappush(self._queue, (self.now + delay_s, self._asked, call))

    def run_until(self, end_s: float) -> None:
        """Run everything that is due up to `end_s`; then it is `end_s`."""
        queue, pop = self._queue, heapq.heappop
        while queue and queue[0][0] <= end_s:
            self.now, _, call = pop(queue)
            call()
        self.now = end_s
